"""One import: sources and labels in, a folder in GDSH's layout out, with a report of all that was taken or left."""

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llamafactory_ext.errors import GdshError, UsageError
from llamafactory_ext.gdsh import Anomaly, show_pictures
from llamafactory_ext.gdsh.dialects import read_json as read_answer_json
from llamafactory_ext.gdsh.dialects import read_parts
from llamafactory_ext.gdsh.records import read_records

from . import labels as forms
from .labels import Choice, Label, Labels
from .large import Dates, copy_tables, is_large
from .layout import PROMPTS, make_record, write_records, write_series
from .sources import Reading, Table, read_tables, refuse_equal_names, stem, table_files
from .times import Axis, read_axis


KINDS = ("auto", "column:NAME", "windows:FILE", "label-studio:FILE", "annotator:DIR", "ucr", "gdsh:FILE", "none")
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
            raise GdshError("no series is left to write; the report says why")
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
    answers: dict[str, Any] = field(default_factory=dict)
    """For ``gdsh``: the records by series name."""
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
    seen: list[tuple[str, Path]] = []
    copied, dates = folder.parent / "copied", Dates(options.dates.replace("-", " "), options.timezone)
    for path in progress(files, "importing", len(files)):
        try:
            large = is_large(path)
            for table in copy_tables(path, how, copied, dates) if large else read_tables(path, how):
                seen.append((table.name, path))
                refuse_equal_names(seen)
                report.unused_columns.update(table.unused)
                record = _record(table, options, spec, report)
                if record is None:
                    continue
                if large:
                    folder.mkdir(parents=True, exist_ok=True)
                    (copied / f"{table.name}.csv").rename(folder / f"{table.name}.csv")
                else:
                    write_series(table, folder / f"{table.name}.csv")
                yield record
        except GdshError as err:
            report.faults.append(str(err) if str(path) in str(err) else f"{path}: {err}")


def _record(table: Table, options: Options, spec: Spec, report: Report) -> dict[str, Any] | None:
    """Returns the record of one series; None where it is left out, which the report says."""
    source = {"source": table.file.name} | ({"column": table.column} if table.column else {})
    source |= {"round": options.round} if options.round else {}
    axis = table.axis
    if axis is None and table.time is not None:
        axis = read_axis(table.time.reset_index(drop=True), options.dates.replace("-", " "), options.timezone)
        if axis is None:
            raise GdshError(f"the column of times {table.time.name!r} has cells that are no times; correct them")
    if axis is not None:
        report.axes[axis.rule] += 1
    if spec.kind == "none":
        _refuse_turn(axis, (), report)
        report.series += 1
        return make_record(table.name, options.prompt, None, **source)
    prompt = options.prompt
    if spec.kind == "gdsh":
        held = spec.answers.get(table.name, spec.answers.get(stem(table.file)))
        spec.used |= {table.name, stem(table.file)} & spec.answers.keys()
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
    anomalies = _place(found, table, axis, options, report)
    report.series += 1
    report.intervals += len(anomalies)
    report.without_anomaly += not anomalies
    report.types.update(one.type for one in anomalies)
    return make_record(table.name, prompt, anomalies, **source)


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
        fields: dict[str, object] = {"type": kind, **label.fields}
        if (first, last, kind) in placed:
            report.counts["labels named again"] += 1
        placed.setdefault((first, last, kind), Anomaly(first, last, fields))
    return [placed[key] for key in sorted(placed)]


def _compare_names(spec: Spec, report: Report) -> None:
    known = spec.labels.by_name.keys() if spec.labels else spec.answers.keys()
    report.unused_labels = sorted(known - spec.used)
    if report.unused_labels:
        first = ", ".join(report.unused_labels[:5])
        report.faults.append(
            f"{len(report.unused_labels)} names in the labels have no series: {first}; expected a table of that name: "
            "add it, or leave these labels out with --drop-faulty"
        )
    if spec.labels:
        report.counts.update({f"left out: {why}": count for why, count in spec.labels.left_out.items() if count})
        report.agreement = spec.labels.agreement


def _answers(path: Path) -> dict[str, Any]:
    """Returns prompt and labels of each GDSH record by its picture's name, bounds as they are."""
    found: dict[str, Any] = {}
    for number, record in enumerate(read_records(path)):
        try:
            picture = record["image"]  # type: ignore[index]
            turns = {turn["from"]: turn["value"] for turn in record["conversations"]}  # type: ignore[index]
            name = Path(show_pictures([picture])).stem
            if name in found:
                raise GdshError(
                    f"a second record of {name!r}; join both, `llamafactory-ext prepare --merge-points` does"
                )
            found[name] = turns["user"], list(_entries(turns["assistant"]))
        except (KeyError, TypeError) as err:
            raise GdshError(f"{path}: record {number} lacks {err}; expected `image` and `conversations`") from err
        except GdshError as err:
            raise GdshError(f"{path}: record {number}: {err}") from err
    return found


def _entries(answer: Any) -> Iterator[Label]:
    if isinstance(answer, str):
        try:
            answer = read_answer_json(answer)
        except ValueError:
            answer = read_parts(answer)
    for entry in answer if isinstance(answer, list) else [answer]:
        if isinstance(entry, dict) and "detected_anomalies" in entry:
            yield from _entries(entry["detected_anomalies"])
        elif isinstance(entry, dict) and isinstance(entry.get("interval"), list) and len(entry["interval"]) == 2:
            start, end = entry["interval"]
            rows = isinstance(start, int) and isinstance(end, int)
            more = {key: value for key, value in entry.items() if key not in ("interval", "type")}
            yield Label(start, end, str(entry.get("type", "")), rows, more)
        elif entry:
            raise GdshError(f"the entry {entry!r:.80} has no interval of two bounds; correct it")
