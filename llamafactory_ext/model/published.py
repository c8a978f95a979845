"""Copies what a published checkpoint's own loaders need into a saved checkpoint. Nothing is executed.

That is its Python files, and its tokenizer's: transformers 5 writes those in a form that transformers 4, which the
published loaders were made for, can't open (class ``TokenizersBackend``, ``extra_special_tokens`` as a list).
"""

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from llamafactory_ext.files import copy_whole

from .source import find_file


logger = logging.getLogger(__name__)

_MODULE = re.compile(r"\w+")
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
TOKENIZER_FILES = (
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def copy_published_files(config: Any, folder: Path) -> list[str]:
    """Copies the Python files named by the published ``auto_map``, and processor configs, into ``folder``.

    Returns the names copied. A file that can't be had is named in a warning: the checkpoint still loads with this
    package, but not with the published loaders.
    """
    auto_map = (config.published or {}).get("auto_map") or {}
    references = [
        name for value in auto_map.values() for name in ([value] if isinstance(value, str) else value) if name
    ]
    stems = {name.split("--")[-1].split(".")[0] for name in references}
    modules = sorted(f"{stem}.py" for stem in stems if _MODULE.fullmatch(stem))  # no path: nothing but files beside it
    copied = copy_files(config.name_or_path, modules + (list(_PROCESSOR_FILES) if modules else []), folder)
    for name in modules:
        if not (folder / name).is_file():
            logger.warning("%s was not found beside %s and is not in %s.", name, config.name_or_path, folder)
    return copied


def copy_published_tokenizer(source: str, tokenizer: Any, folder: Path) -> list[str]:
    """Copies the tokenizer's files of ``source`` into ``folder``, over those that were saved there.

    Returns the names copied: none where ``tokenizer`` has other tokens by now, or ends answers with another one.
    """
    try:
        original = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError):  # it was loaded in a way of its own; what was saved has to do
        return []
    same = (
        original.get_vocab() == tokenizer.get_vocab() and original.special_tokens_map == tokenizer.special_tokens_map
    )
    return copy_files(source, TOKENIZER_FILES, folder) if same else []


def copy_files(source: str, names: Iterable[str], folder: Path) -> list[str]:
    """Copies those of the files that a checkpoint has, and that lie in it; returns their names."""
    copied = []
    for name in names:
        found = find_file(source, name)
        if found is None or found.resolve() == (folder / name).resolve():
            continue
        if not _belongs(found):
            logger.warning("%s is no file of this checkpoint, but leads elsewhere; it is not copied.", found)
            continue
        copy_whole(found, folder / name)
        copied.append(name)
    return copied


def _belongs(file: Path) -> bool:
    """Whether a file is a regular one of its folder; in a hub's cache all of them are links to its ``blobs``."""
    real = file.resolve()
    cache = file.parent.resolve().parent.parent / "blobs"
    return real.is_file() and real.parent in (file.parent.resolve(), cache)
