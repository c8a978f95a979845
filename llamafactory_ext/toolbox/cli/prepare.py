"""Makes training data of GDSH annotations and their CSV files: checked, merged, shortened, split, registered."""

import argparse
import os
import signal
from pathlib import Path
from typing import Any

from llamafactory_ext.toolbox.cli import terminal
from llamafactory_ext.toolbox.prepare import Options, prepare


SHOWN = 20  # faults on the terminal; the report has them all

DESCRIPTION = """\
Reads annotations (JSON) and series (one CSV a sensor), or ChatTS records that hold their series, checks every record,
and writes them as training data: ChatTS records (--out), cleaned annotations (--annotations), or both. All answers
become valid JSON.

ROOT holds json/*.json (or .jsonl) and timeseries/, with sub-folders as they come: the pictures of json/X.json are
looked for in timeseries/X first and then beside it, or in all of timeseries/ where there is no such folder.
In its place FILE.jsonl may be named: ChatTS records, an object a line with input, output and timeseries.

Each record written names its sensor (name) and which rows of its series the points are (rows: the first one where
the others follow it, else all of them). Training passes over both.

Nothing is written if a record has a fault, unless --drop-faulty is given. Outputs appear all at once, at the end.
"""

EPILOG = """\
examples:
  every record as it is, for a first look at what is wrong:
    llamafactory-ext prepare data --out train.jsonl --report report.json
  one record a point, answers without reasons, series of at most 1000 points, a tenth for validation:
    llamafactory-ext prepare data --out train.jsonl --merge-points --compact-answers --max-points 1000 \\
        --split 0.1 --register dataset_info/dataset_info.json
  then train on it:
    llamafactory-cli train yaml/2080ti_qlora.yaml dataset=train eval_dataset=train_val eval_strategy=epoch

exit status: 0 done, 1 faults in the data or no way to write, 2 wrong usage, 130 interrupted
"""


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        prog="llamafactory-ext prepare",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument_group("what is read").add_argument
    add("root", nargs="?", type=Path, metavar="ROOT", help="the folder with json/ and timeseries/, or FILE.jsonl")
    add("--json", nargs="+", type=Path, metavar="PATH", default=[], help="annotation files or folders, not ROOT/json")
    add("--series", nargs="+", type=Path, metavar="PATH", default=[], help="CSV files or folders; only these are used")
    add("--value-column", metavar="NAME", help="the column of the values; default: value, else the only numeric one")
    add("--quality-column", metavar="NAME", help="the column whose words (Good) or codes (192) say what is missing")
    add(
        "--missing-values", nargs="+", metavar="X", default=[], help="numbers and words that stand for no value: -9999"
    )
    add = parser.add_argument_group("what is written (at least one of --out and --annotations)").add_argument
    add("--out", type=Path, metavar="FILE", help="ChatTS records, one JSON object a line: input, output, timeseries")
    add("--annotations", type=Path, metavar="FILE", help="cleaned annotations, a JSON list, for `formatting: gdsh`")
    add("--report", type=Path, metavar="FILE", help="the run in numbers and all faults, as JSON; also after faults")
    add(
        "--register",
        type=Path,
        metavar="FILE",
        help="a dataset_info.json that gets an entry for each output, named as the file without its ending; all other "
        "entries stay, the old file is kept as .bak",
    )
    add("--force", action="store_true", help="let --register replace a different entry of the same name")
    add = parser.add_argument_group("records").add_argument
    add(
        "--merge-points",
        action="store_true",
        help="make one record of all that share a point, which is decided by their CSV files: the union of all "
        "intervals, each named once, sorted. Same type: the first record's entry stays. Different types: the type "
        "that most records give, a tie goes to the record that comes first; the report lists these. Files count in "
        "the order of their names; the first record's prompt stays",
    )
    add(
        "--drop-answers-with",
        action="append",
        metavar="TEXT",
        default=[],
        help="leave out records so answered; may be repeated",
    )
    add(
        "--normal-types",
        nargs="+",
        metavar="WORD",
        default=[],
        help="types that mean the normal state, besides 无异常, 正常, normal, none …: such entries are left out",
    )
    add("--allow-filled-labels", action="store_true", help="keep labels over rows that were interpolated")
    add("--drop-faulty", action="store_true", help="leave out records with faults instead of stopping")
    add(
        "--split",
        type=float,
        metavar="FRACTION",
        help="put so much aside for validation, in FILE_val beside each FILE: by series, never one on both sides, nor "
        "windows of one that overlap; types of anomalies are spread over both",
    )
    add(
        "--golden",
        type=Path,
        metavar="FILE.jsonl",
        help="ChatTS records that models are compared by: what is of their sensors, by name or by values, is left out",
    )
    add("--seed", type=int, default=0, help="another one, another split; default: 0")
    add = parser.add_argument_group("shorter series (--out only)").add_argument
    add(
        "--max-points",
        type=int,
        metavar="N",
        help="thin longer series to N points (MinMaxLTTB, blind to labels); intervals still cover their anomaly and "
        "grow by less than one step on each side",
    )
    add(
        "--window", type=int, metavar="N", help="cut windows of N rows, intervals clipped and shifted; before thinning"
    )
    add(
        "--stride", type=int, metavar="M", help="rows from one window's start to the next; default: N, without overlap"
    )
    add(
        "--normal-windows",
        type=_normal_windows,
        default=None,
        metavar="all|none|K",
        help="windows without anomaly: all (default), none, or at most K for each point, evenly spread",
    )
    add = parser.add_argument_group("shorter answers").add_argument
    add("--compact-answers", action="store_true", help="keep nothing but interval and type of each anomaly")
    add("--max-answer-chars", type=int, metavar="N", help="report answers that are longer; they are still written")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes; default: one a core"
    )
    return parser


