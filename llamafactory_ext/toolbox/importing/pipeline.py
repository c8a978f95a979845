"""One import: sources and labels in, a folder in GDSH's layout out, with a report of all that was taken or left."""

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llamafactory_ext.errors import GdshError, UsageError
from llamafactory_ext.gdsh import NORMAL_TYPES, Anomaly, read_labels, show_pictures, type_key
from llamafactory_ext.gdsh.records import read_records

from . import labels as forms
from .joining import by_name, join_tables
from .labels import Choice, Label, Labels
from .large import Dates, copy_tables, is_large
from .layout import PROMPTS, make_record, write_records, write_series
from .sources import Reading, Table, read_tables, refuse_equal_names, stem, table_files
from .times import Axis, read_times


KINDS = ("auto", "column:NAME", "windows:FILE", "label-studio:FILE", "annotator:DIR", "ucr", "gdsh:FILE", "none")
_NORMAL = "entries of a normal state (无异常, normal, …)"
Progress = Callable[[Iterable[Path], str, int], Iterable[Path]]


@dataclass(frozen=True)
class Options:
    """One import. `llamafactory-ext import --help` says what each option is for."""

    sources: tuple[Path, ...]
    out: Path
    labels: str = "auto"
    name: str = ""
    reading: Reading = field(default_factory=Reading)
    choice: Choice = field(default_factory=Choice)
    dates: str = ""
    timezone: str | None = None
    prompt: str = PROMPTS["zh"]
    type: str = "异常"
    type_map: dict[str, str] = field(default_factory=dict)
    widen: int = 0
    drop_faulty: bool = False
    join: bool = False
    round: str = ""


