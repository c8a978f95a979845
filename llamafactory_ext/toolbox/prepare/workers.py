"""Workers: points prepared side by side, with only a few of them on the way at any time."""

import multiprocessing
import signal
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice

from .options import Options, PrepareError
from .point import prepare_batch
from .reading import Spool
from .tally import Tally


_BATCH = 4  # points a worker takes at a time; a result holds their lines, some 100 KB each
_FEW = 64  # as many points are done before worker processes have started


def prepare_points(spool: Spool, options: Options) -> Iterator[tuple[int, Tally]]:
    """Yield the results in the points' order, each with the number of tasks that it answers for.

    Raises:
        PrepareError: memory ran out, or a worker process was killed.
    """
    tasks = (spool.task(offsets) for offsets in spool.points)
    batches = iter(lambda: list(islice(tasks, _BATCH)), [])
    try:
        if options.workers == 1 or len(spool.points) < _FEW:
            for batch in batches:
                yield len(batch), prepare_batch(batch, options, spool.with_system)
        else:
            yield from _side_by_side(batches, options, spool.with_system)
    except MemoryError as error:
        raise PrepareError("memory ran out; try fewer --workers, or --max-points") from error


def _side_by_side(
    batches: Iterator[list[list[bytes]]], options: Options, with_system: bool
) -> Iterator[tuple[int, Tally]]:
    waiting: deque[tuple[int, Future[Tally]]] = deque()
    pool = ProcessPoolExecutor(options.workers, initializer=_leave_signals)
    try:
        # Two batches a worker: one that it works on, and the next one ready. More would only fill memory.
        for batch in batches:
            waiting.append((len(batch), pool.submit(prepare_batch, batch, options, with_system)))
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
