"""What saves memory or time changes no loss and no gradient beyond float rounding, in float32, for both families."""

import copy
from typing import Any

import pytest
import torch
from helpers_model import FAMILIES, build, gradients, inputs, labels_for, record
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from llamafactory_ext.model import attention, host_embedding, loss


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def batch() -> dict[str, torch.Tensor]:
    records = inputs(record(1, 40, 17), record(2, 9), record(3, 25, text=11), side="right")
    return records | {"labels": labels_for(records)}


def trained(family: str, **changes: Any) -> Any:
    """A model in training with reentrant checkpoints, as LLaMA-Factory sets them up; the embedding is frozen."""
    model = build(family, attention="sdpa", **changes).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    model.get_input_embeddings().requires_grad_(False)
    return model


def step(model: Any, inputs: dict[str, torch.Tensor]) -> tuple[float, dict[str, torch.Tensor]]:
    found = model(**inputs).loss
    found.backward()
    return float(found.detach()), gradients(model)


def check_same(model: Any, plain: Any) -> None:
    """One step of each: same loss, same gradients of the same weights."""
    (found, ours), (expected, theirs) = step(model, batch()), step(plain, batch())
    assert found == pytest.approx(expected, rel=1e-6)
    assert ours.keys() == theirs.keys()
    assert any(name.startswith("ts_encoder") for name in ours)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)


# The loss in pieces


def test_processes_agree_on_the_number_of_pieces_under_zero3_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere each has its own number, and waiting for one another would cost, or hang where one has no labels."""
    asked = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, op: asked.append(int(tensor)))
    hidden, targets = torch.randn(6, 4, requires_grad=True), torch.zeros(6, dtype=torch.long)
    for zero3 in (False, True):
        monkeypatch.setattr(loss, "is_deepspeed_zero3_enabled", lambda zero3=zero3: zero3)
        loss.summed_in_pieces(lambda rows, _: rows.sum(), hidden, targets, 11, head_is_trained=True)
        assert len(asked) == zero3


@pytest.mark.parametrize(("head_is_trained", "sizes"), [(True, [0, 0, 0, 0, 6]), (False, [0, 0, 2, 2, 2])])
def test_pieces_under_zero3(head_is_trained: bool, sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as the process with the most has; all labels at once where the head's gradient is reduced once."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, op: tensor.fill_(5))
    monkeypatch.setattr(loss, "is_deepspeed_zero3_enabled", lambda: True)
    monkeypatch.setattr(loss, "labels_at_once", lambda vocab_size: 2)
    hidden, targets, seen = torch.randn(6, 4, requires_grad=True), torch.zeros(6, dtype=torch.long), list[int]()
    found = loss.summed_in_pieces(
        lambda rows, own: seen.append(len(own)) or rows.sum(), hidden, targets, 11, head_is_trained=head_is_trained
    )
    assert seen == sizes
    torch.testing.assert_close(found, hidden.sum())
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    seen.clear()
    loss.summed_in_pieces(
        lambda rows, own: seen.append(len(own)) or rows.sum(), hidden, targets, 11, head_is_trained=head_is_trained
    )
    assert seen == [size for size in sizes if size]


@pytest.mark.parametrize("size", [1, 2, 7, 16, 10_000])
def test_loss_in_pieces(family: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = trained(family), []
    model.lm_head.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    monkeypatch.setattr(loss, "labels_at_once", lambda vocab_size: size)
    (found, ours) = step(model, batch())
    kept = int(count_kept(batch()))
    forward = rows[: -(-kept // size)]
    assert sum(forward) == kept and max(rows) <= size  # never more logits at once
    assert len(rows) == 2 * len(forward) - 1  # each piece a second time for its gradient, but for the last one,
    assert max(forward) - min(forward) <= 1  # and none of a few labels only
    plain = trained(family)
    logits = plain(**{key: value for key, value in batch().items() if key != "labels"}).logits
    whole = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch()["labels"][:, 1:].flatten())
    whole.backward()
    theirs = gradients(plain)
    assert found == pytest.approx(float(whole.detach()), rel=1e-6)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)


@given(labels=st.integers(0, 40), size=st.integers(1, 50), width=st.integers(1, 5), seed=st.integers(0, 9))
@settings(deadline=None)
def test_pieces_add_up(labels: int, size: int, width: int, seed: int) -> None:
    """Against cross entropy over all labels at once; the mean over nothing counts as zero."""
    torch.manual_seed(seed)
    head, hidden = nn.Linear(width, 11), torch.randn(labels, width, requires_grad=True)
    targets = torch.randint(0, 11, (labels,))

    def piece(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(head(hidden), targets, reduction="sum") / max(labels, 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "labels_at_once", lambda vocab_size: size)
        found = loss.summed_in_pieces(piece, hidden, targets, 11, head_is_trained=True)
    found.backward()
    ours = [hidden.grad, head.weight.grad, head.bias.grad]
    copies = hidden.detach().requires_grad_(), copy.deepcopy(head)
    copies[1].zero_grad()
    expected = nn.functional.cross_entropy(copies[1](copies[0]), targets) if labels else copies[1](copies[0]).sum()
    expected.backward()
    torch.testing.assert_close(found, expected)
    for one, other in zip(ours, [copies[0].grad, copies[1].weight.grad, copies[1].bias.grad], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@given(vocab=st.integers(1, 10**6))
def test_piece_fits_256_mib_unless_it_is_the_smallest(vocab: int) -> None:
    labels = loss.labels_at_once(vocab)
    assert labels == 16 or labels * vocab * 4 <= 256 * 2**20 < (labels + 1) * vocab * 4


def test_pieces_of_a_large_vocabulary() -> None:
    """ChatTS-14B's 152,064: 441 labels take 256 MiB in float32, 6 rows take 4 MiB."""
    assert loss.labels_at_once(152_064) == 441
    logits, targets = torch.empty(10, 152_064, device="meta"), torch.empty(10, device="meta")
    assert [len(rows) for rows, _ in loss._few_rows(logits, targets)] == [6, 4]
    logits = torch.empty(2, 2**20 + 1, device="meta")
    assert [len(rows) for rows, _ in loss._few_rows(logits, targets[:2])] == [1, 1]