@dataclass
class Report:
    """What was done."""

    kind: str = ""
    files: int = 0
    series: int = 0
    intervals: int = 0
    without_anomaly: int = 0
    unlabelled: list[str] = field(default_factory=list)
    """Series that the labels do not speak of: left out, but for `none`."""
    types: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    agreement: dict[str, float] = field(default_factory=dict)
    axes: Counter[str] = field(default_factory=Counter)
    unused_columns: Counter[str] = field(default_factory=Counter)
    unused_labels: list[str] = field(default_factory=list)
    """Names in the labels that no series has."""
    faults: list[str] = field(default_factory=list)
    done: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The report in plain JSON values."""
        return {key: dict(value) if isinstance(value, Counter) else value for key, value in vars(self).items()}


def import_data(options: Options, progress: Progress = lambda items, text, count: items) -> Report:
    """Reads everything, then writes everything, or nothing where there is a fault.

    Raises:
        UsageError: the command can't lead to a data set.
        GdshError: a file as a whole can't be read.
    """
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise UsageError(f"{options.out} is not empty; name a new folder with --out")
    files = table_files(options.sources)
    spec = find_labels(options, files)
    files = [one for one in files if one not in spec.files]
    if not files:
        raise UsageError(f"no tables (.csv, .txt, .xlsx, .parquet) in {', '.join(map(str, options.sources))}")
    report = Report(spec.kind, len(files))
    name = options.name or (options.sources[0].resolve().name if options.sources[0].is_dir() else stem(files[0]))
    options.out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.out.absolute().parent, prefix=".import-") as folder:
        records = list(_records(options, spec, files, Path(folder) / "timeseries" / name, report, progress))
        _compare_names(spec, report)
        if report.faults and not options.drop_faulty:
            return report
        if not records:
            why = "the labels speak of none: --labels none writes series without labels" if report.unlabelled else ""
            raise GdshError(f"no series is left to write: {why or 'all have faults'}")
        write_records(records, Path(folder), name)
        report.done = True
        text = json.dumps(report.as_dict(), ensure_ascii=False, indent=1)
        (Path(folder) / "import_report.json").write_text(text + "\n", "utf-8")
        options.out.mkdir(exist_ok=True)
        for part in ("timeseries", "json", "dataset_info.json", "import_report.json"):
            shutil.move(str(Path(folder) / part), options.out / part)
    return report


@dataclass
class Spec:
    """Where labels come from."""

    kind: str
    files: tuple[Path, ...] = ()
    """Files among the sources that hold labels, not series."""
    labels: Labels | None = None
    """None where they are in the tables themselves, or nowhere."""
    answers: "_Answers | None" = None
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
        return Spec(kind, inside, forms.from_label_studio(path, options.choice))
    if kind == "annotator":
        return Spec(kind, inside, forms.from_annotator(inside, options.choice))
    return Spec(kind, inside, answers=_answers(path))


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


def _records(
    options: Options, spec: Spec, files: Sequence[Path], folder: Path, report: Report, progress: Progress
) -> Iterator[dict[str, Any]]:
    how = options.reading
    if spec.kind == "column" and options.labels.startswith("column:"):
        how = replace(how, label_column=options.labels.partition(":")[2])
    copied, dates = folder.parent / "copied", Dates(options.dates.replace("-", " "), options.timezone)
    seen: dict[str, Path] = {}
    held: list[Table] = []

    def take(table: Table, large: bool = False) -> Iterator[dict[str, Any]]:
        """One series, whose fault says nothing of the others in its file."""
        if table.name in seen:
            refuse_equal_names([(table.name, seen[table.name]), (table.name, table.file)], options.join)
        seen[table.name] = table.file
        record = _record(table, options, spec, report)
        if record is None:
            return
        if large:
            folder.mkdir(parents=True, exist_ok=True)
            (copied / f"{table.name}.csv").rename(folder / f"{table.name}.csv")
        else:
            write_series(table, folder / f"{table.name}.csv")
        yield record

    for path in progress(files, "importing", len(files)):
        with _told(path, report):
            large = is_large(path)
            for table in copy_tables(path, how, copied, dates) if large else read_tables(path, how):
                if options.join and not large:
                    held.append(table)
                    continue
                with _told(path, report):
                    yield from take(table, large)
    for several in by_name(held).values():
        with _told(several[0].file, report):
            yield from take(join_tables(several, dates))


@contextmanager
def _told(path: Path, report: Report) -> Iterator[None]:
    try:
        yield
    except GdshError as err:
        report.faults.append(str(err) if str(path) in str(err) else f"{path}: {err}")


def _record(table: Table, options: Options, spec: Spec, report: Report) -> dict[str, Any] | None:
    """Returns the record of one series; None where it is left out, which the report says."""
    report.unused_columns.update(table.unused)
    report.counts.update(f"{what}, left out" for what in table.left_out)
    if table.joined > 1:
        report.counts["series joined of several files"] += 1
        report.counts["rows that two of them have, taken once"] += table.repeated
    source = {"source": table.file.name} | ({"column": table.column} if table.column else {})
    source |= {"round": options.round} if options.round else {}
    axis = table.axis
    if axis is None and table.time is not None:
        axis = read_times(table.time, options.dates.replace("-", " "), options.timezone)
    if axis is not None:
        report.axes[axis.rule] += 1
    if spec.kind == "none":
        _refuse_turn(axis, (), report)
        report.series += 1
        return make_record(table.name, options.prompt, None, **source)
    prompt = options.prompt
    if spec.kind == "gdsh":
        assert spec.answers is not None
        answers = spec.answers.by_name
        held = answers.get(table.name, answers.get(stem(table.file)))
        spec.used |= {table.name, stem(table.file)} & answers.keys()
        found = None if held is None else held[1]
        prompt = prompt if held is None else held[0]
    elif spec.kind == "column":
        found = forms.from_columns([table], options.type).by_name[table.name]
    elif spec.kind == "ucr":
        found = forms.from_names([table], options.type).by_name[table.name]
    else:
        assert spec.labels is not None  # every other kind has read its files
        found = spec.labels.of(table)
        spec.used |= {table.name, table.file.name, stem(table.file)} & spec.labels.by_name.keys()
    _refuse_turn(axis, found or (), report)
    if found is None:
        report.unlabelled.append(table.name)
        return None
    if table.joined > 1 and spec.kind != "column":
        _refuse_rows(found, table)
    anomalies = _place(found, table, axis, options, report)
    report.series += 1
    report.intervals += len(anomalies)
    report.without_anomaly += not anomalies
    report.types.update(one.type for one in anomalies)
    return make_record(table.name, prompt, anomalies, **source)


def _refuse_rows(found: Sequence[Label], table: Table) -> None:
    """Rows count from a file's beginning, and of a series that was joined it is not known which file is meant."""
    for label in found:
        if label.in_rows:
            raise GdshError(
                f"{table.file}: series {table.name!r}: the label [{label.start}, {label.end}] counts rows of one "
                f"file, but the series was joined of {table.joined}; expected times: export the labels so, or import "
                "the files one by one"
            )


