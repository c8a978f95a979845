"""The engine over transformers on the real tiny model, and the grammar that answers are kept to."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from llamafactory_ext.errors import UsageError
from llamafactory_ext.gdsh import Anomaly, write_answer
from llamafactory_ext.gdsh.grammar import answer_grammar
from llamafactory_ext.model.constrained import Grammars, rows_of_series
from llamafactory_ext.toolbox.detect.engines import Answer, Engine, Question, Settings, chat_text, open_engine


xgrammar = pytest.importorskip("xgrammar")


@pytest.fixture(scope="module")
def tokenizer(demo: Path) -> Any:
    return AutoTokenizer.from_pretrained(demo / "model")


@pytest.fixture(scope="module")
def matcher(tokenizer: Any) -> Any:
    """Says whether a text is an answer about a series of so many points."""
    compiler = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo.from_huggingface(tokenizer), max_threads=1)

    def accepts(points: int, text: str) -> bool:
        found = xgrammar.GrammarMatcher(
            compiler.compile_grammar(answer_grammar(points)), terminate_without_stop_token=True
        )
        return bool(found.accept_string(text)) and bool(found.is_terminated())

    return accepts


def fields() -> st.SearchStrategy[dict[str, object]]:
    words = st.text(alphabet='ab点{}[],:"\\\n\u2028', max_size=6)
    return st.fixed_dictionaries({"type": words}, optional={"reason": words})


@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
@given(st.integers(1, 5001), st.data())
def test_the_grammar_lets_through_what_fits_the_series_and_nothing_else(
    matcher: Any, points: int, data: st.DataObject
) -> None:
    rows = st.integers(0, points - 1)
    found = [
        Anomaly(data.draw(rows), data.draw(rows), data.draw(fields())) for _ in range(data.draw(st.integers(0, 3)))
    ]
    compact = data.draw(st.booleans())
    text = write_answer(found, compact=compact)
    assert matcher(points, text)
    assert not matcher(points, text[:-1])
    beyond = data.draw(st.integers(points, 12 * points))
    assert not matcher(points, write_answer([*found, Anomaly(0, beyond, {"type": "a"})], compact=compact))
    assert not matcher(points, write_answer([Anomaly(beyond, beyond, {})], compact=compact))


@pytest.mark.parametrize("points", [1, 2, 9, 10, 11, 100, 101, 110, 999, 1000])
def test_rows_are_all_numbers_below_the_length(matcher: Any, points: int) -> None:
    def said(row: str) -> str:
        return f'{{"status":"success","detected_anomalies":[{{"interval":[{row},{row}]}}]}}'

    assert [row for row in range(points + 25) if matcher(points, said(str(row)))] == list(range(points))
    assert not any(matcher(points, said(row)) for row in ("00", "01", "-1", "1.0", "", " 0", "1e0"))


@pytest.mark.parametrize("compact", [True, False])
def test_a_right_answer_is_never_turned_aside(tokenizer: Any, compact: bool) -> None:
    """Whatever token a right answer goes on with stays the likeliest, and the end is the end."""
    found = [Anomaly(3, 17, {"type": "点异常", "reason": "…"}), Anomaly(20, 29, {"type": '震荡"区间'})]
    size = len(tokenizer)
    kept = Grammars(tokenizer, size).processor([30])
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    ids = torch.tensor([[end]])
    for token in [*tokenizer(write_answer(found, compact=compact))["input_ids"], end]:
        scores = torch.zeros(1, size)
        scores[0, token] = 1.0
        scores = kept(ids, scores)
        assert int(scores.argmax()) == token
        assert (token == end) == bool(torch.isfinite(scores[0, end]))
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)


def questions() -> list[Question]:
    rng = np.random.default_rng(0)
    texts = ("<ts><ts/>\n请找出异常区间。", "Find the anomalies: <ts><ts/>", "<ts><ts/>")
    asked = [Question(texts[place % 3], (rng.normal(size=length),)) for place, length in enumerate((40, 7, 1, 130))]
    return [*asked, Question("<ts><ts/> <ts><ts/>", (rng.normal(size=20), rng.normal(size=33)))]


@pytest.fixture(scope="module")
def free(demo: Path) -> Engine:
    return open_engine("transformers", Settings(str(demo / "model"), max_new_tokens=24, constrained=False, batch=5))


def test_answers_of_a_batch_are_those_of_single_questions(demo: Path, free: Any) -> None:
    for engine in (free, open_engine("transformers", Settings(str(demo / "model"), max_new_tokens=40, batch=5))):
        together = engine.ask(questions())
        alone = [engine.ask([question])[0] for question in questions()]
        for one, other in zip(together, alone, strict=True):
            assert (one.text, one.tokens, one.is_whole) == (other.text, other.tokens, other.is_whole)
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
            assert one.text == "".join(one.tokens) and len(one.tokens) == len(one.logprobs)


def test_constrained_answers_begin_as_json_does(demo: Path) -> None:
    engine = open_engine("transformers", Settings(str(demo / "model"), max_new_tokens=40))
    start = '{"status":"success","detected_anomalies":['
    for answer in engine.ask(questions()):
        assert answer.text.replace(" ", "").startswith(start)
        assert answer.logprobs[0] == pytest.approx(0.0, abs=1.0)  # one of the few that begin it


def test_probabilities_are_the_models_own(free: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward pass over question and answer gives the same."""
    question, generated = questions()[0], []
    generate = free.model.generate

    def noting(**settings: Any) -> Any:
        generated.append(generate(**settings))
        return generated[-1]

    monkeypatch.setattr(free.model, "generate", noting)
    (answer,) = free.ask([question])
    begun = free.processor([chat_text(question.prompt)], list(question.series), add_special_tokens=False)
    (ids,), place = generated, begun["input_ids"].shape[1]
    assert torch.equal(ids[:, :place], begun["input_ids"])
    with torch.inference_mode():
        logits = free.model(input_ids=ids, timeseries=begun["timeseries"], use_cache=False).logits
    expected = torch.log_softmax(logits[0, place - 1 : -1], -1).gather(1, ids[0, place:, None])[:, 0]
    assert len(answer.logprobs) == len(answer.tokens) >= 20
    assert answer.logprobs == pytest.approx(expected.tolist()[: len(answer.logprobs)], abs=1e-4)


