"""Where the labels of an import are: what the option says, or what looking at the files finds."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llamafactory_ext.errors import GdshError, UsageError

from . import labels as forms
from .answers import Answers, read_answers
from .label_studio import from_label_studio
from .labels import Labels
from .options import KINDS, Options
from .sources import Table, read_tables, stem


@dataclass
class Spec:
    """Where labels come from."""

    kind: str
    files: tuple[Path, ...] = ()
    """Files among the sources that hold labels, not series."""
    labels: Labels | None = None
    """None where they are in the tables themselves, or nowhere."""
    answers: Answers | None = None
    """For ``gdsh``."""
    used: set[str] = field(default_factory=set)


def find_labels(options: Options, files: Sequence[Path]) -> Spec:
    """Returns what the option says, or what is found by looking.

    Raises:
        UsageError: no reading is possible, or two are.
    """
    kind, _, rest = options.labels.partition(":")
    if kind == "auto":
        return _look(options, files)
    if kind in ("none", "ucr") and not rest:
        return Spec(kind)
    if kind == "column" and rest:
        return Spec("column")
    if kind in ("windows", "label-studio", "gdsh", "annotator") and rest:
        path = Path(rest)
        if not path.exists():
            raise UsageError(f"--labels {options.labels}: no such file or folder")
        return _spec(kind, path, options)
    raise UsageError(f"--labels {options.labels} is not known; expected one of {', '.join(KINDS)}")


def _spec(kind: str, path: Path, options: Options) -> Spec:
    inside = tuple(sorted(path.rglob("*.json"))) if path.is_dir() else (path,)
    if kind == "windows":
        return Spec(kind, inside, forms.from_windows(path))
    if kind == "label-studio":
        return Spec(kind, inside, from_label_studio(path, options.choice))
    if kind == "annotator":
        return Spec(kind, inside, forms.from_annotator(inside, options.choice))
    return Spec(kind, inside, answers=read_answers(path))


def _look(options: Options, files: Sequence[Path]) -> Spec:
    """Looks at every JSON file among the sources and at the first table; refuses where two readings are possible."""
    found: dict[str, list[Path]] = {}
    for source in options.sources:
        for path in sorted(source.rglob("*.json")) if source.is_dir() else ():
            if path.name != "dataset_info.json" and not path.name.endswith("report.json"):
                found.setdefault(forms.kind_of(forms.read_json(path)), []).append(path)
    found.pop("", None)
    if files and all(forms.UCR.search(stem(one)) and "UCR" in one.name for one in files):
        found["ucr"] = list(files)
    elif files and any(table.label is not None for table in _first(files[0], options)):
        found["column"] = [files[0]]
    if len(found) > 1:
        said = "; ".join(f"{kind} ({paths[0]})" for kind, paths in found.items())
        raise UsageError(f"labels can be read in {len(found)} ways: {said}; say which with --labels")
    if not found:
        raise UsageError("no labels were found; say where they are with --labels, or --labels none for series alone")
    ((kind, paths),) = found.items()
    if kind in ("ucr", "column"):
        return Spec(kind)
    if kind == "annotator":
        return Spec(kind, tuple(paths), forms.from_annotator(paths, options.choice))
    if len(paths) > 1:
        raise UsageError(f"{len(paths)} files of labels ({kind}): {paths[0]}, {paths[1]} …; name one with --labels")
    return _spec(kind, paths[0], options)


def _first(path: Path, options: Options) -> list[Table]:
    try:
        return list(read_tables(path, options.reading))
    except GdshError:
        return []
