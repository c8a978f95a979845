"""What `drift.py` says of weights in fewer bits: nothing of the same model, and what the formula says of others."""

import copy

import drift
import pytest
import torch
from held_out import draw

from llamafactory_ext.model import Qwen2TSForCausalLM, read_config
from llamafactory_ext.toolbox.demo.writing import MINI


@pytest.fixture(scope="module")
def model() -> Qwen2TSForCausalLM:
    config = read_config(str(MINI))
    return Qwen2TSForCausalLM.from_pretrained(MINI, config=config, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def asked() -> drift.Asked:
    return drift.Asked(MINI, draw("plain", 4, 3, every_type=True))


@torch.no_grad()
def test_a_model_has_not_moved_from_itself_and_in_4_bit_it_has(model, asked):
    answers = asked.answers(model)
    logits = list(asked.logits(model, answers))
    same = asked.compare(copy.deepcopy(model), answers, logits)
    assert (same.nats, same.choices, same.answers) == (pytest.approx(0, abs=1e-9), 0, 0)
    assert same.event_f1 == asked.event_f1(answers) > 0.3

    rounded = drift.round_to_nf4(copy.deepcopy(model))
    found = asked.compare(rounded, answers, logits)
    ours = torch.cat(list(asked.logits(rounded, answers))).double().softmax(-1)
    before = torch.cat(logits).double().softmax(-1)
    assert found.nats == pytest.approx(float((before * (before / ours).log()).sum(-1).mean()), rel=1e-3)
    assert found.choices == pytest.approx(float((ours.argmax(-1) != before.argmax(-1)).double().mean()))
    assert 1e-4 < found.nats < 0.1


@torch.no_grad()
def test_logits_are_those_of_each_record_alone(model, asked):
    """Records of a batch are filled up on the left, their answers on the right: neither is compared."""
    answers = asked.answers(model)
    together = torch.cat(list(asked.logits(model, answers)))
    tokenizer, at = asked.processor.tokenizer, 0
    for record, answer in zip(asked.records, answers[0], strict=True):
        turn = [{"role": "user", "content": record["input"]}]
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        inputs = asked.processor([text], record["timeseries"], add_special_tokens=False)
        length = (answer == tokenizer.eos_token_id).int().argmax().item() + 1
        ids = torch.cat([inputs["input_ids"], answer[None, :length]], dim=1)
        alone = model(input_ids=ids, timeseries=inputs["timeseries"], use_cache=False).logits[0, -length - 1 : -1]
        torch.testing.assert_close(together[at : at + length], alone, rtol=0, atol=2e-4)
        at += length
    assert at == len(together)


def test_each_way_changes_what_it_says(model):
    layers = len(model.model.layers)
    names = dict(drift.ways(model, parts=True))
    assert len(names) == 3 + len(drift.KINDS) + layers

    def moved(way: str) -> set[str]:
        made = dict(drift.projections(names[way]()))
        return {name for name, linear in drift.projections(model) if not torch.equal(linear.weight, made[name].weight)}

    every = {name for name, _ in drift.projections(model)}
    assert len(every) == 7 * layers and moved("NF4") == every
    assert every - moved("NF4 but o_proj") == {name for name in every if name.endswith("o_proj")}
    assert every - moved("NF4 but layer 2") == {name for name in every if name.startswith("2.")}
    linear = model.model.layers[0].mlp.up_proj
    error = linear.weight - dict(drift.projections(names["NF4"]()))["0.mlp.up_proj"].weight
    blocks = linear.weight.reshape(-1, 64).abs().amax(1)
    # Sixteen values; the widest gap between two of them is 0.31 of a block's largest number.
    assert error.reshape(-1, 64).abs().amax(1).div(blocks).max() < 0.16 + 1e-2
