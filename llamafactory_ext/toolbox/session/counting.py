"""Counts the tokens that LLaMA-Factory makes of records, by what they stand for."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from llamafactory_ext.data.entries import NOTES
from llamafactory_ext.series import PATCH_TOKEN
from llamafactory_ext.toolbox.session.lengths import Tokens
from llamafactory_ext.toolbox.session.reading import BATCH, Part
from llamafactory_ext.toolbox.session.recipe import Arguments
from llamafactory_ext.toolbox.session.upstream import Tokenizer, tokenise


IGNORED = -100
"""The label of a token that is not trained on."""


def tokenise_part(part: Part, rows: Sequence[int], arguments: Arguments, tokenizer: Tokenizer) -> Any:
    """Returns rows of a part, tokenised in full by LLaMA-Factory.

    Raises:
        CheckError: see `upstream.tokenise`.
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