def _normal_windows(text: str) -> int | None:
    if text in ("all", "none"):
        return None if text == "all" else 0
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither all nor none nor a number") from None


def show(report: dict[str, Any]) -> None:
    """Print what a person wants to know first."""
    records, answers, merged = report["records"], report["answers"], report["merged"]
    rows: list[tuple[str, object]] = [("records read", records["read"])]
    rows += [(f"  dropped: {reason}", number) for reason, number in records["dropped"].items()]
    rows += [("points", report["points"])]
    optional = {
        "records merged into another of their point": records["merged_away"],
        "  intervals named again": merged["entries_named_again"],
        "  intervals with conflicting types": merged["conflicts"],
        "  points with different prompts": merged["points_with_several_prompts"],
        "windows cut": report["windows"]["cut"],
        "  without anomaly, left out": report["windows"]["left_out"],
        "records thinned": report["thinned"]["records"],
        "  intervals without a point of their own": report["thinned"]["intervals_without_point"],
        "answers rewritten": answers["rewritten"],
        "  entries without interval, left out": answers["entries_without_interval"],
        "  intervals under another key, now `interval`": answers["intervals_renamed"],
        "  entries of a normal state (无异常, normal, …), left out": answers["normal_entries"],
        "  answers with both anomalies and a normal state": answers["normal_beside_anomalies"],
        "  answers of which nothing else was left": answers["emptied"],
        "  duplicate entries": answers["duplicates"] + answers["became_equal"],
        "answers that remain too long": len(answers["too_long"]),
        "prompts that got a place for their series": report["prompts"]["markers_added"],
        "pictures whose CSV file is called otherwise": len(report["series_by_ending"]),
        "CSV files with gaps": len(report["repaired"]["series_with_gaps"]),
        "  values filled in": report["repaired"]["values_filled"],
        "  labels over values filled in": report["repaired"]["labels_over_filled"],
    }
    rows += [(name, number) for name, number in optional.items() if number]
    rows += [(f"written to {path}", number) for path, number in report["outputs"].items()]
    terminal.print_table("Records", ("", "number"), rows)
    if report["types"]:
        total = report["intervals"] or 1
        sides = report["split"].get("types", {})
        terminal.print_table(
            "Anomalies",
            ("type", "number", "%", *(("training", "validation") if sides else ())),
            [
                (kind or "(none)", number, f"{100 * number / total:.1f}", *sides.get(kind, {}).values())
                for kind, number in report["types"].items()
            ],
        )
    columns = ("min", "median", "p95", "max", "count")
    lengths = [("series", report["series_lengths"]), ("intervals", report["interval_lengths"])]
    if report["outputs"]:
        terminal.print_table(
            "Lengths in points",
            ("", *columns),
            [(name, *(found.get(c, "-") for c in columns)) for name, found in lengths],
        )


def show_remarks(remarks: list[dict[str, str]]) -> None:
    """Name the first files that are not as usual, and count the others."""
    for one in remarks[:SHOWN]:
        terminal.say(f"{Path(one['file']).name}: {one['text']}")
    if len(remarks) > SHOWN:
        terminal.say(f"... and {len(remarks) - SHOWN} more; --report FILE.json lists all of them")


def show_faults(faults: list[dict[str, Any]]) -> None:
    """Name the first faults, and count the others."""
    for fault in faults[:SHOWN]:
        picture = f" ({fault['picture']})" if fault["picture"] else ""
        place = "" if fault["record"] is None else f"{fault['file']}: record {fault['record']}{picture}: "
        terminal.complain(f"{place}{fault['fault']}")
    if len(faults) > SHOWN:
        terminal.complain(f"... and {len(faults) - SHOWN} more; --report FILE.json lists all of them")


@terminal.stops_in_one_line()
def main() -> int:
    given = vars(make_parser().parse_args())
    given |= {
        name: tuple(given[name]) for name in ("json", "series", "drop_answers_with", "normal_types", "missing_values")
    }
    with terminal.progress() as bar:
        task = bar.add_task("preparing", total=None)
        report = prepare(Options(**given), lambda done, total: bar.update(task, completed=done, total=total))
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # what was to be written is written: from here on just stop
    show(report)
    renamed = [{"file": one["file"], "text": f"read for {one['picture']}"} for one in report["series_by_ending"]]
    show_remarks([*renamed, *report["series_remarks"]])
    show_faults(report["faults"])
    if not report["done"]:
        found = f"{len(report['faults'])} fault{'s' if len(report['faults']) > 1 else ''}"
        terminal.complain(
            f"error: {found}, nothing was written; correct what is named, or leave faulty records out "
            "with --drop-faulty"
        )
        return terminal.FAULTS
    if report["registered"]:
        terminal.say(f"registered in {report['registered']}")
    return terminal.DONE
