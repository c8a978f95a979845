"""What the benchmark of answers runs: the same batches both ways, and no figures where the answers differ."""

from pathlib import Path

import predict
import pytest


pytestmark = pytest.mark.filterwarnings("ignore")  # LLaMA-Factory's own


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> predict.Answers:
    """Three records in batches of two, three tokens each, through `llamafactory-cli`."""
    folder = tmp_path_factory.mktemp("predict")
    predict.make_records(folder)
    found = predict.Answers(folder, batch=2, new_tokens=3, records=3)
    assert found.predict() > 0
    return found


def test_both_ways_answer_the_same_batches(answers: predict.Answers) -> None:
    assert [len(kwargs["input_ids"]) for kwargs, _ in answers.batches] == [2, 1]
    for kwargs, found in answers.batches:
        assert (kwargs["max_new_tokens"], kwargs["do_sample"], kwargs["use_cache"]) == (3, False, True)
        assert len(kwargs["timeseries"]) >= len(kwargs["input_ids"])
        assert kwargs["input_ids"].shape[1] < found.shape[1] <= kwargs["input_ids"].shape[1] + 3
    assert answers.generate() > 0
    assert (Path(answers.model).parents[1] / "answers/generated_predictions.jsonl").read_text().count("\n") == 3


def test_other_answers_are_not_compared(answers: predict.Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    kwargs, found = answers.batches[0]
    monkeypatch.setattr(answers, "batches", [(kwargs, found + 1), *answers.batches[1:]])
    with pytest.raises(RuntimeError, match="other answers than LLaMA-Factory"):
        answers.generate()
