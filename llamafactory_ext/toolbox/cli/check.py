"""Shows what a training run would see of a data set, and what is wrong with it.

llamafactory-ext check gdsh --recipe yaml/2080ti_qlora.yaml
llamafactory-ext check gdsh --plot pictures
llamafactory-ext check train.jsonl --validation validation.jsonl --show 12
"""

import argparse
import json
from pathlib import Path
from typing import Any

from llamafactory_ext.errors import FaultError, UsageError
from llamafactory_ext.files import refuse_foreign, write_whole
from llamafactory_ext.toolbox.check.inspection import Inspection
from llamafactory_ext.toolbox.check.page import GENERATOR, PAGE, Drawn, write_page
from llamafactory_ext.toolbox.check.report import report, show, without_anomaly
from llamafactory_ext.toolbox.cli.recipes import recipe
from llamafactory_ext.toolbox.cli.terminal import (
    DONE,
    FAULTS,
    USAGE,
    positive,
    print_table,
    refuse_other_words,
    say,
    stops_in_one_line,
    track,
)
from llamafactory_ext.toolbox.session.silence import hush
from llamafactory_ext.toolbox.session.tokens import PARTS, histogram, percentiles


RECIPE = recipe("2080ti_qlora.yaml")

DESCRIPTION = """
Shows what a training run would see of a data set, through LLaMA-Factory's own loading and tokenising: counts, token
lengths, anomaly types, and what is wrong with it. A fault is what would stop training or teach something wrong; a
notice is worth a look.
"""
EPILOG = """
exit status: 0 no faults, 1 faults in the data, 2 wrong usage.
Files: --report and --plot write files, nothing else does but the caches that training uses as well.
"""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="llamafactory-ext check",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "dataset", metavar="DATASET", help="name in dataset_info.json (or names, with commas), or X.jsonl"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the recipe, as for training")
    parser.add_argument("--recipe", type=Path, default=RECIPE, metavar="X.yaml", help=f"default: yaml/{RECIPE.name}")
    parser.add_argument("--dataset-dir", metavar="DIR", help="folder of dataset_info.json; default: the recipe's")
    parser.add_argument("--validation", metavar="NAME", help="data set that training must not share a series with")
    parser.add_argument("--model", metavar="PATH", help="whose tokenizer is used; default: the recipe's")
    parser.add_argument("--cutoff-len", type=positive, metavar="N", help="default: the recipe's")
    parser.add_argument("--allow-filled-labels", action="store_true", help="labels over interpolated rows: a notice")
    parser.add_argument("--show", type=int, metavar="N", help="print record N (from 0) as the model sees it")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="draw the series with their labels: DIR/index.html")
    parser.add_argument("--plot-records", type=positive, default=500, metavar="N", help="at most; default: 500")
    parser.add_argument("--report", type=Path, metavar="FILE.json", help="write everything that was found")
    found = parser.parse_intermixed_args(arguments)
    refuse_other_words(parser, found.overrides, "; several data sets are given as one word: a,b")
    return found


@stops_in_one_line(unwritable=USAGE)
def main() -> int:
    options = parse()
    hush()
    if options.plot:
        refuse_foreign(options.plot / PAGE, GENERATOR, "--plot")
    if options.report and not options.report.absolute().parent.is_dir():
        raise UsageError(f"{options.report.parent}: no such folder for the report")
    found = _inspect(options)
    if options.show is not None:
        for line in show(found, options.show):
            say(line)
        say()
    print_summary(found, brief=options.show is not None)
    drawn = None
    if options.plot:
        drawn = write_page(found, options.plot, options.dataset, options.plot_records, track)
        say(_what_is_drawn(drawn))
    if options.report:
        text = json.dumps(report(found, drawn), ensure_ascii=False, indent=1, allow_nan=False)
        write_whole(options.report, [text, "\n"])
        say(f"report: {options.report}")
    return FAULTS if found.has_faults else DONE


