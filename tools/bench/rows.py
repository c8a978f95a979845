"""What the benchmark measures: models and records, from tiny to ChatTS-14B; and what they are compared with."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from llamafactory_ext.series import encode, patch_count


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        hidden, layers, heads, kv_heads, intermediate, vocabulary: of the decoder; Qwen2.
        points: in each record's one series.
        prompt, answer: tokens beside the series' patches; loss is taken on the answer.
        quantised: the decoder's linear layers in 4 bit.
        checkpointing: layers are computed again in the backward pass.
        has_room: ours leaves the checkpoints out, as plan offers where there is room; the other way keeps its own.
        other: what it is compared with, one of `models.WAYS`.
        at_most: shares of the other's time and memory that it is to stay within; None: no such aim.
    """

    name: str
    title: str
    hidden: int = 1024
    layers: int = 4
    heads: int = 16
    kv_heads: int = 4
    intermediate: int = 2816
    vocabulary: int = 152_064
    batch: int = 1
    points: int = 5000
    prompt: int = 300
    answer: int = 120
    quantised: bool = False
    checkpointing: bool = True
    has_room: bool = False
    max_sequence_length: int = 32_768
    other: str = "published"
    at_most: tuple[float | None, float | None] = (None, None)

    def checkpoints(self, way: str) -> bool:
        """Whether a way computes layers again in the backward pass."""
        return self.checkpointing and not (self.has_room and way == "ours")


_SMALL = Row("", "", hidden=512, layers=2, heads=8, kv_heads=2, intermediate=1408)
ROWS = (
    Row(
        "tiny", "the demo's model, one record of 500 points", hidden=64, layers=2, heads=4, kv_heads=2,
        intermediate=128, vocabulary=1024, points=500, max_sequence_length=8192,
    ),
    Row("record", "4 layers of width 1024, one record of 5000 points", at_most=(0.30, None)),
    Row("room", "the same, ours without checkpoints, which plan offers for the room that is left; published with them",
        has_room=True, at_most=(0.30, None)),
    Row("at-once", "the same, both without checkpoints", checkpointing=False, at_most=(0.30, None)),
    replace(
        _SMALL, name="batch", title="2 layers of width 512, four records of 1000 points", batch=4, points=1000,
        prompt=150, answer=60,
    ),
    replace(_SMALL, name="answer", title="2 layers of width 512, an answer of 600 tokens", answer=600),
    replace(_SMALL, name="prompt", title="2 layers of width 512, 1000 tokens before 20", prompt=1000, answer=20),
    replace(_SMALL, name="4bit", title="2 layers of width 512 in 4 bit, one record of 5000 points", quantised=True),
    Row(
        "plain", "4 layers of width 1024, one record; against a plain Qwen2 with as many tokens", other="plain",
        at_most=(0.40, 0.33),
    ),
    Row(
        "all-labels", "the same, text alone, every token labelled", points=0, prompt=0, answer=1045, other="plain",
        at_most=(1.0, 1.0),
    ),
)  # fmt: skip
GPU_ROWS = (
    Row(
        "chatts-14b", "ChatTS-14B in 4 bit, one record of 5000 points", hidden=5120, layers=48, heads=40, kv_heads=8,
        intermediate=13_824, quantised=True,
    ),
)  # fmt: skip


def make_config(row: Row) -> dict[str, Any]:
    """State a row's model with the keys of a published ``config.json``."""
    return {
        "architectures": ["Qwen2TSForCausalLM"],
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": row.hidden,
        "intermediate_size": row.intermediate,
        "max_position_embeddings": 32_768,
        "model_type": "chatts",
        "num_attention_heads": row.heads,
        "num_hidden_layers": row.layers,
        "num_key_value_heads": row.kv_heads,
        "pad_token_id": row.vocabulary - 3,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": False,
        "ts": {
            "embedding_dim": 16,
            "hidden_size": row.hidden,
            "max_sequence_length": row.max_sequence_length,
            "num_features": 2,
            "num_layers": 5,
            "patch_size": 8,
            "use_position_embedding": True,
        },
        "ts_token_end_index": row.vocabulary - 1,
        "ts_token_start_index": row.vocabulary - 2,
        "use_sliding_window": False,
        "vocab_size": row.vocabulary,
    }


def count_tokens(row: Row) -> tuple[int, int, int]:
    """Return a batch's tokens, labels and patches, as the model computes them."""
    patches = patch_count(row.points, make_config(row)["ts"]["patch_size"])
    return row.batch * (patches + row.prompt + row.answer), row.batch * row.answer, row.batch * patches


def make_batch(row: Row, way: str, device: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return a batch as a way wants it: one `<ts>` a patch, two markers a series, or as many tokens of text.

    The series stands in the middle of the prompt. All ways get the same text and labels, and the same series but for
    the plain way.
    """
    config = make_config(row)
    start, end = config["ts_token_start_index"], config["ts_token_end_index"]
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(0, row.vocabulary - 3, (row.batch, row.prompt + row.answer), generator=generator)
    walks = torch.randn(row.batch, row.points, generator=generator).cumsum(1)
    middle = row.prompt // 2
    patches = patch_count(row.points, config["ts"]["patch_size"])
    if way == "plain":
        place = torch.randint(0, row.vocabulary - 3, (row.batch, patches), generator=generator)
    else:
        markers = ([start] * patches if way == "ours" else [start, end]) if patches else []
        place = torch.tensor(markers, dtype=torch.long).expand(row.batch, -1)
    ids = torch.cat([text[:, :middle], place, text[:, middle:]], dim=1)
    labels = ids.clone()
    labels[:, : -row.answer] = -100
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    if patches and way != "plain":
        batch["timeseries"] = torch.from_numpy(encode(walks.double().numpy())).to(torch.float32)
    return {key: tensor.to(device) for key, tensor in batch.items()}