@given(
    labels=st.integers(0, 9), vocab=st.integers(1, 40), rows=st.integers(1, 4),
    spread=st.sampled_from([0.1, 3.0, 40.0]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]), slope=st.sampled_from([1.0, 256.0]),
    seed=st.integers(0, 9),
)  # fmt: skip
@settings(deadline=None)
def test_cross_entropy_in_place(
    labels: int, vocab: int, rows: int, spread: float, dtype: torch.dtype, slope: float, seed: int
) -> None:
    """Against torch's over float32 copies, some rows at a time; half precision is rounded once, at the end."""
    torch.manual_seed(seed)
    given, targets = (torch.randn(labels, vocab) * spread).to(dtype), torch.randint(0, vocab, (labels,))
    found, expected = given.clone().requires_grad_(), given.clone().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "_ROWS_AT_ONCE", rows * vocab)
        logits = found * 1
        ours = loss.summed_cross_entropy(logits, targets)
        ours.backward(torch.tensor(slope))
    theirs = nn.functional.cross_entropy(expected.float(), targets, reduction="sum")
    theirs.backward(torch.tensor(slope))
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    rounding = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    torch.testing.assert_close(found.grad, expected.grad, rtol=rounding, atol=slope * 1e-6)
    assert torch.equal(logits.detach(), found.grad), "written where they lay"


def test_logits_that_somebody_else_wants_stop_the_backward_pass() -> None:
    """The gradient is written over them: torch notices, and gives no wrong result."""
    given = torch.randn(3, 5, requires_grad=True)
    logits = given * 1
    both = logits.square().sum() + loss.summed_cross_entropy(logits, torch.tensor([0, 1, 2]))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        both.backward()


def test_a_loss_of_somebody_elses_is_the_one_that_is_taken(family: str) -> None:
    model, seen = trained(family), []

    def halved(logits: torch.Tensor, shift_labels: torch.Tensor, **others: Any) -> torch.Tensor:
        seen.append(others.pop("vocab_size"))
        assert others.keys() == {"labels", "num_items_in_batch"} and others["labels"] is None
        return nn.functional.cross_entropy(logits, shift_labels, reduction="sum") / others["num_items_in_batch"] / 2

    plain = float(model(**batch()).loss.detach())
    model.loss_function = halved
    assert float(model(**batch()).loss.detach()) == pytest.approx(plain / 2, rel=1e-6)
    assert seen == [320]


def test_accumulated_batches_share_a_divisor(family: str) -> None:
    """`num_items_in_batch`, which transformers passes where it accumulates, is the divisor of every piece."""
    model = trained(family)
    kept = int(count_kept(batch()))
    mean, shared = (float(model(**batch(), **more).loss.detach()) for more in ({}, {"num_items_in_batch": 2 * kept}))
    assert shared == pytest.approx(mean / 2, rel=1e-6)


