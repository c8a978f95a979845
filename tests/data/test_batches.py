"""Through LLaMA-Factory's own collators: a batch equals its records one by one, and packing equals not packing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Gdsh, annotation, answer


IGNORED = -100


@pytest.fixture
def unequal(gdsh: Gdsh) -> Path:
    """Five records: one to three series of unequal length, answers of unequal length, one without anomalies."""
    gdsh.csv("b.csv", [3, 1, 2])
    gdsh.csv("c.csv", [1e6 if i == 50 else i % 9 for i in range(101)])
    return gdsh.records(
        annotation("a.jpg", answer((0, 3))),
        annotation(["b.jpg", "c.jpg"], answer((50, 50), (60, 70)), user="<image> or <image>"),
        annotation("b.jpg"),
        annotation(["c.jpg", "a.jpg", "b.jpg"], answer((2, 2)), user="<image><image><image>"),
        annotation("c.jpg", answer((50, 50))),
    ).folder


def load(model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    from llamafactory_ext.model import ChatTSProcessor  # noqa: F401  (registers the model)

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_pretrained(model, attn_implementation="sdpa").eval()


def sums(model: Any, batch: dict[str, Any]) -> tuple[float, int]:
    """The summed loss over kept labels, and how many there are."""
    kept = int((batch["labels"][:, 1:] != IGNORED).sum())
    with torch.no_grad():
        loss = model(**{key: value for key, value in batch.items() if key != "packing_params"}).loss
    return float(loss) * kept, kept


def collate(run: dict[str, Any], rows: list[int], **settings: Any) -> dict[str, Any]:
    from llamafactory.data import SFTDataCollatorWith4DAttentionMask

    module = {key: run[key] for key in ("template", "tokenizer", "processor")}
    collator = SFTDataCollatorWith4DAttentionMask(
        **module, model=None, pad_to_multiple_of=8, label_pad_token_id=IGNORED, **settings
    )
    batch: dict[str, Any] = collator([dict(run["train_dataset"][row]) for row in rows])
    return batch


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_batch_equals_its_records(
    family: str, side: str, unequal: Path, demo: Path, qwen3_model: Path, tokenise: Callable[..., Any]
) -> None:
    folder = {"qwen2": demo / "model", "qwen3": qwen3_model}[family]
    run, model = tokenise(unequal, model=folder), load(folder)
    run["tokenizer"].padding_side = side
    single = [sums(model, collate(run, [row])) for row in range(5)]
    total, kept = sums(model, collate(run, list(range(5))))
    assert kept == sum(count for _, count in single)
    assert total == pytest.approx(sum(loss for loss, _ in single), rel=1e-5)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_neat_packing_equals_not_packing(
    family: str, unequal: Path, demo: Path, qwen3_model: Path, tokenise: Callable[..., Any]
) -> None:
    folder = {"qwen2": demo / "model", "qwen3": qwen3_model}[family]
    run, model = tokenise(unequal, model=folder), load(folder)
    single = [sums(model, collate(run, [row])) for row in range(5)]
    packed = tokenise(unequal, model=folder, neat_packing=True, cutoff_len=2000)
    assert len(packed["train_dataset"]) < 5
    settings = {"block_diag_attn": True, "neat_packing": True, "attn_implementation": "sdpa"}
    found = [
        sums(model, collate(packed, [row], compute_dtype=torch.float32, **settings))
        for row in range(len(packed["train_dataset"]))
    ]
    assert sum(count for _, count in found) == sum(count for _, count in single)
    assert sum(loss for loss, _ in found) == pytest.approx(sum(loss for loss, _ in single), rel=1e-5)


def test_a_series_of_a_batch_may_be_a_files_path(unequal: Path, tokenise: Callable[..., Any]) -> None:
    """As a user of LLaMA-Factory's chat attaches it; what is neither path nor numbers is refused."""
    run = tokenise(unequal)
    ids = run["train_dataset"][2]["input_ids"]
    (path,) = unequal.rglob("b.csv")

    def inputs(item: Any) -> Any:
        return run["template"].mm_plugin.get_mm_inputs([], [], [item], [0], [0], [1], [ids], run["processor"])

    expected = inputs([3, 1, 2])["timeseries"]
    assert torch.equal(inputs(str(path))["timeseries"], expected)
    assert torch.equal(inputs(path)["timeseries"], expected)
    with pytest.raises(ValueError, match="found a series in float; expected a list of numbers or a CSV file's path"):
        inputs(3.5)
