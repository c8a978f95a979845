"""Answers kept to a grammar while they are generated, and the probability of every token that was taken."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from transformers import LogitsProcessor

from llamafactory_ext.gdsh.grammar import answer_grammar


_END_OF_TURN = "<|im_end|>"


class Grammars:
    """The grammars of answers for one tokenizer, compiled once for each length of series.

    Raises:
        ModuleNotFoundError: xgrammar is not installed.
    """

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        import xgrammar

        ends = {tokenizer.convert_tokens_to_ids(_END_OF_TURN), tokenizer.eos_token_id} - {None}
        known = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocab_size, stop_token_ids=sorted(ends))
        self._compiler = xgrammar.GrammarCompiler(known, max_threads=1)
        self._compile = lru_cache(maxsize=256)(lambda points: self._compiler.compile_grammar(answer_grammar(points)))

    def processor(self, points: Sequence[int]) -> LogitsProcessor:
        """Returns what keeps a batch to the grammar, one length of series for each row; good for one `generate`.

        Rows without series, of length 0, stay free.
        """
        from xgrammar.contrib.hf import LogitsProcessor as Constraint

        constraint = Constraint([self._compile(one) for one in points if one])
        return constraint if all(points) else _OfRows(constraint, [row for row, one in enumerate(points) if one])


class _OfRows(LogitsProcessor):  # type: ignore[misc]
    """Another processor, for some rows of a batch."""

    def __init__(self, inner: LogitsProcessor, rows: list[int]) -> None:
        self.inner, self.rows = inner, rows

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        rows = torch.tensor(self.rows, device=scores.device)
        return scores.index_copy(0, rows, self.inner(input_ids[rows], scores[rows]))


def rows_of_series(model: Any, inputs: torch.Tensor, timeseries: torch.Tensor | None, answers: int) -> list[int]:
    """Returns the points of the longest series of each row of a batch, `answers` times each; 0 for one without."""
    points = [0] * len(inputs)
    if timeseries is not None and timeseries.numel():
        lengths = timeseries.reshape(len(timeseries), -1, 2)[..., 1].long().sum(1)
        patches = (lengths - 1) // model.ts_encoder.patch_size + 1
        ends = (inputs == model.config.ts_token_start_index).sum(1).cumsum(0)
        rows = torch.searchsorted(ends, patches.cumsum(0).to(ends.device))
        for row, length in zip(rows.tolist(), lengths.tolist(), strict=True):
            points[row] = max(points[row], length)
    return [one for one in points for _ in range(answers)]


class Probabilities(LogitsProcessor):  # type: ignore[misc]
    """Notes the log-probability of each token that is taken, without keeping the scores of all others.

    Stands last among the processors, so that it sees what the token is chosen from.
    """

    def __init__(self) -> None:
        self.taken: list[torch.Tensor] = []
        self._last: torch.Tensor | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self.note(input_ids)
        self._last = torch.log_softmax(scores.float(), dim=-1)
        return scores

    def note(self, input_ids: torch.Tensor) -> None:
        """Takes the last tokens of the rows, chosen from the scores seen last."""
        if self._last is not None:
            self.taken.append(self._last.gather(1, input_ids[:, -1:]).squeeze(1).cpu())
            self._last = None
