"""Compares two or more runs over the same records: by how much, how surely, and where.

llamafactory-ext compare saves/a/generated_predictions.jsonl saves/b/generated_predictions.jsonl --out compared
llamafactory-ext compare a.jsonl detector.csv --dataset gdsh --fields sensors.csv --by kind --out compared
"""

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llamafactory_ext.errors import UsageError
from llamafactory_ext.files import refuse_foreign, write_whole
from llamafactory_ext.toolbox.cli.evaluate import RECIPE, read, refuse_missing
from llamafactory_ext.toolbox.cli.scores import shown
from llamafactory_ext.toolbox.cli.terminal import (
    DONE,
    USAGE,
    print_table,
    refuse_other_words,
    say,
    stops_in_one_line,
    track,
)
from llamafactory_ext.toolbox.evaluate.compare_page import GENERATOR, PAGE, write_page
from llamafactory_ext.toolbox.evaluate.predictions import EvaluateError
from llamafactory_ext.toolbox.evaluate.tallies import LESS_IS_BETTER, titles
from llamafactory_ext.toolbox.session.silence import hush


DESCRIPTION = """
Compares runs over the same records with the first one, paired: differences with a confidence interval over points,
McNemar's exact test on labels that only one of them finds, the records that turned better and worse, by anomaly type
and by any field of the sensors. Runs over different records are refused.
"""
EPILOG = """
exit status: 0 compared, 1 runs and data set can't be brought together, 2 wrong usage.
Files: DIR/comparison.json and DIR/index.html.
"""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="llamafactory-ext compare",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="FILE", help="what `evaluate` takes; key=value: of the recipe")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of index.html and comparison.json"
    )
    parser.add_argument("--dataset", metavar="NAME", help="that was predicted, for series and names")
    parser.add_argument("--dataset-dir", "--dataset_dir", metavar="DIR", help="of dataset_info.json")
    parser.add_argument("--recipe", type=Path, default=RECIPE, metavar="X.yaml", help=f"default: yaml/{RECIPE.name}")
    parser.add_argument("--fields", type=Path, metavar="FILE.csv", help="series, and what is known of them")
    parser.add_argument("--by", action="append", default=[], metavar="FIELD", help="column of --fields; repeatable")
    parser.add_argument("--salvage", action="store_true", help="take the whole entries of answers that break off")
    found = parser.parse_intermixed_args(arguments)
    found.overrides = [word for word in found.runs if "=" in word and not Path(word).exists()]
    found.runs = [Path(word) for word in found.runs if word not in found.overrides]
    refuse_other_words(parser, found.overrides)
    if len(found.runs) < 2:
        parser.error("name two runs or more")
    if bool(found.by) != bool(found.fields):
        parser.error("--by names columns of --fields: give both")
    return found


@stops_in_one_line(unwritable=USAGE)
def main() -> int:
    options = parse()
    refuse_missing()
    for path in options.runs:
        if not path.is_file():
            raise UsageError(f"{path}: no such file")
    refuse_foreign(options.out / PAGE, GENERATOR, "--out")
    hush()
    from llamafactory_ext.toolbox.evaluate.comparing import Run, compare
    from llamafactory_ext.toolbox.evaluate.scoring import evaluate

    runs = []
    for path in options.runs:
        predictions, sources = read(path, options)
        given = {"dataset": options.dataset or "", "salvage": options.salvage, "progress": track, "names": None}
        runs.append(Run(str(path), evaluate(predictions, sources, **given)))
    names = [one.name for one in runs[0].records]
    found = compare(runs, {field: read_field(options.fields, field, names) for field in options.by})
    text = json.dumps(found, ensure_ascii=False, indent=1, allow_nan=False)
    write_whole(options.out / "comparison.json", [text, "\n"])
    write_page(found, runs, options.out / PAGE)
    print_comparison(found)
    say(f"{options.out / 'comparison.json'}, {options.out / PAGE}")
    return DONE


def read_field(path: Path, field: str, names: Sequence[str]) -> list[str]:
    """What each record has in a column of a CSV file; "(unknown)" for a series that the file does not name.

    Raises:
        EvaluateError: no such file or column, or a series twice with different values.
    """
    known: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            missing = [name for name in ("series", field) if name not in (reader.fieldnames or ())]
            if missing:
                raise EvaluateError(f"{path} has no column {', '.join(missing)}")
            for row in reader:
                name, value = row["series"] or "", row[field] or "(unknown)"
                if known.setdefault(name, value) != value:
                    raise EvaluateError(f"{path}: series {name!r} is both {known[name]!r} and {value!r}")
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise EvaluateError(f"{path} can't be read: {getattr(err, 'strerror', None) or err}") from err
    return [known.get(name, "(unknown)") for name in names]


def print_comparison(found: Mapping[str, Any]) -> None:
    """Prints scores, differences, McNemar and what turned."""
    say(f"{found['records']} records of {found['points']} points; A is {found['runs'][0]}")
    letters = [chr(ord("A") + place) for place in range(len(found["runs"]))]
    for letter, name in zip(letters[1:], found["runs"][1:], strict=True):
        say(f"{letter} is {name}")
    say()
    columns = ["", *letters, *(f"{letter} − A" for letter in letters[1:])]
    rows = []
    for key, title in titles().items():
        less = " ↓" if key in LESS_IS_BETTER else ""
        cells = [shown(one[key]) for one in found["scores"]]
        rows.append((title + less, *cells, *(difference(one[key]) for one in found["differences"])))
    print_table("Scores, and differences with their 95 %; ! leaves out 0; ↓ less is better", columns, rows)
    for letter, one, turned in zip(letters[1:], found["mcnemar"], found["turned"], strict=True):
        say(
            f"{letter}: of {one['labels']} labels {one['only_other']} found by {letter} alone, {one['only_first']} by "
            f"A alone (McNemar p = {one['p']:.3f}); better {len(turned['better'])}, worse {len(turned['worse'])}"
        )
    say()
    for what, groups in {"type": found["per_type"], **found["per_group"]}.items():
        rows = [
            (name or "(none)", *(shown(one["event_f1_iou30"]) for one in values)) for name, values in groups.items()
        ]
        if rows:
            print_table(f"Event F1 at IoU 0.3 by {what}", ("", *letters), rows)


def difference(one: Mapping[str, Any]) -> str:
    """A difference with its interval."""
    if one["difference"] is None:
        return "–"
    ends = f" ({one['interval'][0]:+.3f} to {one['interval'][1]:+.3f})" if one["interval"] else ""
    return f"{one['difference']:+.3f}{ends}{' !' if one['certain'] else ''}"
