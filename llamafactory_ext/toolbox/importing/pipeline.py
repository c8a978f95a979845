"""One import: sources and labels in, a folder in GDSH's layout out, with a report of all that was taken or left."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from llamafactory_ext.errors import GdshError, UsageError
from llamafactory_ext.files import scratch_beside
from llamafactory_ext.gdsh import NORMAL_TYPES, Anomaly, type_key

from . import labels as forms
from .answers import NORMAL
from .finding import Spec, find_labels
from .joining import by_name, join_tables
from .labels import Label
from .large import Dates, copy_tables, is_large
from .layout import make_record, write_records, write_series
from .options import Options, Report
from .sources import Table, read_tables, refuse_equal_names, stem, table_files
from .times import Axis, read_times


Progress = Callable[[Iterable[Path], str, int], Iterable[Path]]


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
    with scratch_beside(options.out) as folder:
        records = list(_records(options, spec, files, folder / "timeseries" / name, report, progress))
        _compare_names(spec, report)
        if report.faults and not options.drop_faulty:
            return report
        if not records:
            why = "the labels speak of none: --labels none writes series without labels" if report.unlabelled else ""
            raise GdshError(f"no series is left to write: {why or 'all have faults'}")
        write_records(records, folder, name)
        report.done = True
        text = json.dumps(report.as_dict(), ensure_ascii=False, indent=1)
        (folder / "import_report.json").write_text(text + "\n", "utf-8")
        options.out.mkdir(exist_ok=True)
        for part in ("timeseries", "json", "dataset_info.json", "import_report.json"):
            shutil.move(folder / part, options.out / part)  # an empty folder may be a file system of its own
    return report


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
            report.counts[f"left out: {NORMAL}"] += 1
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