def _inspect(options: argparse.Namespace) -> Inspection:
    from llamafactory_ext.toolbox.check.inspection import inspect
    from llamafactory_ext.toolbox.session.framework import CheckError
    from llamafactory_ext.toolbox.session.recipe import arguments, read_recipe

    values = read_recipe(options.recipe, options.overrides)
    given = {"dataset_dir": options.dataset_dir, "model_name_or_path": options.model}
    given["cutoff_len"] = options.cutoff_len
    values |= {key: value for key, value in given.items() if value is not None}
    try:
        return inspect(arguments(values, options.dataset, options.validation), track, options.allow_filled_labels)
    except CheckError as err:
        raise FaultError(f"training would stop: {err}") from err


_NAMED = 5
_COLUMNS = ("min", "median", "p95", "p99", "max")


def print_summary(found: Inspection, brief: bool = False) -> None:
    """Prints all that was found; `brief` leaves lengths and types out, for when one record is asked for."""
    if not brief:
        _print_counts(found)
        _print_lengths(found)
        _print_types(found)
    _print_findings(found)


def _what_is_drawn(drawn: Drawn) -> str:
    page = drawn.folder / PAGE
    some = f"{drawn.records} of {drawn.of} records drawn (--plot-records raises it); {page}"
    return str(page) if drawn.records == drawn.of else some


def _print_counts(found: Inspection) -> None:
    lengths = [one.length for record in found.records for one in record.series]
    rows: list[tuple[str, Any]] = [(part.name, len(part.dataset)) for part in found.parts]
    rows += [("records that can be used", sum(not record.fault for record in found.records))]
    rows += [("series", len(lengths))]
    rows += [("different series", len({one.digest for record in found.records for one in record.series}))]
    rows += [("points a series", _range(lengths))] if lengths else []
    rows += [("labelled intervals", found.types.total()), ("records without anomaly", without_anomaly(found))]
    print_table("Data", ("", "count"), rows)


def _print_lengths(found: Inspection) -> None:
    tokens = [one for one in found.tokens if one]
    if found.no_tokens:
        say(f"No token lengths: {found.no_tokens} (--model names a folder or another model)")
    if tokens:
        columns = {name: [getattr(one, name) for one in tokens] for name in PARTS}
        rows = [(name, *(percentiles(values)[one] for one in _COLUMNS)) for name, values in columns.items()]
        print_table("Tokens a record", ("", *_COLUMNS), rows)
        for line in histogram(columns["whole"], found.limit):
            say(line)
        over = sum(one > found.limit for one in columns["whole"])
        say(f"{over} of {len(tokens)} records exceed cutoff_len {found.limit}")
    else:
        usable = [record for record in found.records if not record.fault]
        texts = {
            "prompt": [record.prompt_characters for record in usable],
            "answer": [record.answer_characters for record in usable],
        }
        rows = [(name, *(percentiles(values)[one] for one in _COLUMNS)) for name, values in texts.items() if values]
        print_table("Characters a record", ("", *_COLUMNS), rows)
    say()


def _print_types(found: Inspection) -> None:
    total = found.types.total()
    rows = [(name or "(no type)", count, f"{count / total:.1%}") for name, count in found.types.items()]
    if rows:
        print_table("Anomaly types", ("", "intervals", "share"), rows)


def _print_findings(found: Inspection) -> None:
    for one in found.findings:
        say(f"{one.severity.upper()} {one.kind}: {one.text}")
        for place in one.places[:_NAMED]:
            say(f"    {found.records[place.row].name}{f': {place.detail}' if place.detail else ''}")
        if len(one.places) > _NAMED:
            say(f"    … and {len(one.places) - _NAMED} more")
        if one.advice:
            say(f"    → {one.advice}")
    faults = sum(one.severity == "fault" for one in found.findings)
    notices = len(found.findings) - faults
    say(f"{faults} fault{'s' * (faults != 1)}, {notices} notice{'s' * (notices != 1)}")


def _range(values: list[int]) -> str:
    return f"{min(values)}" if min(values) == max(values) else f"{min(values)} to {max(values)}"
