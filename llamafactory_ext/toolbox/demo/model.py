"""Writes a tiny ChatTS checkpoint: random weights, a real byte-level BPE tokenizer, the published config's keys.

What it writes:

    config.json, generation_config.json, model.safetensors
    tokenizer.json, tokenizer_config.json, special_tokens_map.json, chat_template.jinja
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from llamafactory_ext.toolbox.demo.data import POINTS, make_records
from llamafactory_ext.toolbox.demo.folder import fresh_folder
from llamafactory_ext.toolbox.demo.series import SHAPES, draw_intervals


Family = Literal["qwen2", "qwen3"]

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<ts>", "<ts/>")
VOCABULARY = 1024

# Qwen2's own split: a digit is a token, whatever number it is part of.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Size:
    """The model's dimensions, and what its weights are drawn with."""

    width: int = 64  # bitsandbytes quantises in blocks of 64 weights
    layers: int = 2
    heads: int = 4
    key_value_heads: int = 2
    max_length: int = 8192  # tokens of a record, and points of a series
    deviation: float = 0.02  # standard deviation of the random weights


TINY = Size()


def make_corpus(seed: int) -> list[str]:
    """Collect what the demo's data set says, and the line of statistics that goes before each series."""
    rng = np.random.default_rng(seed)
    corpus = []
    for point in POINTS:
        intervals = draw_intervals(point.kinds, point.length, rng) if point.kinds else []
        for record in make_records(point, intervals):
            corpus += [str(message["value"]) for message in record["conversations"]]
        numbers = ", ".join(f"{value:.4f}" for value in rng.normal(0, 100, 4))
        corpus.append(f"[offset={numbers}|scaling=|length={point.length}|max=|min=|left=|right=]")
    roles = "system\nYou are a helpful assistant.\nuser\nassistant\n"
    return [*corpus, roles, roles, *SHAPES]


def train_tokenizer(corpus: list[str], vocabulary: int = VOCABULARY) -> Tokenizer:
    """Train a byte-level BPE of so many tokens on `corpus`, normalised and split as Qwen2's tokenizer does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL_TOKENS),
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL_TOKENS])
    return tokenizer


def write_tokenizer(folder: Path, tokenizer: Tokenizer, max_length: int = TINY.max_length) -> None:
    """Save the tokenizer with the settings that a published checkpoint states, for AutoTokenizer."""
    tokenizer.save(str(folder / "tokenizer.json"))
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "additional_special_tokens": ["<ts>", "<ts/>"]}
    settings = {
        **names,
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(text)): {"content": text, **flags, "special": True} for text in SPECIAL_TOKENS
        },
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "model_max_length": max_length,
        "padding_side": "right",
        "split_special_tokens": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }
    _write_json(folder / "tokenizer_config.json", settings)
    _write_json(folder / "special_tokens_map.json", names)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def make_config(tokenizer: Tokenizer, family: Family, size: Size = TINY) -> dict[str, Any]:
    """State a model of this size of the family with the keys of the published config.json."""
    config = {
        "architectures": ["Qwen2TSForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "hidden_act": "silu",
        "hidden_size": size.width,
        "ignore_index": -100,
        "initializer_range": size.deviation,
        "intermediate_size": 2 * size.width,
        "max_position_embeddings": size.max_length,
        "model_type": "chatts",
        "num_attention_heads": size.heads,
        "num_hidden_layers": size.layers,
        "num_key_value_heads": size.key_value_heads,
        "pad_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "ts": {
            "embedding_dim": 16,
            "hidden_size": size.width,
            "max_length": size.max_length,
            "max_sequence_length": size.max_length,
            "num_features": 2,
            "num_layers": 5,
            "patch_size": 8,
            "use_position_embedding": True,
            "use_position_idx": False,
        },
        "ts_token_end_index": tokenizer.token_to_id("<ts/>"),
        "ts_token_start_index": tokenizer.token_to_id("<ts>"),
        "use_cache": False,
        "use_sliding_window": False,
        "vocab_size": -(-tokenizer.get_vocab_size() // 8) * 8,
    }
    if family == "qwen3":
        config |= {"architectures": ["Qwen3TSForCausalLM"], "model_type": "qwen3ts"}
        config |= {"attention_bias": False, "head_dim": size.width // size.heads}
        config["ts"] |= {"use_layer_norm": False}
    return config


def write_model(
    path: Path, seed: int = 0, family: Family = "qwen2", size: Size = TINY, corpus: list[str] | None = None
) -> None:
    """Write the checkpoint to the folder `path`; the same seed gives the same weights.

    Its tokenizer is trained on `corpus`, the demo's own where none is given.

    Raises ForeignFolderError if `path` exists and was not made by the demo.
    """
    import torch

    from llamafactory_ext.model import FAMILIES

    with fresh_folder(path) as folder:
        tokenizer = train_tokenizer(make_corpus(seed) if corpus is None else corpus)
        write_tokenizer(folder, tokenizer, size.max_length)
        stated = make_config(tokenizer, family, size)
        config_class, model_class = FAMILIES[family]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = model_class(config_class.from_dict(stated))
        model.save_pretrained(folder)
        # Every transformers version states a config in its own words; a published one looks like this.
        _write_json(folder / "config.json", stated)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
