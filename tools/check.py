"""Shows what a training run would see of a data set, and what is wrong with it.

python tools/check.py gdsh --recipe yaml/2080ti_qlora.yaml
python tools/check.py gdsh --plot pictures
python tools/check.py train.jsonl --validation validation.jsonl --show 12
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from terminal import DONE, FAULTS, USAGE, complain, progress, refuse_other_words, run, say

from llamafactory_ext.toolbox.session.quiet import hush


RECIPE = Path(__file__).parent.parent / "yaml" / "2080ti_qlora.yaml"

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
        prog="python tools/check.py",
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
    parser.add_argument("--cutoff-len", type=_positive, metavar="N", help="default: the recipe's")
    parser.add_argument("--show", type=int, metavar="N", help="print record N (from 0) as the model sees it")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="draw the series with their labels: index.html, PNG")
    parser.add_argument("--plot-records", type=_positive, default=500, metavar="N", help="at most; default: 500")
    parser.add_argument("--report", type=Path, metavar="FILE.json", help="write everything that was found")
    found = parser.parse_intermixed_args(arguments)
    refuse_other_words(parser, found.overrides, "; several data sets are given as one word: a,b")
    return found


def main() -> int:
    options = parse()
    hush()
    try:
        from llamafactory_ext.toolbox.check.gallery_files import ForeignPageError, refuse_foreign
        from llamafactory_ext.toolbox.check.inspection import inspect
        from llamafactory_ext.toolbox.check.show import show
        from llamafactory_ext.toolbox.session.recipe import UsageError, arguments, read_recipe
        from llamafactory_ext.toolbox.session.upstream import CheckError

        if options.plot:
            refuse_foreign(options.plot)
        if options.report and not options.report.absolute().parent.is_dir():
            raise UsageError(f"{options.report.parent}: no such folder for the report")
        values = read_recipe(options.recipe, options.overrides)
        given = {"dataset_dir": options.dataset_dir, "model_name_or_path": options.model}
        given["cutoff_len"] = options.cutoff_len
        values |= {key: value for key, value in given.items() if value is not None}
        found = inspect(arguments(values, options.dataset, options.validation), _track)
        if options.show is not None:
            for line in show(found, options.show):
                say(line)
            say()
    except ModuleNotFoundError as err:  # first: the other names are not there where their import failed
        complain(f"error: no module {err.name}; this tool goes LLaMA-Factory's own way: pip install '.[train]'")
        return USAGE
    except (UsageError, ForeignPageError) as err:
        complain(f"error: {err}")
        return USAGE
    except CheckError as err:
        complain(f"error: training would stop: {err}")
        return FAULTS
    return _tell(found, options)


def _tell(found: Any, options: argparse.Namespace) -> int:
    """Prints the summary, then draws and writes what was asked for."""
    from check_summary import print_gallery, print_summary
    from llamafactory_ext.toolbox.check.plot import draw_gallery

    from llamafactory_ext.toolbox.check.gallery_files import write_whole
    from llamafactory_ext.toolbox.check.report import report

    print_summary(found, brief=options.show is not None)
    gallery = None
    try:
        if options.plot:
            gallery = draw_gallery(found, options.plot, options.dataset, options.plot_records, _track)
            print_gallery(gallery)
        if options.report:
            text = json.dumps(report(found, gallery), ensure_ascii=False, indent=1, allow_nan=False)
            write_whole(options.report, text + "\n")
            say(f"report: {options.report}")
    except OSError as err:
        complain(f"error: {err.filename or options.plot or options.report} can't be written: {err.strerror or err}")
        return USAGE
    return FAULTS if found.has_faults else DONE


def _track(items: Iterable[Any], text: str, count: int) -> Iterator[Any]:
    """Passes the items on, with a bar on standard error."""
    with progress() as bars:
        yield from bars.track(items, total=count, description=text)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


if __name__ == "__main__":
    run(main)
