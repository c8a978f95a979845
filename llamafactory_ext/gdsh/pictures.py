"""Pictures: which CSV file holds the series that a record's picture shows.

An annotation names a picture by a path on another machine, so only its file name counts. `X.jpg` belongs to
`X.csv`; in the field one of the two names often carries a prefix more (`数据集X.csv`, `gdsh_second_X.jpg`),
and the file may lie in a folder beside the one that was named. The prefix must be one of the plant or the data set:
`LHS2_H2S.jpg` is not `H2S.csv`, which another sensor has written.
"""

import difflib
import os
import re
import stat
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile
from pathlib import Path

from llamafactory_ext.errors import GdshError, excerpt, printable


_SUFFIXES = re.compile(r"(?:\.(?:csv|tsv|xlsx|parquet))?(?:\.jpg|\.jpeg|\.png)?\Z", re.IGNORECASE)
_KINDS = (".csv", ".tsv", ".xlsx", ".parquet")  # where several have one name, the first of these kinds counts
_DATA_SET = "数据集"
_LONGEST_NAME = 255  # characters: no file system of the field holds a longer one
_NEAR = 10  # names on either side of a missing one that are compared with it


@dataclass(frozen=True, slots=True)
class SeriesFile:
    """One CSV file, as it was when the folder was indexed."""

    stem: str
    """File name without its ending, in Unicode's NFC form."""
    path: str
    """Absolute path, symbolic links resolved."""
    size: int
    """Bytes."""
    mtime_ns: int
    """Time of the content's last change, nanoseconds."""
    ctime_ns: int
    """Time of the last change of content or attributes: unlike `mtime_ns`, nothing sets it back."""
    beside: bool
    """Whether it lies in a folder beside the one that was named, so perhaps belongs to another plant."""


@dataclass(frozen=True)
class Tier:
    """Files that are searched together, and the tables that make the search quick."""

    files: tuple[SeriesFile, ...]
    by_stem: dict[str, list[SeriesFile]] = field(repr=False)
    backwards: list[str] = field(repr=False)
    """All stems spelt backwards, sorted: neighbours have the same ending."""
    by_folder: dict[str, list[str]] = field(repr=False)
    """Stems of each folder, sorted: neighbours have the same beginning."""


@dataclass(frozen=True)
class SeriesIndex:
    """The CSV files of a folder, and of the folders beside it."""

    folder: str
    own: Tier
    beside: Tier

    def find(self, picture: str, shared: Container[str] = ()) -> SeriesFile:
        """Find the one CSV file that belongs to `picture`, a path of any machine.

        The folder's own files are searched first; the folders beside it only where those give nothing. In
        either, an equal name wins; else one name must be the other's ending, cut after a `_` or where a
        non-ASCII prefix ends, and what is cut off a known prefix: 数据集, with the name of the folder behind it or
        without, or what most names in the folder, or most pictures, begin with.

        Args:
            picture: the picture's path.
            shared: what most pictures begin with, see `Matches`.

        Raises:
            GdshError: none or several files match, or `picture` has no file name.
        """
        stem = _picture_stem(picture)
        for tier in (self.own, self.beside):
            found = tier.by_stem.get(stem) or [
                file for file in _suffix_matches(tier, stem) if self._knows(stem, file, tier, shared)
            ]
            if len({file.path for file in found}) > 1:
                raise GdshError(_ambiguous(stem, found))
            if found:
                return found[0]
        raise GdshError(self._missing(stem))

    def _knows(self, stem: str, file: SeriesFile, tier: Tier, shared: Container[str]) -> bool:
        """Whether what one of two names has more is a prefix of the plant or the data set."""
        prefix = _prefix(stem, file.stem)
        bare = prefix.removeprefix(_DATA_SET)
        folder = _folder(file)
        names = {Path(self.folder).name, Path(folder).name}
        if not bare or any(bare.casefold().startswith(f"{name.casefold()}_") for name in names if name):
            return True
        if len(file.stem) < len(stem):
            return prefix in shared or any(_is_common(bare, self.own.by_folder[one]) for one in self.own.by_folder)
        stems = tier.by_folder[folder]
        return _is_common(prefix, stems) or (bare != prefix and _count(prefix, stems) == _count(_DATA_SET, stems))

    def _missing(self, stem: str) -> str:
        nearest = difflib.get_close_matches(stem, _neighbours(self.own, stem) + _neighbours(self.beside, stem), n=3)
        hint = "the nearest names are " + ", ".join(f"{name + '.csv'!r}" for name in nearest) if nearest else ""
        alike = [file.stem for tier in (self.own, self.beside) for file in _suffix_matches(tier, stem)][:3]
        if alike:
            hint = (
                f"{', '.join(repr(f'{name}.csv') for name in alike)} ends alike, but {_prefix(stem, alike[0])!r} is "
                "no prefix that the folder's files or the pictures share, and a sensor is not another one"
            )
        return (
            f"no CSV file belongs to {stem!r}: searched {self.folder!r} ({len(self.own.files)} CSV files) and the "
            f"folders beside it ({len(self.beside.files)}){'; ' + hint if hint else ''}; put {stem + '.csv'!r} there, "
            "or correct the folder or the picture's name"
        )


