"""The pipeline: one run of `prepare`, from annotation files and CSVs to outputs that appear all at once.

`llamafactory-ext prepare` is its command line. Every annotation is read first, to know which records share a point;
then each point is prepared on its own, so that memory holds a few points, never the data set.
"""

import json
from collections.abc import Callable
from typing import Any

from llamafactory_ext.gdsh import GdshError

from .options import Options, PrepareError, check_options
from .outputs import Outputs, collect, collecting, part
from .reading import Spool, read_all, spooling
from .registering import check_registry, draft_registry
from .report import failed_report, make_report
from .sources import Sources, find_sources
from .tally import Tally
from .workers import prepare_points
from .writing import Draft, commit, drafting, open_draft


Progress = Callable[[int, int], None]
"""Is told how many tasks are done, and of how many: points where they are merged, records otherwise."""


def prepare(options: Options, progress: Progress = lambda done, total: None) -> dict[str, Any]:
    """Carry out one run.

    Returns:
        The report (see `make_report`). Where its `done` is false, faults of the data kept the run from writing
        anything but the report.

    Raises:
        UsageError: the options cannot be carried out; nothing was done.
        PrepareError: the run cannot go on, for want of disk or memory for example; no output was changed.
    """
    check_options(options)
    try:
        return _prepare(options, progress)
    except PrepareError as error:
        if options.report:
            with drafting() as drafts:
                _draft_report(drafts, options, failed_report(options, str(error)))
                commit(drafts)
        raise


def _prepare(options: Options, progress: Progress) -> dict[str, Any]:
    try:
        sources = find_sources(options)
    except GdshError as error:
        raise PrepareError(str(error)) from error
    check_registry(options, sources.folder)
    tally = Tally()
    with spooling() as spool:
        read_all(spool, sources, options)
        with drafting() as drafts, collecting(options, drafts) as outputs:
            _prepare_points(spool, tally, outputs, options, progress)
            if not _stopped(spool, tally, options):
                return _finish(spool, tally, outputs, sources, options)
    with drafting() as drafts:
        report = make_report(options, spool, tally, {}, registered=False)
        _draft_report(drafts, options, report)
        commit(drafts)
    return report


def _prepare_points(spool: Spool, tally: Tally, outputs: Outputs, options: Options, progress: Progress) -> None:
    done = 0
    for count, result in prepare_points(spool, options):
        tally.add(result)
        if not _stopped(spool, tally, options):
            for line in result.lines:
                collect(outputs, line)
        done += count
        progress(done, len(spool.points))


def _stopped(spool: Spool, tally: Tally, options: Options) -> bool:
    """Whether faults forbid to write. Work still goes on then, so that all of them are told at once."""
    if any(fault.record is None for fault in spool.faults):
        return True
    return bool(spool.faults or tally.faults) and not options.drop_faulty


def _finish(spool: Spool, tally: Tally, outputs: Outputs, sources: Sources, options: Options) -> dict[str, Any]:
    if not outputs.records:
        raise PrepareError(_nothing_left(spool, tally))
    written = part(outputs)
    registered = draft_registry(outputs.drafts, options, sources.folder, spool.with_system)
    report = make_report(options, spool, tally, written, registered)
    _draft_report(outputs.drafts, options, report)
    commit(outputs.drafts)
    return report


def _nothing_left(spool: Spool, tally: Tally) -> str:
    read = sum(spool.files.values())
    if not read:
        return "the annotation files hold no records; nothing to write"
    faults = len(spool.faults) + len(tally.faults)
    return (
        f"of {read} records none is left to write: {faults} have faults, {spool.dropped.total()} were dropped by "
        f"their answers, {tally.counts['normal_left_out']} windows without anomaly were left out"
    )


def _draft_report(drafts: list[Draft], options: Options, report: dict[str, Any]) -> None:
    if options.report:
        text = json.dumps(report, ensure_ascii=False, indent=2) + "\n"
        # File names that are not UTF-8 are held as half characters, which JSON can write as escapes.
        open_draft(drafts, options.report).write(text.encode("utf-8", "backslashreplace"))
