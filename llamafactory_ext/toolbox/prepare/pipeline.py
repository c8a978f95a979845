"""The pipeline: one run of `prepare`, from annotation files and CSVs to outputs that appear all at once.

`llamafactory-ext prepare` is its command line. Every annotation is read first, to know which records share a point;
then each point is prepared on its own, side by side with a few others, so that memory holds those, never the data set.
"""

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from itertools import islice
from typing import Any

from llamafactory_ext.files import Drafts, WriteError
from llamafactory_ext.gdsh import GdshError
from llamafactory_ext.gdsh.prompts import asking_beside

from .asking import Asking, commonest
from .options import Options, PrepareError, check_options
from .outputs import Outputs
from .points import golden_keys, prepare_batch
from .reading import Spool, read_all, spooling
from .records import SYSTEM
from .registering import alone, check_registry, draft_registry
from .report import Tally, failed_report, make_report
from .sources import Sources, find_sources


Progress = Callable[[int, int], None]
"""Is told how many tasks are done, and of how many: points where they are merged, records otherwise."""

_BATCH = 4  # points a worker takes at a time; a result holds their lines, some 100 KB each
_FEW = 64  # as many points are done before worker processes have started


def prepare(options: Options, progress: Progress = lambda done, total: None) -> dict[str, Any]:
    """Carry out one run.

    Returns:
        The report (see `make_report`). Where its `done` is false, faults of the data kept the run from writing
        anything but the report.

    Raises:
        UsageError: the options cannot be carried out; nothing was done.
        PrepareError: the run cannot continue, for want of disk or memory for example; no output was changed.
    """
    check_options(options)
    try:
        return _prepare(options, progress)
    except (PrepareError, WriteError, GdshError) as error:
        said = f"{error.filename!r} cannot be written ({error.strerror})" if isinstance(error, WriteError) else error
        with suppress(WriteError):  # what kept the run from writing is said all the same
            _write_report(options, failed_report(options, str(said)))
        raise PrepareError(str(said)) from error


def _prepare(options: Options, progress: Progress) -> dict[str, Any]:
    sources = find_sources(options)
    check_registry(options, sources.folder)
    if options.golden:
        golden_keys(options.golden)  # what is wrong with it is said first, and once
    tally = Tally()
    with spooling() as spool:
        read_all(spool, sources, options)
        with Drafts() as drafts:
            outputs = Outputs(options, drafts)
            done = 0
            for count, result in _prepare_points(spool, options):
                tally.add(result)
                if not _stopped(spool, tally, options):
                    for line in result.lines:
                        outputs.add(line)
                done += count
                progress(done, len(spool.points))
            if not _stopped(spool, tally, options):
                return _finish(spool, tally, outputs, sources, options)
    report = make_report(options, spool, tally, {}, {}, registered=False)
    _write_report(options, report)
    return report


def _stopped(spool: Spool, tally: Tally, options: Options) -> bool:
    """Whether faults forbid to write. Work still continues then, so that all of them are reported at once."""
    if any(fault.record is None for fault in spool.faults):
        return True
    return bool(spool.faults or tally.faults) and not options.drop_faulty


def _finish(spool: Spool, tally: Tally, outputs: Outputs, sources: Sources, options: Options) -> dict[str, Any]:
    if not outputs.records:
        raise PrepareError(_nothing_left(spool, tally))
    outputs.finish()
    with alone(options.register):
        registered = draft_registry(outputs.drafts, options, sources.folder, SYSTEM in spool.texts)
        report = make_report(options, spool, tally, outputs.written, outputs.split, registered)
        if options.report:
            outputs.drafts.write_json(options.report, report)
        if options.out:
            _draft_asking(outputs.drafts, options, tally)
        outputs.drafts.commit()
    return report


def _draft_asking(drafts: Drafts, options: Options, tally: Tally) -> None:
    """How records ask, for `detect`; training takes it along. Not where no record asks about one series."""
    prompt, system = commonest(tally.prompts)
    if prompt and options.out:
        types = tuple(kind for kind, _ in tally.types.most_common() if kind)
        stride = options.stride or options.window
        asking = Asking(prompt, system, options.window, stride, options.max_points, options.compact_answers, types)
        drafts.write(asking_beside(options.out), asking.as_json().encode("utf-8", "backslashreplace"))


def _nothing_left(spool: Spool, tally: Tally) -> str:
    read = sum(spool.files.values())
    if not read:
        return "the annotation files hold no records; nothing to write"
    faults = len(spool.faults) + len(tally.faults)
    return (
        f"of {read} records none is left to write: {faults} have faults, {spool.dropped.total()} were dropped by "
        f"their answers, {tally.counts['normal_left_out']} windows without anomaly were left out"
    )


def _write_report(options: Options, report: dict[str, Any]) -> None:
    if options.report:
        with Drafts() as drafts:
            drafts.write_json(options.report, report)
            drafts.commit()


def _prepare_points(spool: Spool, options: Options) -> Iterator[tuple[int, Tally]]:
    """Yield the results in the points' order, each with the number of tasks that it answers for.

    Raises:
        PrepareError: memory ran out, or a worker process was killed.
    """
    tasks = (spool.task(offsets) for offsets in spool.points)
    batches = iter(lambda: list(islice(tasks, _BATCH)), [])
    try:
        if options.workers == 1 or len(spool.points) < _FEW:
            for batch in batches:
                yield len(batch), prepare_batch(batch, options, frozenset(spool.texts))
        else:
            yield from _side_by_side(batches, options, frozenset(spool.texts))
    except MemoryError as error:
        raise PrepareError("memory ran out; try fewer --workers, or --max-points") from error


def _side_by_side(
    batches: Iterator[list[list[bytes]]], options: Options, texts: frozenset[str]
) -> Iterator[tuple[int, Tally]]:
    waiting: deque[tuple[int, Future[Tally]]] = deque()
    pool = ProcessPoolExecutor(options.workers, initializer=_leave_signals)
    try:
        # Two batches a worker: one that it works on, and the next one ready. More would only fill memory.
        for batch in batches:
            waiting.append((len(batch), pool.submit(prepare_batch, batch, options, texts)))
            if len(waiting) >= 2 * options.workers:
                count, future = waiting.popleft()
                yield count, future.result()
        while waiting:
            count, future = waiting.popleft()
            yield count, future.result()
    except BrokenProcessPool as error:
        # The pool waits for the others; one that was just starting may have taken SIGTERM by the parent's handler.
        for worker in multiprocessing.active_children():
            worker.kill()
        raise PrepareError(
            "a worker process was killed, most likely because memory ran out; try fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_signals() -> None:
    """An interrupt is the parent's business, which then ends its workers; a kill is not caught in a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
