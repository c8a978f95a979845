"""Writes the recipes and the data set entries that came with the package into a folder to work in."""

import argparse
from pathlib import Path

from llamafactory_ext.files import write_whole
from llamafactory_ext.toolbox.cli import terminal
from llamafactory_ext.toolbox.cli.recipes import shipped


FOLDERS = ("yaml", "dataset_info")
ENDINGS = {".yaml", ".json", ".md"}

DESCRIPTION = """\
Writes yaml/ (recipes, DeepSpeed's configuration) and dataset_info/ (data set entries, and how to write your own) into
DIR, where llamafactory-cli is then started. A file that is there and differs is left as it is and named.
"""

EPILOG = """\
examples:
  a folder for one plant:
    llamafactory-ext init plant
    cd plant
    llamafactory-cli train yaml/2080ti_qlora.yaml

exit status: 0 all files are as they came, 1 some differ and were left or can't be written, 2 wrong usage
"""


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        prog="llamafactory-ext init",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("dir", nargs="?", type=Path, default=Path(), metavar="DIR", help="default: this folder")
    parser.add_argument("--force", action="store_true", help="replace files that differ")
    return parser


def write_files(target: Path, force: bool = False) -> tuple[list[Path], list[Path]]:
    """Write what came with the package; return what was written, and what differs and was left.

    Raises:
        OSError: nothing came with the package, or a file can't be read or written.
    """
    written, left = [], []
    for folder in FOLDERS:
        source = shipped(folder)
        files = sorted(path for path in source.rglob("*") if path.suffix in ENDINGS)
        if not files:
            raise FileNotFoundError(f"{source} holds no files; install the package again")
        for file in files:
            path = target / folder / file.relative_to(source)
            content = file.read_text("utf-8")
            if path.exists() and path.read_bytes() == content.encode():
                continue
            if path.exists() and not force:
                left.append(path)
                continue
            write_whole(path, [content])
            written.append(path)
    return written, left


@terminal.stops_in_one_line()
def main() -> int:
    given = make_parser().parse_args()
    written, left = write_files(given.dir, given.force)
    where = "this folder" if given.dir == Path() else str(given.dir)
    terminal.say(f"files written to yaml/ and dataset_info/ in {where}: {len(written)}")
    for path in left:
        terminal.complain(f"{path} differs from what came with the package and was left as it is")
    if left:
        terminal.complain("--force replaces such files")
    return terminal.FAULTS if left else terminal.DONE
