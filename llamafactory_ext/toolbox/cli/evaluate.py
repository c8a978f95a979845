"""Scores what a model predicted: llamafactory-cli's generated_predictions.jsonl against the labels in it.

llamafactory-ext evaluate saves/predict/generated_predictions.jsonl --out scores
llamafactory-ext evaluate saves/predict/generated_predictions.jsonl --out scores --dataset gdsh
"""

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

from llamafactory_ext.errors import UsageError
from llamafactory_ext.files import refuse_foreign, write_whole
from llamafactory_ext.gdsh import normal_types
from llamafactory_ext.toolbox.cli.recipes import recipe
from llamafactory_ext.toolbox.cli.scores import print_scores
from llamafactory_ext.toolbox.cli.terminal import DONE, USAGE, refuse_other_words, say, stops_in_one_line, track
from llamafactory_ext.toolbox.evaluate.detectors import DETECTORS, RULES
from llamafactory_ext.toolbox.evaluate.foreign import is_foreign, read_foreign
from llamafactory_ext.toolbox.evaluate.history import add_line
from llamafactory_ext.toolbox.evaluate.page import GENERATOR, PAGE, write_page
from llamafactory_ext.toolbox.evaluate.predictions import Prediction, read_predictions
from llamafactory_ext.toolbox.session.recipe import arguments as dataset_arguments
from llamafactory_ext.toolbox.session.recipe import read_recipe
from llamafactory_ext.toolbox.session.silence import hush


RECIPE = recipe("predict.yaml")
NEEDED = ("aeon", "telemeval")

DESCRIPTION = """
Scores predicted intervals against labelled ones: events (one-to-one overlap), range-based, affiliation and point-wise
F1, over all, by anomaly type and by point, with confidence intervals and beside baselines. Answers are read the way
training data are; one that can't be read counts as "no anomalies found", and as a false alarm where there are none.
Event F1 at IoU 0.3 and 0.5, VUS and false alarms tell methods apart; affiliation F1 hardly does (0.77 to 0.89 for
every method of TSB-AD's table).
"""
EPILOG = """
exit status: 0 scored, 1 predictions, labels and data set can't be brought together, 2 wrong usage.
Files: DIR/scores.json and DIR/index.html; with --dataset the caches that training uses as well.
"""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="llamafactory-ext evaluate",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "predictions",
        type=Path,
        metavar="FILE",
        help="generated_predictions.jsonl, or CSV or JSON lines: series,start,end[,confidence]",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="keys of the recipe, for reading the data set"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of scores.json and index.html")
    parser.add_argument(
        "--dataset", metavar="NAME", help="that was predicted, for plots and the rules among the baselines; or X.jsonl"
    )
    parser.add_argument(
        "--dataset-dir", "--dataset_dir", metavar="DIR", help="of dataset_info.json; default: the recipe's"
    )
    parser.add_argument("--recipe", type=Path, default=RECIPE, metavar="X.yaml", help=f"default: yaml/{RECIPE.name}")
    parser.add_argument(
        "--detectors",
        type=detector_names,
        default=RULES,
        metavar="all|NAMES",
        help=f"that cost nothing, with --dataset: {', '.join(DETECTORS)}; default: {','.join(RULES)}",
    )
    parser.add_argument(
        "--train", metavar="NAME", help="data set whose labels the detectors' thresholds are chosen on"
    )
    parser.add_argument(
        "--salvage", action="store_true", help="take the whole entries of answers that break off (max_new_tokens)"
    )
    parser.add_argument(
        "--normal-types", nargs="+", default=[], metavar="TYPE", help="further words for the normal state, no anomaly"
    )
    parser.add_argument("--history", type=Path, metavar="FILE.jsonl", help="add the scores, and draw those so far")
    parser.add_argument("--name", metavar="TEXT", help="of this run in the history; default: the predictions' folder")
    found = parser.parse_intermixed_args(arguments)
    refuse_other_words(parser, found.overrides)
    return found


@stops_in_one_line(unwritable=USAGE)
def main() -> int:
    options = parse()
    _refuse(options)
    hush()
    from llamafactory_ext.toolbox.evaluate.scoring import evaluate

    predictions, sources = read(options.predictions, options)
    found = evaluate(
        predictions,
        sources,
        dataset=options.dataset or "",
        salvage=options.salvage,
        progress=track,
        names=options.detectors,
        training=_sources(options, options.train) if options.train else None,
        normal=normal_types(options.normal_types),
    )
    history: list[dict[str, Any]] = []
    if options.history:
        name = options.name or options.predictions.resolve().parent.name
        history = add_line(options.history, found, name, options.dataset or "")
    text = json.dumps(found.scores, ensure_ascii=False, indent=1, allow_nan=False)
    write_whole(options.out / "scores.json", [text, "\n"])
    write_page(found, options.out / PAGE, history)
    print_scores(found)
    say(f"{options.out / 'scores.json'}, {options.out / PAGE}")
    return DONE


def detector_names(text: str) -> tuple[str, ...]:
    """Read --detectors."""
    names = tuple(DETECTORS) if text == "all" else tuple(text.split(",")) if text else ()
    unknown = [name for name in names if name not in DETECTORS]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"there is no {', '.join(unknown)}; there are {', '.join(DETECTORS)}, and all"
        )
    return names


def read(path: Path, options: argparse.Namespace) -> tuple[list[Prediction], list[Any] | None]:
    """Read predictions, a model's or another detector's, and the data set if one is named.

    Raises:
        EvaluateError, UsageError: one of them can't be read, or another detector's have no data set.
    """
    if not is_foreign(path):
        predictions = read_predictions(path, lengths=not options.dataset)
        return predictions, _sources(options, options.dataset) if options.dataset else None
    if not options.dataset:
        raise UsageError(f"{path} holds intervals of named series; --dataset NAME says which labels they are held to")
    sources = _sources(options, options.dataset)
    return read_foreign(path, sources, options.dataset), sources


def refuse_missing(*needed: str) -> None:
    """Stops where a package that scores need is not there."""
    missing = [name for name in sorted({*NEEDED, *needed} - {""}) if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"no module {', '.join(missing)}; install what scores need: pip install '.[evaluate]'")


def _refuse(options: argparse.Namespace) -> None:
    """Stops before anything is read where the command can't lead to scores."""
    refuse_missing(*(DETECTORS[name].needs for name in options.detectors if options.dataset))
    if not options.predictions.is_file():
        raise UsageError(f"{options.predictions}: no such file")
    refuse_foreign(options.out / PAGE, GENERATOR, "--out")


def _sources(options: argparse.Namespace, dataset: str) -> list[Any]:
    """Reads the records of a data set."""
    try:
        from llamafactory_ext.toolbox.evaluate.points import read_sources

        values = read_recipe(options.recipe, options.overrides)
        values |= {"dataset_dir": options.dataset_dir} if options.dataset_dir else {}
        values.pop("eval_dataset", None)  # or it would be looked for as well
        return read_sources(dataset_arguments(values, dataset))
    except ModuleNotFoundError as err:
        wanted = "--dataset goes LLaMA-Factory's own way: pip install '.[train]'"
        raise UsageError(f"no module {err.name}; {wanted}") from err
