"""The benchmark: both ways compute the same, and the tool measures and prints."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import bench
import one_step
import pytest
import torch
from helpers_model import FAMILIES, PAD, TS_END, TS_START, config_dict, gradients, inputs, labels_for, record
from models import add_lora, build_model
from rows import GPU_ROWS, ROWS, count_tokens, make_batch, make_config

from llamafactory_ext.series import patch_count


TOOL = str(Path(bench.__file__))
TINY = ROWS[0]
# Unequal lengths, several series in a record, a series of one point, a record that ends with one.
RECORDS = (record(1, 30), record(3, 1, 100, 17, text=3), record(4, 8, 8, text=2))


def with_markers(batch: dict[str, torch.Tensor], labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """The batch as the published way takes it: two markers in place of each series' patches."""
    lengths = iter([len(series) for one in RECORDS for series in one.series])
    rows = []
    for ids, mask, label in zip(batch["input_ids"], batch["attention_mask"].bool(), labels, strict=True):
        left, shorter = list(zip(ids[mask].tolist(), label[mask].tolist(), strict=True)), []
        while left:
            if left[0][0] != TS_START:
                shorter.append(left.pop(0))
                continue
            shorter += [(TS_START, -100), (TS_END, -100)]
            del left[: patch_count(next(lengths), 8)]
        rows.append(shorter)
    longest = max(map(len, rows))
    filled = torch.tensor([row + [(PAD, -100)] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    changed = {"input_ids": filled[..., 0], "attention_mask": mask, "labels": filled[..., 1]}
    return {**batch, **changed}


def random_lora(model: Any) -> Any:
    """LoRA whose second matrix is no longer zero, so that every gradient says something."""
    wrapped = add_lora(model)
    generator = torch.Generator().manual_seed(5)
    for weight in wrapped.parameters():
        if weight.requires_grad:
            weight.data.normal_(0, 0.2, generator=generator)
    return wrapped


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_both_ways_give_the_same_loss_and_gradients(family, quantised):
    batch = inputs(*RECORDS, side="right")
    batch["timeseries"] = batch["timeseries"].float()
    labels = labels_for(batch)
    found = {}
    for way, given in (("ours", {**batch, "labels": labels}), ("published", with_markers(batch, labels))):
        model = build_model(way, config_dict(family), device="cpu", dtype=torch.float32, quantised=quantised)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.is_floating_point() and weight.ndim == 2:
                    weight.mul_(6)  # weights of 0.02 hardly tell one token from another
        model = random_lora(model)
        loss = model(**given).loss
        loss.backward()
        found[way] = (loss.item(), gradients(model))
    (ours, our_gradients), (published, their_gradients) = found["ours"], found["published"]
    assert ours == pytest.approx(published, rel=1e-5)
    assert our_gradients.keys() == their_gradients.keys()
    assert any("ts_encoder" in name for name in our_gradients) and any("q_proj" in name for name in our_gradients)
    for name, gradient in their_gradients.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(our_gradients[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_state_dicts_are_the_same(family):
    ours, published = (
        build_model(way, config_dict(family), device="cpu", dtype=torch.float32).state_dict()
        for way in ("ours", "published")
    )
    assert ours.keys() == published.keys()
    assert all(torch.equal(ours[name], published[name]) for name in ours)


def test_a_plain_qwen_gives_the_same_loss_of_text():
    from dataclasses import replace

    row = replace(TINY, points=0, prompt=0, answer=40)
    losses = {}
    for way in ("ours", "plain"):
        model = add_lora(build_model(way, make_config(row), device="cpu", dtype=torch.float32))
        losses[way] = float(model(**make_batch(row, way, "cpu")).loss.detach())
    assert losses["ours"] == pytest.approx(losses["plain"], rel=1e-6)
    with_series = make_batch(TINY, "plain", "cpu")
    assert "timeseries" not in with_series and with_series["input_ids"].numel() == count_tokens(TINY)[0]


def test_batches_of_both_ways_hold_the_same_text():
    ours, published = (make_batch(TINY, way, "cpu") for way in ("ours", "published"))
    assert torch.equal(ours["timeseries"], published["timeseries"])
    assert torch.equal(ours["labels"][:, -TINY.answer :], published["labels"][:, -TINY.answer :])
    tokens, labels, patches = count_tokens(TINY)
    assert (ours["input_ids"].numel(), int((ours["labels"] != -100).sum())) == (tokens, labels)
    start = make_config(TINY)["ts_token_start_index"]
    assert int((ours["input_ids"] == start).sum()) == patches == patch_count(TINY.points, 8)
    assert published["input_ids"].shape[1] == ours["input_ids"].shape[1] - patches + 2


def test_quantised_layers_are_those_of_the_decoder():
    from bitsandbytes.nn import Linear4bit

    model = build_model("ours", make_config(TINY), device="cpu", dtype=torch.float32, quantised=True)
    small = {name for name, module in model.named_modules() if isinstance(module, Linear4bit)}
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert small == {name for name in linear if name.startswith("model.layers.")}
    assert len(small) == 7 * TINY.layers


def test_the_gpu_row_has_the_published_size():
    from llamafactory_ext.toolbox.plan.shape import KNOWN, Shape

    (row,) = GPU_ROWS
    assert Shape.from_config(make_config(row)) == KNOWN["chatts-14b"]
    assert row.quantised


@pytest.mark.parametrize("way", ["ours", "published"])
def test_what_the_gpu_rows_do_runs_on_a_cpu(way):
    """4 bit and the embedding on the CPU, at the tiny size; of the card's own only autocast and scaler are missing."""
    from dataclasses import replace

    row = replace(GPU_ROWS[0], hidden=64, layers=2, heads=4, kv_heads=2, intermediate=128, vocabulary=1024, points=90)
    found = one_step.measure(row, way, "cpu", steps=1, embedding_on_cpu=way == "ours")
    assert found["losses"][-1] < found["losses"][0], "it trains"
    assert 0 < found["loaded"] < found["peak"]
    assert found["activations"] == found["peak"] - found["loaded"]


def run_tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, TOOL, *arguments], capture_output=True, text=True, timeout=600, check=False)


def test_the_tool_prints_a_row_and_writes_json(tmp_path):
    done = run_tool("--only", "tiny", "--steps", "1", "--json", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stderr
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(table) == 3
    cells = [cell.strip() for cell in table[2].strip("|").split("|")]
    assert cells[0] == TINY.title
    assert len(cells) == len(bench.COLUMNS)
    assert "best of 1 steps" in done.stdout.splitlines()[-1] and "torch" in done.stdout.splitlines()[-1]
    assert "tiny: ours" in done.stderr

    (found,) = json.loads((tmp_path / "found.json").read_text())
    losses = [found[way]["losses"] for way in ("ours", "published")]
    assert len(losses[0]) == 3
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5)
    planned = sum(found["planned"].values())
    assert abs(planned / found["ours"]["peak"] - 1) < 0.08
    assert cells[-2] == f"{planned / 2**20:.0f}"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_gpu_without_a_card_is_one_clear_line():
    done = run_tool("--gpu")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "error: --gpu, but torch finds no CUDA card here; without --gpu the CPU's rows are measured"
    ]


@pytest.mark.parametrize(
    ("arguments", "says"), [(("--only", "huge"), "no row 'huge'"), (("--steps", "0"), "--steps is less than 1")]
)
def test_wrong_usage(arguments, says):
    done = run_tool(*arguments)
    assert done.returncode == 2
    assert says in done.stderr


def test_a_way_that_fails_is_told_in_its_cells():
    ours = {"row": "tiny", "way": "ours", "error": "exit status 1: out of memory"}
    published = {"seconds": 2.0, "activations": 3 * 2**20}
    cells = bench.describe(TINY, ours, published, {"weights": 2**20})
    assert cells[1:] == ["failed", "2.00", "–", "failed", "3", "–", "failed", "–", "–"]


def test_with_room_ours_alone_leaves_checkpoints_out():
    from dataclasses import replace

    row = replace(TINY, points=90, has_room=True)
    kept = {}
    for way in ("ours", "published"):
        model = one_step._prepare(row, way, "cpu", False)[0]
        kept[way] = {layer.gradient_checkpointing for layer in model.base_model.model.model.layers}
    assert kept == {"ours": {False}, "published": {True}}
    assert bench.predict(row, {"device": "cpu", "baseline": 0}, False) == bench.predict(
        replace(row, checkpointing=False), {"device": "cpu", "baseline": 0}, False
    )


def test_from_files_to_tokens(tmp_path, monkeypatch):
    """Every step of the data's benchmark, at a size that costs nothing."""
    import files_to_tokens as tool

    monkeypatch.setattr(tool, "POINTS", 3)
    monkeypatch.setattr(tool, "LENGTH", 800)
    bench = tool.Bench(tmp_path, copies=2)
    assert bench.plain() > 0 and len((tmp_path / "plain.jsonl").read_text().splitlines()) == 6
    assert bench.prepare()[0] > 0 and len((tmp_path / "prepared.jsonl").read_text().splitlines()) == 6
    assert bench.tokenise("gdsh")[0] > 0 and bench.tokenise("plain")[0] > 0
