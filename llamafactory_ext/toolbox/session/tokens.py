"""The tokens that LLaMA-Factory makes of records, by what they stand for; their percentiles, and a histogram."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llamafactory_ext.data.entries import NOTES
from llamafactory_ext.series import PATCH_TOKEN
from llamafactory_ext.toolbox.session.framework import Tokenizer, tokenise
from llamafactory_ext.toolbox.session.recipe import Arguments
from llamafactory_ext.toolbox.session.records import BATCH, Part


PARTS = ("text", "series", "answer", "whole")

_EIGHTHS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of one record; the first three make up the whole."""

    text: int
    """Prompt and template: given to the model, not trained on."""
    series: int
    """Patches, one token each."""
    answer: int
    """Trained on."""

    @property
    def whole(self) -> int:
        return self.text + self.series + self.answer


def percentiles(values: Sequence[int]) -> dict[str, int]:
    """Returns min, median, p95, p99 and max of one or more values, each of them one of the values."""
    shares = {"min": 0.0, "median": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {name: percentile(values, share) for name, share in shares.items()}


def percentile(values: Sequence[int], share: float) -> int:
    """Returns the smallest of `values` that at least `share` of them do not exceed."""
    return int(np.percentile(np.asarray(values), 100 * share, method="inverted_cdf"))


def histogram(values: Sequence[int], limit: int | None, rows: int = 12, width: int = 50) -> list[str]:
    """Returns the lines of a histogram: from, to, a bar of at most `width` characters, and the count.

    A line of its own marks `limit`, the largest value that fits. Up to it, bins are of one round width; beyond it
    each is twice as wide as the one before, since a few answers are often ten times longer than all others.
    """
    edges = _edges(max(values), limit, rows)
    counts, _ = np.histogram(values, bins=[-0.5, *(edge + 0.5 for edge in edges[1:])])
    figures = len(str(edges[-1]))
    lines = []
    for low, high, count in zip(edges, edges[1:], counts.tolist(), strict=False):
        if low == limit:
            lines.append(f"{'':{2 * figures + 1}} ┄┄ cutoff_len {limit} ┄┄")
        first = low + 1 if low else 0
        lines.append(
            f"{first:>{figures}}–{high:<{figures}} {_bar(count / counts.max(), width)} {count or ''}".rstrip()
        )
    if limit is not None and limit >= max(values):
        lines.append(f"{'':{2 * figures + 1}} ┄┄ cutoff_len {limit}: all fit ┄┄")
    return lines


def _edges(largest: int, limit: int | None, rows: int) -> list[int]:
    """Returns where bins end, after a 0; the last edge is not below `largest`, and `limit` is an edge if it is."""
    if limit is None or largest <= limit:
        step = round_step(largest / rows)
        return list(range(0, largest + step, step))
    step = round_step(limit / rows)
    edges = [*range(0, limit, step), limit]
    while edges[-1] < largest:
        edges.append(edges[-1] + step)
        step *= 2
    return edges


def _bar(share: float, width: int) -> str:
    eighths = round(share * width * 8) or (1 if share else 0)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def round_step(step: float) -> int:
    """Returns the next number of 1, 2, 5, 10, 20, 50, …"""
    power = 1
    while True:
        for factor in (1, 2, 5):
            if factor * power >= step:
                return factor * power
        power *= 10


IGNORED = -100
"""The label of a token that is not trained on."""


def tokenise_part(part: Part, rows: Sequence[int], arguments: Arguments, tokenizer: Tokenizer) -> Any:
    """Returns rows of a part, tokenised in full by LLaMA-Factory.

    Raises:
        CheckError: see `framework.tokenise`.
    """
    # The whole part as it is, so that datasets finds it in its cache when the training run asks for the same.
    chosen = part.dataset if len(rows) == len(part.dataset) else part.dataset.select(rows)
    return tokenise(chosen.remove_columns([NOTES]), arguments, tokenizer)


def count_tokens(tokenised: Any, tokenizer: Tokenizer) -> list[Tokens]:
    """Returns the token lengths of each row of a tokenised data set."""
    patch = tokenizer.tokenizer.convert_tokens_to_ids(PATCH_TOKEN)
    counted = []
    arrow = tokenised.select_columns(["input_ids", "labels"]).with_format("arrow")
    for start in range(0, len(tokenised), BATCH):
        table = arrow[start : start + BATCH]
        ids, labels = (table[name].combine_chunks() for name in ("input_ids", "labels"))
        ends = np.cumsum([0, *ids.value_lengths().to_pylist()])
        patches = ids.flatten().to_numpy() == patch
        answers = (labels.flatten().to_numpy() != IGNORED) & ~patches
        for first, last in itertools.pairwise(ends.tolist()):
            series, answer = int(patches[first:last].sum()), int(answers[first:last].sum())
            counted.append(Tokens(last - first - series - answer, series, answer))
    return counted
