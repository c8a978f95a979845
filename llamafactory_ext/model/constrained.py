"""Answers kept to a grammar while they are generated, and the probability of every token that was taken."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from transformers import LogitsProcessor

from llamafactory_ext.gdsh.grammar import answer_grammar


class Grammars:
    """The grammars of answers for one tokenizer, compiled once for each length of series.

    Raises:
        ModuleNotFoundError: xgrammar is not installed.
    """

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        import xgrammar

        known = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocab_size)
        self._compiler = xgrammar.GrammarCompiler(known, max_threads=1)
        self._compile = lru_cache(maxsize=256)(lambda points: self._compiler.compile_grammar(answer_grammar(points)))

    def processor(self, points: Sequence[int]) -> LogitsProcessor:
        """Returns what keeps a batch to the grammar, one length of series for each row; good for one `generate`."""
        from xgrammar.contrib.hf import LogitsProcessor as Constraint

        return Constraint([self._compile(one) for one in points])


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