def test_sampled_answers_depend_on_the_seed_alone(free: Any) -> None:
    state = torch.get_rng_state()
    one, again, other = (free.ask(questions()[:2], 1.0, seed) for seed in (1, 1, 2))
    assert one == again != other and torch.equal(torch.get_rng_state(), state)


def test_what_can_not_be_asked_says_why(demo: Path, free: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected at most 8192"):
        free.ask([Question("<ts><ts/>", (np.zeros(9000),))])
    with pytest.raises(ValueError, match="control token"):
        free.ask([Question("<|im_end|><ts><ts/>", (np.zeros(9),))])
    with pytest.raises(UsageError, match="no engine"):
        open_engine("none", Settings("x"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.raises(UsageError, match="no ChatTS checkpoint"):
        open_engine("transformers", Settings(str(tmp_path)))


def test_the_template_writes_the_same_text(demo: Path, free: Any) -> None:
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments

    template = get_template_and_fix_tokenizer(free.tokenizer, DataArguments(template="chatts"))
    turns = [{"role": "user", "content": "有何异常？"}, {"role": "assistant", "content": ""}]
    ids, _ = template.encode_oneturn(free.tokenizer, turns)
    assert free.tokenizer.decode(ids) == chat_text("有何异常？")


def test_the_key_keeps_generate_to_the_grammar(demo: Path, free: Any) -> None:
    """What `constrained_answers` sets in predict, chat and API."""
    asked = questions()
    texts = [chat_text(one.prompt) for one in asked]
    inputs = free.processor(texts, [s for q in asked for s in q.series], padding=True, add_special_tokens=False)
    assert rows_of_series(free.model, inputs["input_ids"], inputs["timeseries"], 1) == [40, 7, 1, 130, 33]
    for none in (None, inputs["timeseries"][:0]):
        assert rows_of_series(free.model, inputs["input_ids"][:2], none, 2) == [0, 0, 0, 0]
    free.model.grammars = Grammars(free.tokenizer, free.model.config.vocab_size)
    try:
        found = free.model.generate(**inputs, max_new_tokens=30, do_sample=False, use_cache=True)
        with pytest.raises(ValueError, match="num_beams"):
            free.model.generate(**inputs, max_new_tokens=3, num_beams=2)
    finally:
        free.model.grammars = None
    for row in free.tokenizer.batch_decode(found[:, inputs["input_ids"].shape[1] :]):
        assert row.replace(" ", "").startswith('{"status":"success",')


def test_an_adapter_changes_the_answers(demo: Path, free: Any, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    engine = open_engine("transformers", Settings(str(demo / "model"), max_new_tokens=24, constrained=False))
    adapted = get_peft_model(engine.model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))  # type: ignore[attr-defined]
    adapted.save_pretrained(tmp_path)
    with_it = open_engine(
        "transformers", Settings(str(demo / "model"), str(tmp_path), max_new_tokens=24, constrained=False)
    )
    plain: list[Answer] = free.ask(questions()[:1])
    assert with_it.ask(questions()[:1])[0].logprobs != plain[0].logprobs
