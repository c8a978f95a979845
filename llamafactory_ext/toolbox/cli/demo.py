"""Makes everything a first training run needs, without a download: a tiny ChatTS model and GDSH-like data."""

import argparse
from pathlib import Path

from llamafactory_ext.toolbox.cli import terminal
from llamafactory_ext.toolbox.demo.folder import ForeignFolderError


DESCRIPTION = """\
Writes DIR/model, a tiny ChatTS checkpoint with random weights, and DIR/data, made-up data that look like GDSH's:
annotations in data/json, one CSV a sensor in data/timeseries. With --full a small model that learns to read series in
half an hour, and 60,000 series: data/train.jsonl, validation.jsonl of other points, exchanged.jsonl as the control.

Both folders are replaced if an earlier call made them; any other folder is left alone and named.
"""

EPILOG = """\
examples:
  in an empty folder, from nothing to a trained model:
    llamafactory-ext init
    llamafactory-ext demo
    llamafactory-cli train yaml/cpu_demo.yaml

exit status: 0 written, 1 a folder in the way, 2 wrong usage, 130 interrupted
"""


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        prog="llamafactory-ext demo",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("dir", nargs="?", type=Path, metavar="DIR", help="default: demo, with --full demo/full")
    add("--full", action="store_true", help="the full demo")
    add("--seed", type=int, default=0, help="another one, other series and weights; default: 0")
    add(
        "--family",
        choices=("qwen2", "qwen3"),
        default="qwen2",
        help="the model's make: qwen2 as ChatTS-14B, qwen3 as ChatTS-8B; default: qwen2",
    )
    return parser


def main() -> int:
    given = make_parser().parse_args()
    usual, recipe = (Path("demo/full"), "cpu_demo_full") if given.full else (Path("demo"), "cpu_demo")
    folder = given.dir or usual
    try:
        from llamafactory_ext.toolbox.demo.writing import write_demo, write_full_demo

        write = write_full_demo if given.full else write_demo
        write(folder, given.seed, given.family)
    except ForeignFolderError as error:
        terminal.complain(f"error: {error}")
        return terminal.FAULTS
    except ModuleNotFoundError as error:
        terminal.complain(f"error: no module {error.name}; the demo needs what trains: pip install '.[train]'")
        return terminal.USAGE
    terminal.say(f"Wrote {folder / 'model'} and {folder / 'data'}.")
    place = "" if folder == usual else f" model_name_or_path={folder / 'model'} dataset_dir={folder / 'data'}"
    terminal.say(f"Train on it: llamafactory-cli train yaml/{recipe}.yaml{place}")
    return terminal.DONE