def test_batch_without_labels_gives_zero_gradients(family: str) -> None:
    model, empty = trained(family), batch()
    empty["labels"] = torch.full_like(empty["labels"], -100)
    found, ours = step(model, empty)
    assert found == 0.0
    assert all(bool((gradient == 0).all()) for gradient in ours.values())
    assert {"lm_head.weight", "model.layers.0.self_attn.q_proj.weight"} <= ours.keys()


# The last layer where it is read


def test_last_layer_where_it_is_read(family: str) -> None:
    """Against the whole layer, with two batches under way: each is run a second time with its own rows."""
    other = inputs(record(4, 12), record(5, 30), side="right")
    other |= {"labels": labels_for(other)}
    results, rows = [], []
    for whole in (False, True):
        model = trained(family)
        model.returns_logits = whole
        hook = model.model.layers[-1].mlp.gate_proj.register_forward_hook(
            lambda module, args, output: rows.append(output.shape[:-1].numel())
        )
        sum(model(**each).loss for each in (batch(), other)).backward()
        hook.remove()
        results.append(gradients(model))
    kept, every = ([int(count(b)) for b in (batch(), other)] for count in (count_kept, lambda b: b["labels"].numel()))
    assert rows == [*kept, *reversed(kept), *every, *reversed(every)]
    assert results[0].keys() == results[1].keys()
    for name, gradient in results[0].items():
        torch.testing.assert_close(gradient, results[1][name], rtol=1e-4, atol=1e-6)


def count_kept(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return (batch["labels"][:, 1:] != -100).sum()


@pytest.mark.parametrize("wanted", ["call", "config"])
def test_hidden_states_come_whole(family: str, wanted: str) -> None:
    model, plain = build(family).train(), build(family).eval()
    model.config.output_hidden_states = wanted == "config"
    found = model(**batch(), **({"output_hidden_states": True} if wanted == "call" else {})).hidden_states
    expected = plain(**batch(), output_hidden_states=True).hidden_states
    torch.testing.assert_close(found[-1], expected[-1])


# Logits beside the loss


@pytest.mark.parametrize(
    ("wanted", "training", "expected"),
    [(None, True, False), (None, False, True), (True, True, True), (False, False, False), (False, True, False)],
)
def test_whole_logits_only_where_wanted(wanted: bool | None, training: bool, expected: bool) -> None:
    model = build("qwen2").train(training)
    model.returns_logits = wanted
    logits = model(**batch()).logits
    assert (logits is not None) == expected
    assert logits is None or logits.shape == (*batch()["input_ids"].shape, 320)
    unlabelled = {key: value for key, value in batch().items() if key != "labels"}
    assert model(**unlabelled).logits is not None


# The embedding in CPU memory


def test_embedding_in_cpu_memory(family: str) -> None:
    model = trained(family)
    weight = model.get_input_embeddings().weight
    assert host_embedding.move_embedding_to_cpu(model) == weight.numel() * 4
    model.enable_input_require_grads()
    assert isinstance(model.get_input_embeddings(), host_embedding.HostEmbedding)
    check_same(model, trained(family))


def test_whoever_moves_the_model_leaves_the_embedding() -> None:
    """`meta` is the other device that every machine has."""
    model = build("qwen2")
    host_embedding.move_embedding_to_cpu(model)
    embedding = model.get_input_embeddings()
    before = embedding.weight.clone()
    model.to("meta")
    assert embedding.weight.device.type == "cpu" and torch.equal(embedding.weight, before)
    assert model.lm_head.weight.device.type == model.device.type == "meta"
    model.half()
    assert embedding.weight.dtype == torch.float16 and embedding.weight.device.type == "cpu"
    assert "model.embed_tokens.weight" in model.state_dict()


def test_shared_embedding_is_refused() -> None:
    model = build("qwen2", tie_word_embeddings=True)
    model.tie_weights()
    with pytest.raises(ValueError, match="the head shares the embedding's weight"):
        host_embedding.move_embedding_to_cpu(model)


def test_embedding_of_a_model_without_a_head() -> None:
    bare = build("qwen2").model.requires_grad_(False).train()
    assert host_embedding.move_embedding_to_cpu(bare) == 320 * 64 * 4
    assert bare.get_input_embeddings().training and not bare.get_input_embeddings().weight.requires_grad


def test_trained_embedding_is_refused() -> None:
    model = build("qwen2")
    model.requires_grad_(False)
    host_embedding.move_embedding_to_cpu(model)
    host_embedding.keep_out_of_ddp(model)
    assert set(model._ddp_params_and_buffers_to_ignore) == {"model.embed_tokens.weight"}
    model.requires_grad_(True)
    with pytest.raises(ValueError, match="`embedding_on_cpu` needs a frozen embedding"):
        host_embedding.keep_out_of_ddp(model)


# Checkpoints in CPU memory


def test_checkpoints_in_cpu_memory(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.autograd import graph

    from llamafactory_ext.model import modeling

    moved: list[torch.Size] = []

    class Counted(graph.save_on_cpu):  # type: ignore[misc]
        def __init__(self, pin_memory: bool) -> None:
            super().__init__(pin_memory=pin_memory)
            pack = self.pack_hook
            self.pack_hook = lambda tensor: (moved.append(tensor.shape), pack(tensor))[1]

    monkeypatch.setattr(modeling, "save_on_cpu", Counted)
    model = trained(family)
    model.offload_checkpoints = True
    check_same(model, trained(family))
    shape = (*batch()["input_ids"].shape, 64)
    assert moved.count(torch.Size(shape)) >= 2  # the input of each of the two layers
    assert len(moved) < 12  # and nothing of what is inside of them
    moved.clear()
    model.eval()(**batch())
    assert not moved


# Attention on cards older than Ampere


def test_attention_with_repeated_keys(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []
    true = nn.functional.scaled_dot_product_attention

    def spied(query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(kwargs.get("enable_gqa", False) or query.shape[1] != key.shape[1])
        return true(query, key, *args, **kwargs)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", spied)
    model = trained(family)
    assert attention.use_where_it_suits(model, (7, 5))
    single = inputs(record(1, 40, 17))  # no mask: the case in which transformers leaves grouping to torch
    found = model(**single).logits
    assert len(calls) == 2 and not any(calls)
    plain = trained(family)
    torch.testing.assert_close(found, plain(**single).logits, rtol=1e-5, atol=1e-5)
    assert any(calls)
    check_same(model, plain)


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), True), ((7, 0), True), ((8, 0), False), (None, False)])
def test_cards_that_want_repeated_keys(capability: tuple[int, int] | None, expected: bool) -> None:
    model = build("qwen2", attention="sdpa")
    assert attention.use_where_it_suits(model, capability) is expected
    assert model.config._attn_implementation == (attention.SDPA_REPEATED if expected else "sdpa")
    eager = build("qwen2", attention="eager")
    assert not attention.use_where_it_suits(eager, (7, 5))


