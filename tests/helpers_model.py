"""Tiny random ChatTS models of both families, records for them, and a tokenizer."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from llamafactory_ext.series import encode, patch_count


torch.set_num_threads(1)  # matrices this small lose more to threads than they gain

FAMILIES = ("qwen2", "qwen3")
VOCABULARY = 320
WIDTH = 64
TS_START, TS_END, PAD, EOS = 300, 301, 302, 303


def ts_section(**changes: Any) -> dict[str, Any]:
    """The ``ts`` section of a tiny checkpoint."""
    section = {
        "embedding_dim": 4,
        "hidden_size": WIDTH,
        "max_length": 512,
        "max_sequence_length": 512,
        "num_features": 2,
        "num_layers": 5,
        "patch_size": 8,
        "use_position_embedding": True,
        "use_position_idx": False,
    }
    return section | changes


def config_dict(family: str, **changes: Any) -> dict[str, Any]:
    """``config.json`` of a tiny checkpoint, with the keys of the published ones."""
    number = family[-1]
    config: dict[str, Any] = {
        "architectures": [f"Qwen{number}TSForCausalLM"],
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": f"configuration_{family}_ts.Qwen{number}TSConfig",
            "AutoModel": f"modeling_{family}_ts.Qwen{number}TSForCausalLM",
            "AutoModelForCausalLM": f"modeling_{family}_ts.Qwen{number}TSForCausalLM",
            "AutoProcessor": f"processing_{family}_ts.Qwen{number}TSProcessor",
        },
        "bos_token_id": EOS,
        "eos_token_id": EOS,
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "ignore_index": -100,
        "initializer_range": 0.02,
        "intermediate_size": 96,
        "max_position_embeddings": 2048,
        "max_window_layers": 2,
        "model_type": family,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "pad_token_id": PAD,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.52.4",
        "ts": ts_section(),
        "ts_token_end_index": TS_END,
        "ts_token_start_index": TS_START,
        "use_cache": False,
        "use_sliding_window": False,
        "vocab_size": VOCABULARY,
    }
    if family == "qwen3":
        config |= {"attention_bias": False, "head_dim": 16, "rope_scaling": None}
        config["ts"]["use_layer_norm"] = False
    return config | changes


def build(family: str, attention: str = "eager", **changes: Any) -> Any:
    """A model of random weights, in evaluation; the same weights at each call."""
    from llamafactory_ext.model import Qwen2TSConfig, Qwen2TSForCausalLM, Qwen3TSConfig, Qwen3TSForCausalLM

    config_class, model_class = {
        "qwen2": (Qwen2TSConfig, Qwen2TSForCausalLM),
        "qwen3": (Qwen3TSConfig, Qwen3TSForCausalLM),
    }[family]
    config = config_class.from_dict(config_dict(family, **changes))
    config._attn_implementation = attention
    torch.manual_seed(7)
    model = model_class(config).float()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:  # biases and norms, which begin as zeros and ones
                weight.add_(torch.randn_like(weight) * 0.1)
            elif "embed" in name:
                weight.copy_(torch.randn_like(weight) * 0.5)
            else:
                weight.copy_(torch.randn_like(weight) * weight.shape[1] ** -0.5)
    model.generation_config.eos_token_id = None  # so that answers have the length that was asked for
    model.generation_config.bos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model.eval()


@dataclass
class Record:
    """Token ids of one record, in which each series' patches stand already, and its series."""

    ids: list[int]
    series: list[np.ndarray] = field(default_factory=list)

    def __add__(self, other: "Record") -> "Record":
        return Record(self.ids + other.ids, self.series + other.series)


def record(seed: int, *lengths: int, text: int = 6) -> Record:
    """A record with series of these lengths and ``text`` tokens before, between and after them."""
    rng = np.random.default_rng(seed)

    def words() -> list[int]:
        return rng.integers(0, 290, text).tolist()

    ids, series = words(), []
    for length in lengths:
        series.append(rng.standard_normal(length).cumsum())
        ids += [TS_START] * patch_count(length, 8) + words()
    return Record(ids, series)


def inputs(*records: Record, side: str = "left") -> dict[str, torch.Tensor]:
    """``input_ids``, ``attention_mask`` and ``timeseries`` of a batch."""
    longest = max(len(one.ids) for one in records)
    ids = torch.full((len(records), longest), PAD)
    mask = torch.zeros(len(records), longest, dtype=torch.long)
    for row, one in enumerate(records):
        place = slice(longest - len(one.ids), None) if side == "left" else slice(len(one.ids))
        ids[row, place] = torch.tensor(one.ids)
        mask[row, place] = 1
    batch = {"input_ids": ids, "attention_mask": mask}
    series = [values for one in records for values in one.series]
    if series:
        batch["timeseries"] = torch.from_numpy(encode(series))
    return batch


def labels_for(batch: dict[str, torch.Tensor], prompt: int = 4) -> torch.Tensor:
    """Every real token is to be learnt except the first few of a row and the series' places."""
    ids, mask = batch["input_ids"], batch["attention_mask"].bool()
    place = mask.long().cumsum(1)
    return ids.masked_fill(~mask | (place <= prompt) | (ids == TS_START), -100)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """Copies of all gradients; they are cleared."""
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def tokenizer() -> Any:
    """A byte-level tokenizer that knows ``<ts>``; the ids are those of :func:`config_dict`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [first + second for first in "0123456789" for second in "0123456789"][: TS_START - len(letters)]
    core = Tokenizer(
        models.BPE(
            vocab={text: index for index, text in enumerate(letters + pairs)},
            merges=[(pair[0], pair[1]) for pair in pairs],
        )
    )
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in ("<ts>", "<ts/>", "<pad>", "<eos>")]
    )
    assert core.token_to_id("<ts>") == TS_START
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", padding_side="right")
