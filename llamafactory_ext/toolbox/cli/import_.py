"""Brings labels and series of any form to GDSH's layout, which training, prepare and check read.

llamafactory-ext import export.csv labels.json --out data/plant
llamafactory-ext import timeseries --labels windows:combined_windows.json --out data/nab
"""

import argparse
from pathlib import Path

import yaml

from llamafactory_ext.errors import UsageError
from llamafactory_ext.toolbox.cli.terminal import (
    DONE,
    FAULTS,
    complain,
    print_table,
    say,
    stops_in_one_line,
    text_of,
    track,
)
from llamafactory_ext.toolbox.importing.columns import Reading
from llamafactory_ext.toolbox.importing.labels import Choice
from llamafactory_ext.toolbox.importing.layout import PROMPTS
from llamafactory_ext.toolbox.importing.options import KINDS, Options, Report
from llamafactory_ext.toolbox.importing.pipeline import import_data


SHOWN = 20

DESCRIPTION = f"""
Reads series (CSV of any dialect, gzip, .xlsx, .parquet; a sensor a file, a column a sensor, or long with a tag column)
and labels, and writes json/*.json, timeseries/, dataset_info.json and import_report.json.

--labels is one of {", ".join(KINDS)}.
"""
EPILOG = """
exit status: 0 written, 1 faults in the data (nothing is written), 2 wrong usage.
Labels without a series, or series without labels, are reported; what can be read in two ways is refused.
"""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="llamafactory-ext import",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "sources",
        nargs="+",
        type=Path,
        metavar="SOURCE",
        help="files and folders of series; labels may lie among them",
    )
    add("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    add("--labels", default="auto", metavar="SPEC", help="where labels come from; default: auto, by looking")
    add("--name", default="", metavar="NAME", help="of the data set; default: the source's")
    add("--names", choices=("column", "file"), default="column", help="what series of one file are called after")
    for what in ("value", "time", "tag"):
        add(f"--{what}-column", default="", metavar="NAME", help=f"default: the {what} column is found by looking")
    add("--dates", choices=("day-first", "month-first"), default="", help="how dates such as 01/02/2025 are meant")
    add("--timezone", metavar="ZONE", help="of times that name none, e.g. Asia/Shanghai")
    add("--annotator", default="", metavar="NAME", help="whose labels count; all: everybody's, agreement is reported")
    add("--only-approved", action="store_true", help="leave out annotations that nobody has approved")
    add("--type", default="异常", metavar="TYPE", help="of labels that name none; default: 异常")
    add("--type-map", type=Path, metavar="FILE", help="JSON or YAML, old type to new type")
    add("--widen", type=int, default=0, metavar="N", help="rows by which intervals grow on both sides")
    add("--prompt", type=Path, metavar="FILE", help="text of the question; <image> stands for the series")
    add("--language", choices=sorted(PROMPTS), default="zh", help="of the question without --prompt; default: zh")
    add("--round", default="", metavar="NAME", help="kept in every record: which round of corrections it comes from")
    add("--join", action="store_true", help="series of one name are exports of one sensor: join them by time")
    add("--drop-faulty", action="store_true", help="leave out what has faults instead of stopping")
    return parser.parse_args(arguments)


@stops_in_one_line()
def main() -> int:
    given = parse()
    report = import_data(_options(given), track)
    _show(report)
    for fault in report.faults[:SHOWN]:
        complain(fault)
    if len(report.faults) > SHOWN:
        complain(f"... and {len(report.faults) - SHOWN} more")
    if not report.done:
        complain(
            f"error: {len(report.faults)} faults, nothing was written; correct what is named, or use --drop-faulty"
        )
        return FAULTS
    say(f"{given.out}: json/, timeseries/, dataset_info.json, import_report.json")
    return DONE


def _options(given: argparse.Namespace) -> Options:
    prompt = text_of(given.prompt, "--prompt").strip() if given.prompt else PROMPTS[given.language]
    if "<image>" not in prompt:
        raise UsageError(f"{given.prompt} has no <image>, which stands for the series; add it")
    if given.widen < 0:
        raise UsageError("--widen is below 0; intervals can only grow")
    try:
        types = yaml.safe_load(text_of(given.type_map, "--type-map")) if given.type_map else {}
    except yaml.YAMLError as err:
        raise UsageError(f"--type-map {given.type_map} is no YAML: {' '.join(str(err).split())}") from err
    if not isinstance(types, dict) or not all(isinstance(one, str) for one in [*types, *types.values()]):
        raise UsageError(f"{given.type_map}: expected names of types, old: new")
    names = "file" if given.names == "file" else ""
    return Options(
        sources=tuple(given.sources),
        out=given.out,
        labels=given.labels,
        name=given.name,
        reading=Reading(given.value_column, given.time_column, "", given.tag_column, names),
        choice=Choice(given.annotator, given.only_approved),
        dates=given.dates,
        timezone=given.timezone,
        prompt=prompt,
        type=given.type,
        type_map=types,
        widen=given.widen,
        drop_faulty=given.drop_faulty,
        join=given.join,
        round=given.round,
    )


def _show(report: Report) -> None:
    """Says what the sources were taken for, and what became of them."""
    say(f"labels: {report.kind}")
    rows: list[tuple[str, object]] = [("files of series", report.files), ("series written", report.series)]
    rows += [("intervals", report.intervals), ("series without anomaly", report.without_anomaly)]
    rows += [("series that the labels do not speak of, left out", len(report.unlabelled))] if report.unlabelled else []
    rows += [(text, count) for text, count in report.counts.items() if count]
    rows += [(f"type {name or '(none)'}", count) for name, count in report.types.most_common()]
    rows += [(f"times read as: {rule}", count) for rule, count in report.axes.items()]
    rows += [(f"column not used: {name}", count) for name, count in report.unused_columns.items()]
    rows += [(f"agreement of {who}", ratio) for who, ratio in report.agreement.items()]
    print_table("Import", ("", "number"), rows)
