"""One run of detect: sources in, answers into the journal batch by batch, and at the end the files of results.

Questions come in the order of files, series and windows, and are asked in batches of a fixed size. A batch is in the
journal as a whole or not at all, so that a run which goes on asks the same batches as one that was never stopped.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llamafactory_ext.errors import GdshError, UsageError
from llamafactory_ext.toolbox.importing.sources import table_files
from llamafactory_ext.toolbox.prepare.asking import Asking

from .confidence import Read, read, share
from .engines import Answer, Engine, Question
from .journal import Journal, Key
from .pieces import Found, Piece, cut, join
from .reading import Fault, How, Series, digest, read_file


Progress = Callable[[float, int], None]
"""Is told how many files are done (the one at work in parts), and of how many."""

_SPREAD = 1 << 26
"""Bytes of a file from which on its series are spread over shards; a smaller one is one shard's."""


@dataclass(frozen=True)
class Options:
    """One run."""

    sources: tuple[Path, ...]
    out: Path
    asking: Asking
    how: How = field(default_factory=How)
    shard: tuple[int, int] = (1, 1)
    votes: int = 0
    batch: int = 16
    """Questions that are asked, and written down, at once."""

    @property
    def shard_name(self) -> str:
        return "" if self.shard[1] == 1 else f"{self.shard[0]}/{self.shard[1]}"


@dataclass
class Counts:
    """What was done in one call."""

    asked: int = 0
    """Series."""
    questions: int = 0
    files: list["Looked"] = field(default_factory=list)
    """This shard's, in order."""


@dataclass(frozen=True)
class Looked:
    """A file that was looked at."""

    path: Path
    key: str
    """Empty where it can't be read."""
    reason: str = ""
    """Why."""


@dataclass(eq=False)
class _File:
    """A file at work."""

    key: str
    path: Path
    names: list[str] = field(default_factory=list)
    faults: list[dict[str, str]] = field(default_factory=list)
    waiting: int = 1
    """Series that are not finished, and one more until all are listed."""
    shard: str = ""

    def line(self) -> dict[str, Any]:
        return {"kind": "file", "file": self.key, "shard": self.shard, "series": self.names, "faults": self.faults}


@dataclass(eq=False)
class _Series:
    """A series at work."""

    file: _File
    series: Series
    pieces: list[Piece]
    answers: dict[int, Any]

    @property
    def key(self) -> Key:
        return self.file.key, self.series.name


_Task = tuple[_Series, int]


def find_files(options: Options) -> list[Path]:
    """Returns the files of tables among the sources; not those that detect has written itself.

    Raises:
        UsageError: a source is not there, or there is none.
    """
    out = options.out.resolve()
    try:
        files = [path for path in table_files(options.sources) if out not in path.resolve().parents]
    except GdshError as err:
        raise UsageError(str(err)) from err
    if not files:
        raise UsageError(f"no tables (.csv, .txt, .xlsx, .parquet) in {', '.join(map(str, options.sources))}")
    return list(dict.fromkeys(files))


def ask_all(options: Options, journal: Journal, engine: Callable[[], Engine], progress: Progress) -> Counts:
    """Asks about all that the journal does not know; `engine` is opened where there is something to ask."""
    counts = Counts()
    files = find_files(options)
    held: list[dict[str, Any]] = []
    batch: list[_Task] = []
    for task in _tasks(options, files, journal, held, counts, progress):
        batch.append(task)
        if len(batch) == options.batch:
            _ask(batch, options, journal, engine(), held, counts)
            batch = []
    if batch:
        _ask(batch, options, journal, engine(), held, counts)
    journal.add(held)
    return counts


def _tasks(
    options: Options,
    files: Sequence[Path],
    journal: Journal,
    held: list[dict[str, Any]],
    counts: Counts,
    progress: Progress,
) -> Iterator[_Task]:
    """Yields what is to be asked; lines for the journal that need no answer are added to `held`."""
    seen: set[str] = set()
    for place, path in enumerate(files):
        progress(place, len(files))
        spread = path.stat().st_size > _SPREAD if path.exists() else False
        if not spread and not _mine(path.name, options.shard):
            continue
        try:
            key = digest(path)
            known = journal.file(key)
            if known is not None and _is_done(key, known, seen, journal):
                counts.files.append(Looked(path, key))
                seen.update(known["series"])
                continue
            file = _File(key, path, shard=options.shard_name if spread else "")
            count, every = read_file(path, options.how)
        except (GdshError, OSError) as err:
            counts.files.append(Looked(path, "", getattr(err, "strerror", None) or str(err)))
            continue
        counts.files.append(Looked(path, key))
        for number, one in enumerate(every):
            progress(place + number / count, len(files))
            if spread and not _mine(one.name if isinstance(one, Series) else one.series, options.shard):
                continue
            if isinstance(one, Fault):
                file.faults.append({"series": one.series, "reason": one.reason})
                continue
            file.names.append(one.name)
            if one.name in seen:
                continue  # said when the results are written
            seen.add(one.name)
            if journal.has_series((key, one.name)):
                continue
            yield from _series(file, one, options, journal, held, counts)
        file.waiting -= 1
        if not file.waiting:
            held.append(file.line())
    progress(len(files), len(files))


