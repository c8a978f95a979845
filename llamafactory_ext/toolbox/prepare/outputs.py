"""Outputs: prepared records go to their drafts as they come, or, with a split, once all series are known."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import BinaryIO

from .options import Options, PrepareError
from .splitting import choose_validation
from .tally import Line
from .writing import Draft, open_draft, open_spool, telling


@dataclass
class Outputs:
    """Where the records of a run go."""

    options: Options
    drafts: list[Draft]
    by_name: dict[str, Draft] = field(default_factory=dict)
    """The drafts by the names of `Options.outputs`."""
    spools: dict[str, BinaryIO] = field(default_factory=dict)
    """With a split: all records of `out` and of `annotations`, one after another."""
    sizes: dict[str, list[int]] = field(default_factory=dict)
    """Of the records in a spool, in bytes."""
    digests: list[tuple[bytes, ...]] = field(default_factory=list)
    records: int = 0


@contextmanager
def collecting(options: Options, drafts: list[Draft]) -> Iterator[Outputs]:
    """Give a place for prepared records, whose temporary files are gone when the block ends."""
    outputs = Outputs(options, drafts)
    try:
        yield outputs
    finally:
        for spool in outputs.spools.values():
            with suppress(OSError):  # what the disk had no room for is not wanted any more
                spool.close()


def collect(outputs: Outputs, line: Line) -> None:
    """Take one more record.

    Raises:
        PrepareError: it cannot be written.
    """
    options = outputs.options
    forms = [("out", line.chatts)] * bool(options.out) + [("annotations", line.gdsh)] * bool(options.annotations)
    for name, record in forms:
        if options.split is None:
            _draft(outputs, name).add(record)
            continue
        target = options.outputs[name]
        if name not in outputs.spools:
            outputs.spools[name] = open_spool(target)
        with telling(target):
            outputs.spools[name].write(record)
        outputs.sizes.setdefault(name, []).append(len(record))
    if options.split is not None:
        outputs.digests.append(line.digests)
    outputs.records += 1


def part(outputs: Outputs) -> dict[str, int]:
    """Sort the records of a split into training and validation.

    Returns:
        How many records each output has, by the names of `Options.outputs`.

    Raises:
        PrepareError: a record cannot be written, or all records belong to one series.
    """
    options = outputs.options
    if options.split is not None:
        validates = choose_validation(outputs.digests, options.split, options.seed)
        if not any(validates):
            raise PrepareError(
                "--split: all records belong together by their series, so that none can be set apart for validation; "
                "add records of other series, or leave out --split"
            )
        for name, spool in outputs.spools.items():
            with telling(options.outputs[name]):
                spool.seek(0)
            for size, apart in zip(outputs.sizes[name], validates, strict=True):
                _draft(outputs, f"{name}_val" if apart else name).add(spool.read(size))
    return {name: draft.records for name, draft in outputs.by_name.items()}


def _draft(outputs: Outputs, name: str) -> Draft:
    if name not in outputs.by_name:
        target = outputs.options.outputs[name]
        draft = open_draft(outputs.drafts, target, a_list=name.startswith("annotations"))
        outputs.by_name[name] = draft
    return outputs.by_name[name]
