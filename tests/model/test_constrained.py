"""Which rows of a batch are kept to a grammar of which length, and how sure each token was."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers_model import PAD, TS_START, build, inputs, record
from transformers import GenerationConfig, LogitsProcessor

from llamafactory_ext.model.constrained import Probabilities, _OfRows, rows_of_series


BATCH = inputs(record(1, 30), record(2), record(3, 1, 8, 17), record(4, 9, 5))


class Favour(LogitsProcessor):  # type: ignore[misc]
    """Makes one token the likeliest, and notes how many rows there are."""

    def __init__(self, token: int) -> None:
        self.token, self.rows = token, list[int]()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.rows.append(len(input_ids))
        return torch.full_like(scores, -9.0).index_fill(1, torch.tensor([self.token]), 9.0)


@pytest.fixture
def model() -> Any:
    """One whose grammars note what they are asked for."""
    model = build("qwen2")
    model.asked = []
    model.grammars = SimpleNamespace(processor=lambda points: model.asked.append(points) or Favour(5))
    return model


def test_longest_series_of_each_row() -> None:
    model = build("qwen2")
    ids, series = BATCH["input_ids"], BATCH["timeseries"]
    assert rows_of_series(model, ids, series, 1) == [30, 0, 17, 9]
    assert rows_of_series(model, ids, series, 2) == [30, 30, 0, 0, 17, 17, 9, 9]
    assert rows_of_series(model, ids, None, 1) == [0] * 4
    assert rows_of_series(model, ids, torch.zeros(0, 0, 1), 1) == [0] * 4


def test_only_some_rows() -> None:
    favour = Favour(2)
    scores = torch.zeros(4, 6)
    found = _OfRows(favour, [0, 3])(BATCH["input_ids"], scores)
    assert favour.rows == [2] and not scores.any()
    assert found.tolist() == [[-9, -9, 9, -9, -9, -9], [0] * 6, [0] * 6, [-9, -9, 9, -9, -9, -9]]


def test_log_probabilities_of_what_was_taken() -> None:
    noted = Probabilities()
    ids = torch.tensor([[7, 7], [7, 7]])
    scores = torch.tensor([[0.0, 0.0, -torch.inf], [1.0, 1.0, 1.0]])
    assert noted(ids, scores) is scores and noted.taken == []
    noted(torch.tensor([[7, 7, 1], [7, 7, 2]]), scores)
    noted.note(torch.tensor([[7, 7, 1, 0], [7, 7, 2, 1]]))
    noted.note(torch.tensor([[7, 7, 1, 0, 2], [7, 7, 2, 1, 2]]))  # of no scores since
    halves, thirds = -0.693147, -1.098612
    torch.testing.assert_close(torch.stack(noted.taken), torch.tensor([[halves, thirds]] * 2))


@pytest.mark.parametrize("positional", [True, False])
def test_answers_about_series_are_kept_to_their_grammar(model: Any, positional: bool) -> None:
    """After what else is asked of the logits; each row's length as often as it has answers."""
    series, before = {"timeseries": BATCH["timeseries"], "attention_mask": BATCH["attention_mask"]}, Favour(4)
    ids: Any = {} if positional else {"input_ids": BATCH["input_ids"]}
    first = (BATCH["input_ids"],) if positional else ()
    given = {"max_new_tokens": 2, "do_sample": True, "top_k": 1, "pad_token_id": PAD}
    output = model.generate(*first, **ids, **series, **given, num_return_sequences=2, logits_processor=[before])
    assert model.asked == [[30, 30, 0, 0, 17, 17, 9, 9]] and before.rows == [8, 8]
    assert output[:, -2:].tolist() == [[5, 5]] * 8
    settings = GenerationConfig(**given, num_return_sequences=3, eos_token_id=None)
    model.generate(*first, generation_config=settings, **ids, **series)
    assert [len(points) for points in model.asked] == [8, 12]


def test_who_stays_free(model: Any) -> None:
    text = inputs(record(2))
    output = model.generate(**text, max_new_tokens=2, do_sample=False)
    assert model.asked == [] and output[:, -2:].tolist() != [[5, 5]]
    model.grammars = None
    output = model.generate(**BATCH, max_new_tokens=1, do_sample=False, num_beams=2)
    assert len(output) == 4


def test_beams_are_refused(model: Any) -> None:
    for more in ({"num_beams": 2}, {"generation_config": GenerationConfig(num_beams=2, max_new_tokens=1)}):
        with pytest.raises(ValueError, match=r"^`constrained_answers` does not go with `num_beams`; set it to 1$"):
            model.generate(**BATCH, **more)
    model.generate(**BATCH, max_new_tokens=1, num_beams=1, do_sample=False)
    assert len(model.asked) == 1 and TS_START in BATCH["input_ids"]


def test_grammars_of_a_tokenizer() -> None:
    """The real thing: an answer begins as JSON, and ends with the turn."""
    pytest.importorskip("xgrammar")
    from transformers import AutoTokenizer

    from llamafactory_ext.model.constrained import Grammars
    from llamafactory_ext.toolbox.demo.writing import MINI

    tokenizer = AutoTokenizer.from_pretrained(MINI)
    size = len(tokenizer)
    grammars = Grammars(tokenizer, size)
    ids, scores = torch.tensor([[1, 2], [1, 2]]), torch.zeros(2, size)
    both, one = grammars.processor([30, 40]), grammars.processor([0, 40])
    assert not isinstance(both, _OfRows) and isinstance(one, _OfRows)
    first, second = both(ids, scores.clone()), one(ids, scores.clone())
    allowed = {tokenizer.decode([token])[:1] for token in first[0].isfinite().nonzero().flatten().tolist()}
    assert allowed == {"{"} and torch.equal(first[0], first[1])
    assert torch.equal(second[0], scores[0]) and torch.equal(second[1], first[1])