def _series(
    file: _File, one: Series, options: Options, journal: Journal, held: list[dict[str, Any]], counts: Counts
) -> Iterator[_Task]:
    asking = options.asking
    pieces = cut(one.values, asking.window, asking.stride, asking.points)
    known = journal.answers.get((file.key, one.name), {})
    state = _Series(file, one, pieces, dict(known))
    file.waiting += 1
    counts.asked += 1
    left = [number for number in range(len(pieces)) if number not in state.answers]
    yield from ((state, number) for number in left)
    if not left:  # all answered, and killed before that was put together
        held += _finish(state)


def _is_done(key: str, known: dict[str, Any], seen: set[str], journal: Journal) -> bool:
    return all(name in seen or journal.has_series((key, name)) for name in known["series"])


def _mine(name: str, shard: tuple[int, int]) -> bool:
    """Whether a file, or a series of a large one, is this shard's."""
    number, count = shard
    known = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(known[:8], "big") % count == number - 1


def _ask(
    batch: Sequence[_Task],
    options: Options,
    journal: Journal,
    engine: Engine,
    held: list[dict[str, Any]],
    counts: Counts,
) -> None:
    """Asks a batch and writes down what it says, and what is finished by it."""
    questions = [Question(options.asking.prompt, (state.pieces[number].values,)) for state, number in batch]
    answers = _answers(engine, questions)
    votes = _votes(engine, questions, answers, options.votes)
    lines: list[dict[str, Any]] = []
    noted, finished = [], []
    for place, ((state, number), answer) in enumerate(zip(batch, answers, strict=True)):
        said = _said(answer, state.pieces[number], [vote[place] for vote in votes])
        state.answers[number] = said
        noted.append([*state.key, number, said])
        if len(state.answers) == len(state.pieces):
            finished += _finish(state)
    counts.questions += len(batch)
    lines = [*held, {"kind": "answers", "answers": noted}, *finished]
    held.clear()
    journal.add(lines)


def _answers(engine: Engine, questions: list[Question]) -> list[Answer | str]:
    """Returns an answer to each question, or why there is none."""
    try:
        return list(engine.ask(questions))
    except ValueError as err:
        if len(questions) == 1:
            return [" ".join(str(err).split())]
    return [_answers(engine, [question])[0] for question in questions]


def _votes(
    engine: Engine, questions: list[Question], answers: list[Answer | str], votes: int
) -> list[list[Answer | None]]:
    if not votes:
        return []
    asked = [place for place, answer in enumerate(answers) if isinstance(answer, Answer)]
    found: list[list[Answer | None]] = []
    for vote in range(votes):
        sampled = engine.ask([questions[place] for place in asked], 1.0, 1 + vote * 10_000) if asked else []
        row: list[Answer | None] = [None] * len(questions)
        for place, one in zip(asked, sampled, strict=True):
            row[place] = one
        found.append(row)
    return found


def _said(answer: Answer | str, piece: Piece, votes: list[Answer | None]) -> dict[str, Any]:
    """Returns what the journal holds of one answer; intervals in rows of the series."""
    if isinstance(answer, str):
        return {"text": "", "found": [], "nothing": None, "fault": f"it could not be asked: {answer}"}
    points = len(piece.values)
    told = read(answer, points)
    found, nothing = list(told.found), told.nothing
    if votes:
        sampled = [read(vote, points).found if vote else () for vote in votes]
        found = [Found(one.start, one.end, one.type, one.reason, share(one, sampled)) for one in found]
        nothing = None if nothing is None else round(sum(not one for one in sampled) / len(sampled), 3)
    told = Read(tuple(piece.back(one) for one in found), nothing, told.fault)
    return {"text": answer.text, **asdict(told)}


def _finish(state: _Series) -> list[dict[str, Any]]:
    """Returns the journal's lines for a series that is answered, and for its file if that was the last one."""
    spans = [(piece.first, piece.last) for piece in state.pieces]
    answers = [state.answers[number] for number in range(len(state.pieces))]
    found = join((Found(**one) for answer in answers for one in answer["found"]), spans)
    sure = [answer["nothing"] for answer in answers if answer["nothing"] is not None]
    faults = [
        {"start": first, "end": last, "reason": answer["fault"]}
        for (first, last), answer in zip(spans, answers, strict=True)
        if answer["fault"]
    ]
    time = state.series.time
    line: dict[str, Any] = {
        "kind": "series",
        "file": state.file.key,
        "series": state.series.name,
        "rows": len(state.series.values),
        "filled": state.series.filled,
        "intervals": [
            {
                **{"start": one.start, "end": one.end, "start_time": time(one.start), "end_time": time(one.end)},
                **{"type": one.type, "confidence": one.confidence, "reason": one.reason},
            }
            for one in found
        ],
        "nothing": min(sure) if sure and not found and not faults else None,
        "answers": [
            {"rows": list(span), "points": len(piece.values), "text": answer["text"]}
            for span, piece, answer in zip(spans, state.pieces, answers, strict=True)
        ],
        "faults": faults,
    }
    state.file.waiting -= 1
    return [line] if state.file.waiting else [line, state.file.line()]


def parse_shard(text: str) -> tuple[int, int]:
    """Reads ``I/N``.

    Raises:
        UsageError: it is something else.
    """
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--shard {text}: expected I/N with 1 <= I <= N, such as 2/4")
    return int(match[1]), int(match[2])
