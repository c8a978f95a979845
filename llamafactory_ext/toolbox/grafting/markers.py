"""The markers ``<ts>`` and ``<ts/>`` in a tokenizer's files, which otherwise stay word for word.

They are changed as files, and not saved by transformers: version 5 writes them in a form that version 4, which the
published loaders were made for, can't open.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer


MARKERS = ("<ts>", "<ts/>")

_FLAGS = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
_SAMPLE = "状态 normal: value=-12.50, 3 points;\n\n<|im_start|>user\n<t s> 数据"


def add_markers(source: Path, folder: Path, rows: int) -> tuple[int, int]:
    """Adds both markers as special tokens to the tokenizer's files in ``folder``, a copy of those in ``source``.

    Arguments:
        rows: of the embedding; tokens that it has no row for are a fault of the checkpoint.

    Returns:
        The ids of ``<ts>`` and ``<ts/>``: the next that are free, or those that they have already.

    Raises:
        ValueError: the files are missing, or do not say what they should.
    """
    stated = _read(folder / "tokenizer.json", source)
    settings = _read(folder / "tokenizer_config.json", source)
    try:
        core = Tokenizer.from_str(json.dumps(stated))
    except Exception as err:  # tokenizers raises nothing more special
        raise ValueError(f"{source}/tokenizer.json is no tokenizer ({err}); download it again") from err
    highest = max(core.get_vocab(with_added_tokens=True).values(), default=-1)
    if highest >= rows:
        raise ValueError(f"{source}: the tokenizer has a token {highest}, the embedding {rows} rows")
    core.add_special_tokens([AddedToken(text, special=True, **_FLAGS) for text in MARKERS])
    ids = {text: core.token_to_id(text) for text in MARKERS}

    others = [token for token in stated.get("added_tokens", []) if token["content"] not in ids]
    own = [{"id": number, "content": text, **_FLAGS, "special": True} for text, number in ids.items()]
    stated["added_tokens"] = sorted(others + own, key=lambda token: token["id"])
    _write(folder / "tokenizer.json", stated)

    if isinstance(settings.get("added_tokens_decoder"), dict):
        settings["added_tokens_decoder"] |= {
            str(number): {"content": text, **_FLAGS, "special": True} for text, number in ids.items()
        }
    settings.setdefault("tokenizer_class", "Qwen2Tokenizer")
    _name_special(settings)
    _write(folder / "tokenizer_config.json", settings)
    for name in ("special_tokens_map.json", "added_tokens.json"):  # not all checkpoints have them
        if (folder / name).is_file():
            content = _read(folder / name, source)
            if name == "added_tokens.json":
                content |= ids
            else:
                _name_special(content)
            _write(folder / name, content)
    _check(source, folder, ids)
    return ids["<ts>"], ids["<ts/>"]


def _name_special(settings: dict[str, Any]) -> None:
    """Adds the markers to the list of special tokens, under the name that it has in this version's files."""
    key = "additional_special_tokens"
    if key not in settings and isinstance(settings.get("extra_special_tokens"), list):
        key = "extra_special_tokens"
    named = settings.get(key) or []
    known = {token["content"] if isinstance(token, dict) else token for token in named}
    settings[key] = [*named, *(text for text in MARKERS if text not in known)]


def _check(source: Path, folder: Path, ids: dict[str, int]) -> None:
    """Raises ValueError where transformers reads something else in the new files than was meant."""
    before, after = (AutoTokenizer.from_pretrained(one, trust_remote_code=False) for one in (source, folder))
    found = after(f"a{''.join(MARKERS)}b", add_special_tokens=False)["input_ids"]
    wanted = [*before("a", add_special_tokens=False)["input_ids"], *ids.values()]
    wanted += before("b", add_special_tokens=False)["input_ids"]
    same = before(_SAMPLE)["input_ids"] == after(_SAMPLE)["input_ids"]
    if found != wanted or not same or not set(MARKERS) <= set(after.all_special_tokens):
        raise ValueError(f"{source}: its tokenizer's files do not take new tokens in a way that transformers reads")


def _read(path: Path, source: Path) -> dict[str, Any]:
    name = f"{source / path.name}"
    if not path.is_file():
        raise ValueError(f"{name} is missing; expected the tokenizer's files beside the weights")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as err:
        raise ValueError(f"{name} is no JSON ({err}); download it again") from err
    if not isinstance(found, dict):
        raise ValueError(f"{name} holds no object; download it again")
    return found


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