# A loss that is not finite


@pytest.mark.parametrize(
    ("place", "said"), [("lm_head", "comes out of the head"), ("model.norm", "the decoder's layers")]
)
def test_loss_that_is_not_finite_stops_the_run(place: str, said: str) -> None:
    model = build("qwen2").train()
    with torch.no_grad():
        model.get_submodule(place).weight[3] = float("nan")
    with pytest.raises(FloatingPointError, match=rf"the loss is nan; .*{said}, in torch.float32\. Stopped: lower"):
        model(**batch())
    model.eval()(**batch())  # evaluation goes on, and reports it


def test_the_embedding_leaves_before_weights_are_cast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cast holds a weight twice: of the embedding 1.45 GiB more on the card, at the tightest moment."""
    from types import SimpleNamespace

    from llamafactory_ext.training import levers

    model, found = build("qwen2").to(torch.bfloat16).requires_grad_(False), []
    cast = levers.match_half_precision
    monkeypatch.setattr(
        levers,
        "match_half_precision",
        lambda one, dtype: found.append(type(one.get_input_embeddings())) or cast(one, dtype),
    )
    upstream: Any = SimpleNamespace(init_adapter=lambda config, model, *others: model)
    levers.install(upstream)
    keys = {"stage": "sft", "finetuning_type": "lora", "compute_accuracy": False, "embedding_on_cpu": True}
    keys |= {"offload_checkpoints": False, "layers_without_checkpoints": 0, "train_timeseries_modules": True}
    model_args = SimpleNamespace(
        compute_dtype=torch.float16, upcast_layernorm=False, use_reentrant_gc=True, use_unsloth_gc=False
    )
    adapted = upstream.init_adapter(model.config, model, model_args, SimpleNamespace(**keys), True)
    assert found == [host_embedding.HostEmbedding]
    assert {weight.dtype for weight in adapted.parameters()} == {torch.float16}
