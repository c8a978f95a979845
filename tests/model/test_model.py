"""The model: losses, gradients, padding, packing and generation of both families."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers_model import (
    FAMILIES,
    PAD,
    TS_START,
    VOCABULARY,
    build,
    gradients,
    inputs,
    labels_for,
    record,
)


# One record without series, one with a single point, several of unequal length.
RECORDS = (record(1, 30), record(2), record(3, 1, 100, 17, text=3), record(4, 8, 8))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def model(family: str) -> Any:
    return build(family)


def full_loss(model: Any, batch: dict[str, Any], labels: torch.Tensor, items: int | None = None) -> torch.Tensor:
    """Cross entropy over the logits of every position."""
    logits = model(**batch).logits
    assert logits.shape == (*labels.shape, VOCABULARY)
    labels = labels.masked_fill(batch["input_ids"] == TS_START, -100)
    shifted = logits[:, :-1].reshape(-1, VOCABULARY), labels[:, 1:].reshape(-1)
    if items is None:
        return F.cross_entropy(*shifted, ignore_index=-100)
    return F.cross_entropy(*shifted, ignore_index=-100, reduction="sum") / items


def same_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = max(1.0, float(gradient.abs().max()))
        assert float((found[name] - gradient).abs().max()) <= tolerance * scale, name


def logits_of_rows(model: Any, batch: dict[str, Any]) -> list[torch.Tensor]:
    with torch.no_grad():
        logits = model(**batch).logits
    return [row[mask.bool()] for row, mask in zip(logits, batch["attention_mask"], strict=True)]


# Loss


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("items", [None, 7])
def test_loss_and_gradients_equal_those_over_all_logits(model, side, items):
    model.train()
    batch = inputs(*RECORDS, side=side)
    labels = labels_for(batch)
    expected = full_loss(model, batch, labels, items)
    expected.backward()
    expected_gradients = gradients(model)
    assert expected_gradients.keys() == dict(model.named_parameters()).keys()

    output = model(**batch, labels=labels, **({} if items is None else {"num_items_in_batch": items}))
    assert output.logits is None
    assert abs(output.loss.item() - expected.item()) <= 1e-6 * max(1.0, expected.item())
    output.loss.backward()
    same_gradients(gradients(model), expected_gradients)


def test_number_of_items_may_be_a_tensor(model):
    batch = inputs(RECORDS[0])
    labels = labels_for(batch)
    seven = model(**batch, labels=labels, num_items_in_batch=torch.tensor(7)).loss
    assert seven.item() == pytest.approx(full_loss(model, batch, labels, 7).item(), abs=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_labels_at_series_are_ignored(model, training):
    model.train(training)
    batch = inputs(*RECORDS)
    labels = labels_for(batch)
    noisy = torch.where(batch["input_ids"] == TS_START, torch.tensor(11), labels)
    assert not torch.equal(noisy, labels)
    with torch.no_grad():
        assert float(model(**batch, labels=noisy).loss) == float(model(**batch, labels=labels).loss)


def test_evaluation_with_labels_returns_all_logits(model):
    batch = inputs(*RECORDS)
    labels = labels_for(batch)
    with torch.no_grad():
        output = model(**batch, labels=labels)
        expected = full_loss(model, batch, labels)
        assert torch.equal(output.logits, model(**batch).logits)
    assert output.logits.shape == (*labels.shape, VOCABULARY)
    assert abs(float(output.loss) - float(expected)) <= 1e-6 * float(expected)


@pytest.mark.parametrize("keep", [1, 3, torch.tensor([0, 2])])
def test_logits_to_keep(model, keep):
    batch = inputs(*RECORDS)
    with torch.no_grad():
        every = model(**batch).logits
        some = model(**batch, logits_to_keep=keep).logits
    expected = every[:, -keep:] if isinstance(keep, int) else every[:, keep]
    torch.testing.assert_close(some, expected, rtol=0, atol=1e-5)


def test_no_kept_label_gives_zero_loss_and_zero_gradients(model):
    model.train()
    batch = inputs(*RECORDS)
    loss = model(**batch, labels=torch.full_like(batch["input_ids"], -100)).loss
    assert loss.item() == 0.0
    loss.backward()
    found = gradients(model)
    assert found.keys() == dict(model.named_parameters()).keys(), "other processes wait for every gradient"
    assert all(not gradient.any() for gradient in found.values())


def test_no_kept_label_is_zero_in_float16_too(family):
    model = build(family).train().half()
    ids = torch.full((1, 60), 5)  # one token: all positions have the same hidden state
    with torch.no_grad():
        hidden = model.model(input_ids=ids).last_hidden_state[0, 0]
        model.model.norm.weight.mul_(40 * hidden.sign())  # now each adds to the sum, past 65504
        hidden = model.model(input_ids=ids).last_hidden_state
        model.lm_head.weight.copy_(10 * hidden[0, 0].sign().expand_as(model.lm_head.weight))
        assert not torch.isfinite(hidden.sum())
        assert not torch.isfinite(model.lm_head(hidden[:, :1]).sum())
    assert float(model(input_ids=ids, labels=torch.full_like(ids, -100)).loss.detach()) == 0.0


# Batches


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_equals_its_records(model, side):
    rows = logits_of_rows(model, inputs(*RECORDS, side=side))
    for row, one in zip(rows, RECORDS, strict=True):
        alone = logits_of_rows(model, inputs(one))[0]
        torch.testing.assert_close(row, alone, rtol=0, atol=2e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_gradients_of_a_batch_are_those_of_its_records(model, side):
    model.train()
    batch = inputs(*RECORDS, side=side)
    labels = labels_for(batch)
    items = int((labels[:, 1:] != -100).sum())
    model(**batch, labels=labels, num_items_in_batch=items).loss.backward()
    together = gradients(model)
    for one in RECORDS:
        alone = inputs(one)
        model(**alone, labels=labels_for(alone), num_items_in_batch=items).loss.backward()
    same_gradients(together, gradients(model), 1e-5)


def test_order_of_series_matters(model):
    batch = inputs(RECORDS[3])
    swapped = batch | {"timeseries": batch["timeseries"].flip(0)}
    assert not torch.allclose(logits_of_rows(model, batch)[0], logits_of_rows(model, swapped)[0], atol=1e-3)


def test_packed_records_equal_unpacked_ones(model):
    joint = sum(RECORDS[1:], RECORDS[0])
    batch = inputs(joint)
    sizes = [len(one.ids) for one in RECORDS]
    number = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    seen = (number[:, None] == number[None, :]).tril()
    batch["attention_mask"] = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None]
    batch["position_ids"] = torch.cat([torch.arange(size) for size in sizes])[None]

    with torch.no_grad():
        packed = model(**batch).logits[0].split(sizes)
    for piece, one in zip(packed, RECORDS, strict=True):
        torch.testing.assert_close(piece, logits_of_rows(model, inputs(one))[0], rtol=0, atol=2e-5)

    # the loss too: the first label of each record is not to be learnt, so nothing is predicted across records
    model.train()
    labels = torch.cat([labels_for(inputs(one))[0] for one in RECORDS])[None]
    items = int((labels != -100).sum())
    loss = model(**batch, labels=labels, num_items_in_batch=items).loss
    loss.backward()
    packed_gradients = gradients(model)
    total = 0.0
    for one in RECORDS:
        alone = inputs(one)
        single = model(**alone, labels=labels_for(alone), num_items_in_batch=items).loss
        single.backward()
        total += single.item()
    assert loss.item() == pytest.approx(total, abs=1e-5)
    same_gradients(packed_gradients, gradients(model), 1e-5)


def test_positions_are_those_given(model):
    """Only the distances between positions show in the logits, so these are stretched."""
    batch = inputs(RECORDS[0])
    place = torch.arange(batch["input_ids"].shape[1])[None]
    with torch.no_grad():
        plain = model(**batch).logits
        shifted = model(**batch, position_ids=place + 100).logits
        stretched = model(**batch, position_ids=place * 5).logits
        # The mask goes along: without one, transformers takes jumps in the positions for packed records.
        embeds = {"inputs_embeds": model._embed(batch["input_ids"], batch["timeseries"])}
        hidden = model.model(**embeds, attention_mask=batch["attention_mask"], position_ids=place * 5)
        expected = model.lm_head(hidden.last_hidden_state)
    torch.testing.assert_close(shifted, plain, rtol=0, atol=1e-4)
    assert not torch.allclose(stretched, plain, atol=1e-2)
    torch.testing.assert_close(stretched, expected, rtol=0, atol=1e-5)


def test_sdpa_equals_eager(family):
    eager, sdpa = build(family, "eager"), build(family, "sdpa")
    for side in ("left", "right"):
        batch = inputs(*RECORDS, side=side)
        rows = zip(logits_of_rows(eager, batch), logits_of_rows(sdpa, batch), strict=True)
        for one, other in rows:
            torch.testing.assert_close(one, other, rtol=0, atol=2e-5)


def test_bfloat16_weights_take_the_float16_series(family):
    model = build(family).bfloat16()
    batch = inputs(*RECORDS)
    with torch.no_grad():
        output = model(**batch, labels=labels_for(batch))
    assert output.logits.dtype == torch.bfloat16
    assert torch.isfinite(output.loss)


# Faults


def test_markers_and_patches_that_differ(model):
    batch = inputs(RECORDS[0])
    batch["input_ids"][0, 6] = 5  # one <ts> fewer
    with pytest.raises(ValueError, match=r"hold 3 <ts> tokens, the 1 series have 4 patches \(\[4\].*series\.expand"):
        model(**batch)


@pytest.mark.parametrize("timeseries", [None, torch.zeros(0, 0, 1)])
def test_markers_without_series(model, timeseries):
    batch = inputs(RECORDS[0]) | {"timeseries": timeseries}
    with pytest.raises(ValueError, match=r"hold <ts> tokens but no `timeseries` came with them; pass the series"):
        model(**batch)


def test_nothing_to_run_on(model):
    with pytest.raises(ValueError, match=r"neither input_ids nor inputs_embeds"):
        model()


def test_series_tokens_of_a_short_prompt(model):
    with pytest.raises(ValueError, match="hold <ts> tokens but no `timeseries`"):
        model(input_ids=torch.tensor([[5, TS_START]]))
    model(input_ids=torch.tensor([[TS_START]]))  # an answer's own


@pytest.mark.parametrize("cache", [True, False])
def test_the_next_token_is_chosen_among_numbers(model, cache):
    """Looked at where a token is chosen: at the end of what runs with a cache."""
    batch = inputs(RECORDS[0])
    embeds = model._embed(batch["input_ids"], batch["timeseries"]).detach()
    embeds[:, -1] = torch.nan
    given = {"inputs_embeds": embeds, "use_cache": cache}
    if not cache:
        assert not bool(model(**given).logits[:, -1].isfinite().any())
        return
    with pytest.raises(FloatingPointError, match=r"next token's logits are not finite; .* of the decoder's layers"):
        model(**given)
    model(**given, labels=labels_for(batch))
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    with pytest.raises(FloatingPointError, match=r"next token's logits are not finite; .* of the head, in torch\.f"):
        model(**batch, use_cache=True)


FLOAT16 = "in torch.float16. Stopped: float16 ends at 65504: set"
LEARN = "lower `learning_rate`, and check that the checkpoint's weights"


@pytest.mark.parametrize(
    ("weight", "autocast", "training", "said"),
    [
        (torch.float16, None, True, f"{FLOAT16} `bf16: true` instead of `fp16` (Ampere and later), or `upcast_layern"),
        (torch.float16, None, False, f"{FLOAT16} `infer_dtype: bfloat16` (Ampere and later), or `upcast_layernorm: "),
        (torch.float32, torch.float16, True, f"{FLOAT16} `bf16: true` instead of `fp16`"),
        (torch.float32, torch.bfloat16, True, f"in torch.bfloat16. Stopped: {LEARN}"),
        (torch.bfloat16, torch.float16, False, "in torch.bfloat16. Stopped: check that the checkpoint's weights are"),
        (torch.float32, None, True, f"in torch.float32. Stopped: {LEARN} are finite and the series' too."),
    ],
)
def test_what_is_said_of_numbers_that_are_none(weight, autocast, training, said):
    from llamafactory_ext.model.modeling import _describe

    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        for hidden, where in ((1.0, "the head"), (torch.nan, "the decoder's layers")):
            found = _describe("so", torch.full((2,), hidden), torch.zeros(1, dtype=weight), training)
            assert found.startswith(f"so; what is not finite comes out of {where}, {said}")


# Batches without series


@pytest.mark.parametrize("timeseries", [None, torch.zeros(0, 0, 1)])
def test_text_alone_still_gives_the_encoder_gradients(model, timeseries):
    batch = inputs(RECORDS[1]) | {"timeseries": timeseries}
    labels = labels_for(batch)
    with torch.no_grad():
        expected = full_loss(model, batch, labels)
    model.train()
    loss = model(**batch, labels=labels).loss
    assert loss.item() == pytest.approx(float(expected), abs=1e-6)
    loss.backward()
    found = gradients(model)
    for name, _ in model.ts_encoder.named_parameters():
        assert not found[f"ts_encoder.{name}"].any(), name
    assert any(gradient.any() for gradient in found.values())


def test_text_alone_leaves_a_frozen_encoder_out(model, monkeypatch):
    model.train()
    model.ts_encoder.requires_grad_(False)
    monkeypatch.setattr(model.ts_encoder, "forward", lambda *_: pytest.fail("the encoder ran"))
    batch = inputs(RECORDS[1])
    assert torch.isfinite(model(**batch, labels=labels_for(batch)).loss)


# Gradient checkpointing


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("only_encoder", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(model, reentrant, only_encoder):
    model.train()
    if only_encoder:
        model.requires_grad_(False)
        model.ts_encoder.requires_grad_(True)
    batch = inputs(*RECORDS)
    labels = labels_for(batch)
    model(**batch, labels=labels).loss.backward()
    plain = gradients(model)
    assert plain

    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    runs = []
    model.model.layers[0].self_attn.register_forward_pre_hook(lambda *_: runs.append(1))
    model(**batch, labels=labels).loss.backward()
    assert len(runs) == 2, "the layer ran again in the backward pass"
    same_gradients(gradients(model), plain)


def test_gradient_checkpointing_with_inputs_made_to_require_gradients(model):
    model.train()
    batch = inputs(*RECORDS)
    labels = labels_for(batch)
    model(**batch, labels=labels).loss.backward()
    plain = gradients(model)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model(**batch, labels=labels).loss.backward()
    same_gradients(gradients(model), plain)


# Generation

NEW = 8


def greedy(model: Any, batch: dict[str, Any], steps: int = NEW) -> list[int]:
    """The most likely answer, each token from a run over everything before it."""
    ids = batch["input_ids"]
    series = {"timeseries": batch["timeseries"]} if "timeseries" in batch else {}
    for _ in range(steps):
        with torch.no_grad():
            following = model(input_ids=ids, use_cache=False, **series).logits[0, -1].argmax()
        ids = torch.cat([ids, following.view(1, 1)], dim=1)
    answer: list[int] = ids[0, -steps:].tolist()
    return answer


def answers(model: Any, batch: dict[str, Any], **options: Any) -> list[list[int]]:
    options = {"do_sample": False, "max_new_tokens": NEW, "use_cache": True} | options
    with torch.no_grad():
        ids = model.generate(**batch, **options)
    found: list[list[int]] = ids[:, batch["input_ids"].shape[1] :].tolist()
    return found


@pytest.mark.parametrize("which", range(len(RECORDS)))
def test_generation_with_cache_without_and_by_hand(model, which):
    batch = inputs(RECORDS[which])
    expected = greedy(model, batch)
    assert answers(model, batch) == [expected]
    assert answers(model, batch, use_cache=False) == [expected]


def test_series_are_encoded_once_an_answer(model, monkeypatch):
    runs = []
    model.ts_encoder.register_forward_hook(lambda *_: runs.append(1))
    answers(model, inputs(RECORDS[0]))
    assert len(runs) == 1


def test_a_batch_generates_what_its_records_do(model):
    expected = [answers(model, inputs(one))[0] for one in RECORDS]
    assert len({tuple(answer) for answer in expected}) == len(RECORDS)
    assert answers(model, inputs(*RECORDS)) == expected
    assert answers(model, inputs(*RECORDS), use_cache=False) == expected


# Two series a row, as many patches in one row as in the other: only their order tells which row they belong to.
LIKE = (record(5, 40, 9), record(6, 9, 40), record(7, 17, 30))


@pytest.mark.parametrize("records", [RECORDS, LIKE])
@pytest.mark.parametrize("cache", [True, False])
def test_several_answers_keep_series_with_their_row(model, records, cache):
    options = {"do_sample": True, "top_k": 1, "num_return_sequences": 3, "use_cache": cache}
    expected = [answers(model, inputs(one))[0] for one in records for _ in range(3)]
    assert answers(model, inputs(*records), **options) == expected


@pytest.mark.parametrize("records", [RECORDS, LIKE])
def test_beams_keep_series_with_their_row(model, records):
    options = {"num_beams": 3, "num_return_sequences": 2}
    expected = [answer for one in records for answer in answers(model, inputs(one), **options)]
    assert answers(model, inputs(*records), **options) == expected


def test_an_answer_may_hold_the_series_token(model):
    """A model that says ``<ts>`` itself goes on; it is a token like any other then."""
    with torch.no_grad():
        model.lm_head.weight.zero_()
    model.generation_config.suppress_tokens = [token for token in range(VOCABULARY) if token != TS_START]
    assert answers(model, inputs(RECORDS[0])) == [[TS_START] * NEW]


def test_padding_takes_no_part(model):
    batch = inputs(RECORDS[0], RECORDS[2])
    changed = batch | {"input_ids": torch.where(batch["input_ids"] == PAD, torch.tensor(9), batch["input_ids"])}
    for one, other in zip(logits_of_rows(model, batch), logits_of_rows(model, changed), strict=True):
        assert torch.equal(one, other)
