"""One run of detect: series from their files, questions in blocks, answers into the journal."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from llamafactory_ext.errors import GdshError, UsageError
from llamafactory_ext.toolbox.importing.sources import Reading, table_files
from llamafactory_ext.toolbox.prepare.resampling import Indices

from .answers import read_answers
from .engines import Answer, Engine, Question, Settings
from .journal import Entry, Journal, describe_run
from .manner import Manner
from .series import Failure, Found, in_shard, names_once, read_file


Progress = Callable[[Iterable[Path], str, int], Iterable[Path]]
_TEMPERATURE = 0.7  # of the votes


@dataclass(frozen=True)
class Options:
    """One run. `llamafactory-ext detect --help` says what each option is for."""

    sources: tuple[Path, ...]
    out: Path
    settings: Settings
    manner: Manner = field(default_factory=Manner)
    engine: str = "transformers"
    reading: Reading = field(default_factory=Reading)
    votes: int = 0
    again: bool = False
    shard: tuple[int, int] | None = None


@dataclass
class Report:
    """What was done."""

    files: int = 0
    answered: int = 0
    known: int = 0
    """Series that had been answered before and have not changed."""
    failures: list[Failure] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    """All of them, in the order of their names."""


def detect(options: Options, open_: Callable[[], Engine], progress: Progress = lambda items, *_: items) -> Report:
    """Answers every series that has no answer yet.

    Arguments:
        open_: opens the engine; called when there is something to ask.

    Raises:
        UsageError: no sources, or a folder of another run.
    """
    try:
        files = table_files(options.sources)
    except GdshError as err:
        raise UsageError(str(err)) from err
    if not files:
        raise UsageError(f"no tables (.csv, .txt, .xlsx, .parquet) in {', '.join(map(str, options.sources))}")
    run = describe_run(options.engine, asdict(options.settings), asdict(options.manner), options.votes)
    journal = Journal(options.out, run, options.shard)
    report = Report(len(files))
    engine: list[Engine] = []
    there: set[str] = set()
    for block in _blocks(_pending(files, options, journal, report, there, progress), options):
        if not engine:
            engine.append(open_())
        journal.add(_answer(block, engine[0], options, report))
    report.entries = [journal.entries[name] for name in sorted(there & journal.entries.keys())]
    for entry in report.entries:
        report.failures += [Failure(entry.file, entry.name, fault) for fault in entry.faults]
    return report


@dataclass(frozen=True, eq=False)
class _Pending:
    found: Found
    rows: list[Indices]
    questions: list[Question]


def _pending(
    files: Sequence[Path], options: Options, journal: Journal, report: Report, there: set[str], progress: Progress
) -> Iterator[_Pending]:
    """Yields the series to be asked about; notes what failed, and the names of all that is there."""
    seen: dict[str, str] = {}
    for path in progress(files, "detecting", len(files)):
        for one in names_once(read_file(path, options.reading), seen):
            if isinstance(one, Failure):
                report.failures.append(one)
                continue
            if options.shard and not in_shard(one.name, options.shard):
                continue
            there.add(one.name)
            if not options.again and journal.has(one.name, one.digest):
                report.known += 1
                continue
            try:
                cut = options.manner.cut(one.values)
            except ValueError as err:
                there.discard(one.name)
                report.failures.append(Failure(str(path), one.name, str(err)))
                continue
            yield _Pending(one, [rows for rows, _ in cut], [question for _, question in cut])


def _blocks(pending: Iterable[_Pending], options: Options) -> Iterator[list[_Pending]]:
    """Yields series whose questions fill a batch, or more: a run that resumes asks in the same batches as before."""
    block: list[_Pending] = []
    for one in pending:
        block.append(one)
        if sum(len(each.questions) for each in block) >= options.settings.batch:
            yield block
            block = []
    if block:
        yield block


def _answer(block: Sequence[_Pending], engine: Engine, options: Options, report: Report) -> list[Entry]:
    questions = [question for one in block for question in one.questions]
    answers = _ask(engine, questions, 0.0, 0)
    votes = [_ask(engine, questions, _TEMPERATURE, 1000 * (vote + 1)) for vote in range(options.votes)]
    entries, place = [], 0
    for one in block:
        own = slice(place, place + len(one.questions))
        place = own.stop
        said = answers[own]
        failed = [str(each) for each in said if isinstance(each, ValueError)]
        if failed:
            report.failures.append(Failure(str(one.found.file), one.found.name, failed[0]))
            continue
        whole = [each for each in said if isinstance(each, Answer)]
        voted = [[vote[at] for vote in votes if isinstance(vote[at], Answer)] for at in range(own.start, own.stop)]
        read = read_answers(one.rows, whole, voted if options.votes else ())  # type: ignore[arg-type]
        entries.append(
            Entry(
                name=one.found.name,
                file=str(one.found.file),
                digest=one.found.digest,
                rows=len(one.found.values),
                filled=one.found.filled,
                confidence=read.confidence,
                detections=tuple(read.detections),
                times=tuple((one.found.time(each.start), one.found.time(each.end)) for each in read.detections),
                answers=tuple(each.text for each in whole),
                faults=tuple(read.faults),
            )
        )
        report.answered += 1
    return entries


def _ask(engine: Engine, questions: Sequence[Question], temperature: float, seed: int) -> list[Answer | ValueError]:
    """Asks about all of a block; where one question can't be asked, each by itself."""
    try:
        return list(engine.ask(questions, temperature, seed))
    except ValueError as err:
        if len(questions) == 1:
            return [err]
        return [answer for question in questions for answer in _ask(engine, [question], temperature, seed)]