class Matches:
    """Which files a whole annotation file's pictures belong to."""

    def __init__(self, index: SeriesIndex, pictures: Iterable[str]) -> None:
        self.index = index
        once = dict.fromkeys(pictures)
        self.shared = _shared_prefixes([stem for picture in once if (stem := _stem_or_none(picture))])
        claims: dict[str, set[str]] = {}
        for picture in once:
            try:
                file = index.find(picture, self.shared)
            except GdshError:
                continue
            if is_renamed(picture, file):
                claims.setdefault(file.path, set()).add(_picture_stem(picture).removeprefix(_DATA_SET))
        self.disputed = {path: sorted(stems) for path, stems in claims.items() if len(stems) > 1}
        """Files that several pictures of other names would belong to."""

    def find(self, picture: str) -> SeriesFile:
        """Find the one file that belongs to a picture.

        Raises:
            GdshError: see `SeriesIndex.find`; or the file would be several pictures'.
        """
        file = self.index.find(picture, self.shared)
        if file.path in self.disputed and is_renamed(picture, file):
            named = ", ".join(map(repr, self.disputed[file.path][:5]))
            raise GdshError(
                f"{file.path!r} would belong to several pictures, by their ending alone: {named}; they are not the "
                "same sensor: give each CSV file its picture's whole name"
            )
        return file


def is_renamed(picture: str, file: SeriesFile) -> bool:
    """Whether a file is called otherwise than its picture."""
    return _picture_stem(picture) != file.stem


def index_series(folder: str | Path) -> SeriesIndex:
    """List the CSV files of `folder` and of the folders beside it, sub-folders included.

    Hidden files and folders are passed over, and so are symbolic links that lead out of `folder` (for the
    folders beside it: out of its parent). Where the parent is the root of the file system, nothing beside
    `folder` is searched.

    Raises:
        GdshError: `folder` does not exist, is no folder, or cannot be read.
    """
    named = Path(os.path.normpath(Path(folder).absolute()))
    if not named.is_dir():
        found = "is not a folder" if named.exists() else "does not exist"
        raise GdshError(f"{str(named)!r} {found}; expected the folder of the CSV files: correct the path")
    own, parent = named.resolve(), named.parent.resolve()
    roots = [root for root in _folders(parent) if root != own] if parent != parent.parent else []
    beside = [file for root in roots for file in _walk(root, parent, beside=True)]
    return SeriesIndex(str(named), _tier(list(_walk(own, own, beside=False))), _tier(beside))


def index_files(files: Sequence[SeriesFile], named: str) -> SeriesIndex:
    """Index these files alone; `named` is what messages call the place that was searched."""
    return SeriesIndex(named, _tier(files), _tier(()))


def _folders(parent: Path) -> list[Path]:
    try:
        visible = [entry for entry in parent.iterdir() if not entry.name.startswith(".")]
    except PermissionError:  # a folder may be readable in a parent that is not: then nothing lies beside it
        return []
    return sorted(entry for entry in visible if not entry.is_symlink() and entry.is_dir())


