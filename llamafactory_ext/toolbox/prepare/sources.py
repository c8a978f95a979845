"""Sources: the annotation files of a run, and for each of them where its series are searched."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from llamafactory_ext.errors import UsageError
from llamafactory_ext.gdsh import GdshError, SeriesFile, SeriesIndex, index_files, index_series
from llamafactory_ext.gdsh.records import read_records

from .options import Options
from .records import CHATTS_COLUMNS, read_rows


_SUFFIXES = (".json", ".jsonl")


@dataclass(frozen=True)
class Source:
    """One annotation file."""

    path: Path
    index: SeriesIndex | None
    """Where the series of its pictures are searched; None for ChatTS records, which hold their series."""


@dataclass(frozen=True)
class Sources:
    """Everything that a run reads."""

    annotations: tuple[Source, ...]
    """Sorted by name."""
    folder: Path
    """The folder that cleaned annotations name for their series."""
    catalogue: SeriesIndex | None
    """What a search from `folder` has to choose from; None where no cleaned annotations are asked for."""


def find_sources(options: Options) -> Sources:
    """Find the annotation files and list the CSV files, each folder once.

    `json/X.json` is searched in `timeseries/X` first and then in the folders beside it; where there is no such
    folder, in the whole of `timeseries`. With `--series`, every file is searched in what is named there alone.

    Raises:
        UsageError: a file or folder that was named, or that ROOT should hold, is not there; or an output would
            take the place of an input.
        GdshError: a folder cannot be read.
    """
    paths = list(_annotation_files(options))
    if not paths:
        raise UsageError(
            f"no annotation files: nothing ends in .json or .jsonl in {_named(_annotation_roots(options))}"
        )
    _check_outputs(options, paths)
    chatts = {path for path in paths if _hold_series(path)}
    if chatts and options.annotations:
        raise UsageError(
            f"{str(min(chatts))!r} holds ChatTS records, and --annotations names pictures and their CSV files, "
            "of which these have none: use --out"
        )
    if len(chatts) == len(paths):
        return Sources(tuple(Source(path, None) for path in paths), Path(), None)
    if options.series:
        index = _index_named(options.series)
        folder = options.series[0] if len(options.series) == 1 else _common_folder(options.series)
        folder = folder if folder.is_dir() else folder.parent
        sources = tuple(Source(path, None if path in chatts else index) for path in paths)
        return Sources(sources, folder, index if options.annotations else None)
    folder = _root(options) / "timeseries"
    if not folder.is_dir():
        raise UsageError(f"{str(folder)!r} is not a folder; put the CSV files there, or name their folder: --series")
    indexed = cache(index_series)
    own = {path: folder / path.stem if (folder / path.stem).is_dir() else folder for path in paths}
    sources = tuple(Source(path, None if path in chatts else indexed(own[path])) for path in paths)
    return Sources(sources, folder, indexed(folder) if options.annotations else None)


def _root(options: Options) -> Path:
    if options.root is None:
        raise UsageError("no ROOT: name the folder with json/ and timeseries/, or both --json and --series")
    if options.root.is_file():
        raise UsageError(
            f"{str(options.root)!r} holds no ChatTS records (input, output, timeseries){_why_not(options.root)}; for "
            "annotations whose series are CSV files name the folder with json/ and timeseries/, or --json and --series"
        )
    if not options.root.is_dir():
        raise UsageError(f"{str(options.root)!r} is not a folder; expected one that holds json/ and timeseries/")
    return options.root


def _annotation_roots(options: Options) -> tuple[Path, ...]:
    if options.json:
        return options.json
    if options.root is not None and options.root.is_file():
        return (options.root,)
    return (_root(options) / "json",)


def _hold_series(path: Path) -> bool:
    """Whether the records of a file are ChatTS records, by the first one. What is wrong there is reported later."""
    try:
        first = next(read_records(path), None)
    except GdshError:
        return False
    return isinstance(first, dict) and CHATTS_COLUMNS["timeseries"] in first


def _why_not(path: Path) -> str:
    """What else is wrong with a file that should hold records, after a colon; nothing if they are annotations."""
    try:
        first = next(read_rows(path), None)
    except GdshError as error:
        return f": {error}"
    return ": it is an empty list" if first is None else f": {first.fault}" if first.fault else ""


def _annotation_files(options: Options) -> Iterator[Path]:
    """Yield each file once, sorted by name, so that the order does not depend on how files were named."""
    found: dict[Path, Path] = {}
    for root in _annotation_roots(options):
        if root.is_dir():
            for path in root.iterdir():
                if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and not path.is_dir():
                    found.setdefault(path.resolve(), path)
        elif root.exists():
            found.setdefault(root.resolve(), root)
        else:
            raise UsageError(
                f"{str(root)!r} does not exist; expected annotation files: correct the path, or name --json"
            )
    yield from sorted(found.values(), key=lambda path: (path.name, str(path)))


def _check_outputs(options: Options, inputs: list[Path]) -> None:
    """Refuse outputs that would overwrite what is read, or that the next run would take for annotations."""
    taken = {path.resolve() for path in inputs}
    folders = {root.resolve() for root in _annotation_roots(options) if root.is_dir()}
    for path in [*options.outputs.values(), options.report, options.register]:
        if path is None:
            continue
        real = path.resolve()
        if real in taken:
            raise UsageError(f"{str(path)!r} is read and would be overwritten; name another output")
        if real.suffix.lower() == ".csv":
            raise UsageError(f"{str(path)!r} has the name of a series; name an output that does not end in .csv")
        if real.parent in folders and real.suffix.lower() in _SUFFIXES:
            raise UsageError(
                f"{str(path)!r} lies among the annotation files: the next run would read it, too; name another folder"
            )


def _index_named(paths: tuple[Path, ...]) -> SeriesIndex:
    """List what is named and nothing beside it."""
    files: dict[str, SeriesFile] = {}
    for path in paths:
        if not path.exists():
            raise UsageError(
                f"{str(path)!r} does not exist; expected a CSV file or a folder of them: correct the path"
            )
        real = path.resolve()
        if path.is_dir():
            found = index_series(real).own.files
        else:
            found = tuple(file for file in index_series(real.parent).own.files if file.path == str(real))
            if not found:
                raise UsageError(f"{str(path)!r} is no CSV file; expected a name that ends in .csv")
        files.update({file.path: file for file in found})
    return index_files(list(files.values()), _named(paths))


def _common_folder(paths: tuple[Path, ...]) -> Path:
    """The deepest folder that holds all of `paths`."""
    folders = [path.resolve() if path.is_dir() else path.resolve().parent for path in paths]
    common = folders[0]
    while not all(folder.is_relative_to(common) for folder in folders):
        common = common.parent
    return common


def _named(paths: tuple[Path, ...]) -> str:
    return ", ".join(map(str, paths))


def own_picture(catalogue: SeriesIndex, file: SeriesFile) -> str:
    """Name the picture by which a search of `catalogue` finds exactly this file.

    Raises:
        GdshError: the search would find another file, or cannot decide.
    """
    picture = f"{file.stem}.jpg"
    try:
        picture.encode()
        found = catalogue.find(picture).path
    except UnicodeEncodeError as error:
        raise GdshError(f"the name of {file.path!r} is not UTF-8; rename the file") from error
    except GdshError as error:
        raise GdshError(f"--annotations names a series by its CSV file's name: {error}") from error
    if found != file.path:
        raise GdshError(
            f"--annotations names a series by its CSV file's name, and {picture!r} would lead to {found!r} instead of "
            f"{file.path!r}; rename one of the two files"
        )
    return picture
