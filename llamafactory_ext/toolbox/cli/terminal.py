"""What the command line tools share: exit statuses, tables, progress bars, and a way to stop with one clear line."""

import argparse
import codecs
import io
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from llamafactory_ext.errors import FaultError, UsageError, printable
from llamafactory_ext.files import WriteError


DONE, FAULTS, USAGE, INTERRUPTED = 0, 1, 2, 130

_LAYOUT = "\n\t\u3000"  # what no text is without, and harms nobody

_errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
_console = Console(highlight=False, markup=False)


def say(text: str = "") -> None:
    """Print a line; text is shown as it is, never read as markup or obeyed by the terminal."""
    _console.print(printable(text, _LAYOUT), soft_wrap=True)


def complain(text: str) -> None:
    """Print a line to standard error."""
    _errors.print(printable(text, _LAYOUT))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table whose first column holds text and whose other columns are aligned to the right."""
    table = Table(title=printable(title), title_justify="left", title_style="bold", box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(printable(str(cell), _LAYOUT) for cell in row))
    _console.print(table)
    _console.print()


def _leave_ascii() -> None:
    """Start again in Python's UTF-8 mode where it took file names for ASCII: LC_ALL=C, and the mode switched off.

    A name such as 数据.csv would be another text than the same name in an annotation file.
    """
    is_ascii = codecs.lookup(sys.getfilesystemencoding()).name == "ascii"
    if os.name == "posix" and is_ascii and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def refuse_other_words(parser: argparse.ArgumentParser, overrides: Iterable[str], hint: str = "") -> None:
    """Stop with the parser's usage where an override of a recipe is not `key=value`."""
    for override in overrides:
        if "=" not in override or override.startswith("="):
            parser.error(f"{override}: expected key=value{hint}")


def progress() -> Progress:
    """A progress display on standard error, gone when the work is done, silent where that is no terminal."""
    bar = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*bar, console=_errors, transient=True, disable=not _errors.is_terminal)


def track(items: Iterable[Any], text: str, count: int) -> Iterator[Any]:
    """Passes the items on, with a bar on standard error."""
    with progress() as bars:
        yield from bars.track(items, total=count, description=text)


def positive(text: str) -> int:
    """Read an option that is a whole number from 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def text_of(path: Path, option: str) -> str:
    """Read a text that an option names.

    Raises:
        UsageError: there is no such file, or it is no UTF-8.
    """
    try:
        return path.read_text("utf-8")
    except OSError as err:
        raise UsageError(f"{option} {path}: {err.strerror or err}") from err
    except UnicodeDecodeError as err:
        raise UsageError(f"{option} {path} is no text in UTF-8: {err.reason} at byte {err.start}") from err


def stops_in_one_line(unwritable: int = FAULTS) -> Callable[[Callable[[], int]], Callable[[], int]]:
    """Makes of what stops a command one line on standard error, and an exit status; for its `main`.

    Arguments:
        unwritable: the status where a file can't be written.
    """

    def guard(command: Callable[[], int]) -> Callable[[], int]:
        @wraps(command)
        def main() -> int:
            try:
                return command()
            except ModuleNotFoundError as err:
                complain(f"error: no module {err.name}; install what this command needs: pip install '.[train]'")
                return USAGE
            except (UsageError, FaultError) as err:
                complain(f"error: {err}")
                return USAGE if isinstance(err, UsageError) else FAULTS
            except WriteError as err:
                complain(f"error: {err.filename} can't be written: {err.strerror}")
                return unwritable
            except OSError as err:
                where = f"{err.filename}: " if err.filename else ""
                complain(f"error: {where}{' '.join(str(err.strerror or err).split())}")
                return FAULTS

        return main

    return guard


def run(main: Callable[[], int]) -> NoReturn:
    """Run a tool; an interrupt ends it with a line instead of a traceback, and a polite kill counts as one."""
    _leave_ascii()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what its encoding lacks, Latin-1 for example, is spelt out
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        complain("interrupted: nothing was written")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # e.g. `| head`
        sys.stderr.close()
        sys.exit(FAULTS)