def _walk(root: Path, allowed: Path, *, beside: bool) -> Iterator[SeriesFile]:
    """Yield the CSV files under `root`, in order.

    Links to folders are not followed: what they may lead to lies under a searched root anyway.
    """
    for folder, folders, names in os.walk(root, onerror=None if beside else _refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.startswith(".") or not name.lower().endswith(_KINDS):
                continue
            path = Path(folder, name)
            if path.is_symlink():
                path = Path(os.path.realpath(path))  # resolve() raises on a link to itself
                if not path.is_relative_to(allowed):
                    continue
            try:
                info = path.stat()
            except OSError:  # a link to nothing, or a file that has just gone
                continue
            if stat.S_ISREG(info.st_mode):
                stem = unicodedata.normalize("NFC", Path(name).stem)
                yield SeriesFile(stem, str(path), info.st_size, info.st_mtime_ns, info.st_ctime_ns, beside)


def _refuse(error: OSError) -> None:
    raise GdshError(f"{error.filename!r} cannot be read ({error.strerror}); correct its permissions") from error


def _tier(files: Sequence[SeriesFile]) -> Tier:
    by_stem: dict[str, list[SeriesFile]] = {}
    by_folder: dict[str, set[str]] = {}
    for file in files:
        by_stem.setdefault(file.stem, []).append(file)
        by_folder.setdefault(_folder(file), set()).add(file.stem)
    by_stem = {stem: _preferred(by_stem[stem]) for stem in sorted(by_stem)}
    folders = {folder: sorted(stems) for folder, stems in by_folder.items()}
    return Tier(tuple(files), by_stem, sorted(stem[::-1] for stem in by_stem), folders)


def _preferred(files: list[SeriesFile]) -> list[SeriesFile]:
    """Those of the first kind that is there: a CSV file beside the workbook that it was saved from."""
    kinds = [Path(file.path).suffix.lower() for file in files]
    first = min(kinds, key=lambda kind: _KINDS.index(kind) if kind in _KINDS else len(_KINDS))
    return [file for file, kind in zip(files, kinds, strict=True) if kind == first]


def _folder(file: SeriesFile) -> str:
    return str(Path(file.path).parent)


def _prefix(one: str, other: str) -> str:
    """What the longer of two names has in front of the shorter one."""
    shorter, longer = sorted((one, other), key=len)
    return longer[: len(longer) - len(shorter)]


def _count(prefix: str, stems: Sequence[str]) -> int:
    """How many of sorted stems begin so."""
    return bisect_left(stems, prefix + chr(0x10FFFF)) - bisect_left(stems, prefix)


def _is_common(prefix: str, stems: Sequence[str]) -> bool:
    count = _count(prefix, stems)
    return count > 1 and 2 * count > len(stems)


def _shared_prefixes(stems: Sequence[str]) -> frozenset[str]:
    """What more than half of the pictures begin with, two at least."""
    counts = Counter(_prefix(stem, suffix) for stem in stems for suffix in _suffixes(stem))
    return frozenset(prefix for prefix, count in counts.items() if count > 1 and 2 * count > len(stems))


def _suffixes(stem: str) -> list[str]:
    """The endings of `stem` after each `_` and after its non-ASCII prefix, the longest first."""
    cuts = {place + 1 for place, char in enumerate(stem) if char == "_"}
    cuts.add(next((place for place, char in enumerate(stem) if char.isascii()), 0))
    return [stem[cut:] for cut in sorted(cuts) if 0 < cut < len(stem)]


def _suffix_matches(tier: Tier, stem: str) -> list[SeriesFile]:
    mirrored = stem[::-1]
    start = bisect_left(tier.backwards, mirrored)
    endings = takewhile(lambda name: name.startswith(mirrored), islice(tier.backwards, start, None))
    alike = sorted(name[::-1] for name in endings)
    longer = [file for name in alike if stem in _suffixes(name) for file in tier.by_stem[name]]
    shorter = [file for suffix in _suffixes(stem) for file in tier.by_stem.get(suffix, ())]
    return longer + shorter


def picture_name(picture: str) -> str:
    """The file name in a picture's path, which may be one of Windows."""
    return re.split(r"[\\/]", picture)[-1]


def show_pictures(pictures: Iterable[str]) -> str:
    """The file names of a record's pictures, for messages: their folders lie on another machine.

    Long names are cut, and what a terminal would obey is spelt out.
    """
    names = map(picture_name, pictures)
    return ", ".join(printable(name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…") for name in names)


def _stem_or_none(picture: str) -> str | None:
    try:
        return _picture_stem(picture)
    except GdshError:
        return None


def _picture_stem(picture: str) -> str:
    name = picture_name(picture)
    stem = unicodedata.normalize("NFC", _SUFFIXES.sub("", name, count=1)) if len(name) <= _LONGEST_NAME else ""
    if not stem or "\0" in stem:
        raise GdshError(f"{excerpt(picture)} has no usable file name; expected a path such as 'folder/X.PV.jpg'")
    return stem


def _ambiguous(stem: str, found: list[SeriesFile]) -> str:
    named = ", ".join(repr(file.path) for file in found[:5]) + (", ..." if len(found) > 5 else "")
    if len({file.stem for file in found}) == 1:
        how = "of the same name"
    else:
        lengths = {min(len(stem), len(file.stem)) for file in found}
        how = "by a shared ending" if len(lengths) == 1 else "by shared endings of different lengths"
    return (
        f"{stem!r} belongs to {len(found)} CSV files {how}: {named}; expected exactly one: "
        "rename or remove the others, or give one the picture's own name"
    )


def _neighbours(tier: Tier, stem: str) -> list[str]:
    """Stems with the same beginning or ending: few enough to be compared for every missing picture."""
    forwards, mirrored = list(tier.by_stem), stem[::-1]
    at, back = bisect_left(forwards, stem), bisect_left(tier.backwards, mirrored)
    alike = set(forwards[max(0, at - _NEAR) : at + _NEAR])
    alike |= {name[::-1] for name in tier.backwards[max(0, back - _NEAR) : back + _NEAR]}
    return sorted(alike)