def _refuse_turn(axis: Axis | None, found: Sequence[Label], report: Report) -> None:
    """Rows out of order are passed over only where all labels are times, which `Axis.rows` places or refuses."""
    if axis is not None and axis.turn:
        if not found or any(label.in_rows for label in found):
            raise GdshError(axis.turn)
        report.counts["series whose time runs back and forth, but not where a label begins or ends"] += 1


def _place(found: Sequence[Label], table: Table, axis: Axis | None, options: Options, report: Report) -> list[Anomaly]:
    """Returns the labels on rows of the series, sorted, each once."""
    rows = table.count
    placed: dict[tuple[int, int, str], Anomaly] = {}
    for label in found:
        where = f"{table.file}: series {table.name!r}"
        if label.in_rows:
            first, last = int(label.start), int(label.end)
            if not 0 <= first <= last < rows:
                raise GdshError(
                    f"{where}: the label [{first}, {last}] does not fit its {rows} rows; expected 0 <= start <= end "
                    f"<= {rows - 1}: correct it, or give it the series that it was made on"
                )
        elif axis is None:
            raise GdshError(
                f"{where}: the label {label.start!r} to {label.end!r} is a time, but the series has no column of "
                "times; name it with --time-column"
            )
        else:
            try:
                first, last, between = axis.rows(label.start, label.end)
            except GdshError as err:
                raise GdshError(f"{where}: {err}") from err
            report.counts["labels between two rows, taken to the covering rows"] += between
        if options.widen:
            first, last = max(0, first - options.widen), min(rows - 1, last + options.widen)
        kind = options.type_map.get(label.type, label.type) or options.type
        if type_key(kind) in NORMAL_TYPES:
            report.counts[f"left out: {_NORMAL}"] += 1
            continue
        fields: dict[str, object] = {"type": kind, **label.fields}
        if (first, last, kind) in placed:
            report.counts["labels named again"] += 1
        placed.setdefault((first, last, kind), Anomaly(first, last, fields))
    return [placed[key] for key in sorted(placed)]


def _compare_names(spec: Spec, report: Report) -> None:
    said = spec.labels or spec.answers
    known: set[str] = set(said.by_name) if said else set()
    report.unused_labels = sorted(known - spec.used)
    if report.unused_labels:
        first = ", ".join(report.unused_labels[:5])
        report.faults.append(
            f"{len(report.unused_labels)} names in the labels have no series: {first}; expected a table of that name: "
            "add it, or leave these labels out with --drop-faulty"
        )
    if said:
        report.counts.update({f"left out: {why}": count for why, count in said.left_out.items() if count})
    if spec.labels:
        report.agreement = spec.labels.agreement


@dataclass
class _Answers:
    """The records of a GDSH file, by their pictures' names."""

    by_name: dict[str, tuple[str, list[Label] | None]] = field(default_factory=dict)
    """Prompt and labels, bounds as they are; None where the record has no answer."""
    left_out: Counter[str] = field(default_factory=Counter)


def _answers(path: Path) -> _Answers:
    found = _Answers()
    places: dict[str, int] = {}
    for number, record in enumerate(read_records(path)):
        try:
            picture = record["image"]  # type: ignore[index]
            turns = {turn["from"]: turn["value"] for turn in record["conversations"]}  # type: ignore[index]
            name = Path(show_pictures([picture])).stem
            one = turns["user"], _labels(turns.get("assistant"), found.left_out)
            known = found.by_name.get(name, one)
            if known[1] is not None and one[1] is not None:
                forms.refuse_others(name, known[1], f"record {places.get(name)}", one[1], "it")
            found.left_out["records given again"] += name in found.by_name
            found.by_name[name] = one if known[1] is None else known
            places.setdefault(name, number)
        except (KeyError, TypeError) as err:
            raise GdshError(f"{path}: record {number} lacks {err}; expected `image` and `conversations`") from err
        except GdshError as err:
            raise GdshError(f"{path}: record {number}: {err}") from err
    return found


def _labels(answer: Any, left_out: Counter[str]) -> list[Label] | None:
    """Reads an answer as all tools do; None where there is none."""
    if answer is None or (isinstance(answer, str) and not answer.strip()):
        return None
    anomalies, without, normal = read_labels(answer)
    left_out["entries without interval"] += without
    left_out[_NORMAL] += normal
    found = []
    for one in anomalies:
        more = {key: value for key, value in one.fields.items() if key != "type"}
        found.append(Label(one.start, one.end, one.type, isinstance(one.start, int), more))
    return found
