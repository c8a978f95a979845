"""Files of a checkpoint or an adapter, in a folder or by its hub name: found as transformers will find them."""

from pathlib import Path
from typing import Any

from transformers.utils import cached_file


def find_file(source: str | Path, name: str, **hub: Any) -> Path | None:
    """Returns where a file lies, downloaded first where ``source`` is a hub name; None where there is none.

    Arguments:
        hub: ``cache_dir``, ``revision``, ``token``, ``subfolder``, as ``from_pretrained`` takes them.
    """
    try:
        found = cached_file(str(source), name, **{key: value for key, value in hub.items() if value})
    except OSError:  # whoever loads it says so better
        return None
    return None if found is None else Path(found)
