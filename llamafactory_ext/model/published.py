"""Copies the files that a published checkpoint's own loaders need into a saved checkpoint. Nothing is executed."""

import logging
import shutil
from pathlib import Path
from typing import Any

from transformers.utils import cached_file


logger = logging.getLogger(__name__)

_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


def copy_published_files(config: Any, folder: Path) -> list[str]:
    """Copies the Python files named by the published ``auto_map``, and processor configs, into ``folder``.

    Returns the names copied. A file that can't be had is named in a warning: the checkpoint still loads with this
    package, but not with the published loaders.
    """
    auto_map = (config.published or {}).get("auto_map") or {}
    references = [
        name for value in auto_map.values() for name in ([value] if isinstance(value, str) else value) if name
    ]
    modules = sorted({f"{name.split('--')[-1].split('.')[0]}.py" for name in references})
    copied = []
    for name in modules + (list(_PROCESSOR_FILES) if modules else []):
        try:
            source = cached_file(config.name_or_path, name)
        except OSError:
            if name in modules:
                logger.warning("%s was not found beside %s and is not in %s.", name, config.name_or_path, folder)
            continue
        if source is not None and Path(source).resolve() != (folder / name).resolve():
            shutil.copyfile(source, folder / name)
            copied.append(name)
    return copied
