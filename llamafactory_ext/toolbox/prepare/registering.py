"""Registering: the outputs' entries in a dataset_info.json, where every other entry and the order stay."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from llamafactory_ext.errors import UsageError
from llamafactory_ext.files import Drafts, writing
from llamafactory_ext.gdsh import GdshError
from llamafactory_ext.gdsh.dialects import unique_keys
from llamafactory_ext.gdsh.textfiles import read_text

from .options import Options, PrepareError
from .records import CHATTS_COLUMNS, GDSH_COLUMNS, GDSH_TAGS, SYSTEM


Entries = dict[str, Any]

_PATIENCE = 60  # seconds; a run holds the file for as long as it takes to name its outputs


def read_registry(path: Path) -> Entries:
    """Read a dataset_info.json; one that does not exist is empty.

    Raises:
        UsageError: it cannot be read, is no JSON object, or names a key twice.
    """
    if not path.exists():
        return {}
    try:
        entries = json.loads(read_text(path), object_pairs_hook=unique_keys)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise UsageError(f"{str(path)!r} is not valid JSON at {where} ({error.msg}); correct it first") from error
    except (GdshError, RecursionError) as error:
        raise UsageError(f"{str(path)!r} cannot be kept as it is: {error}; correct it first") from error
    if not isinstance(entries, dict):
        raise UsageError(f"{str(path)!r} is not a JSON object of data sets; correct it first")
    return entries


def make_entries(options: Options, folder: Path, with_system: bool) -> Entries:
    """Describe the outputs, each under its file's stem.

    Args:
        options: must have `register` and at least one output.
        folder: where the series of cleaned annotations are searched.
        with_system: whether the ChatTS records have a system text.

    Raises:
        UsageError: two outputs have the same stem.
    """
    base = _base(options)
    entries: Entries = {}
    for name, path in options.outputs.items():
        if path.stem in entries:
            raise UsageError(
                f"two outputs are named {path.stem!r}, which is also the name of their entries in dataset_info.json; "
                "give one of them another name"
            )
        entry: Entries = {"file_name": _relative(path, base)}
        if name.startswith("annotations"):
            entry |= {"formatting": "gdsh", "folder": _relative(folder, base), "columns": GDSH_COLUMNS}
            entry["tags"] = GDSH_TAGS
        else:
            entry["columns"] = {**CHATTS_COLUMNS, **({SYSTEM: SYSTEM} if with_system else {})}
        entries[path.stem] = entry
    return entries


def check_registry(options: Options, folder: Path) -> None:
    """Check before any work that the outputs can be registered.

    Raises:
        UsageError: the file cannot be read, or has another entry of that name and `--force` is not given.
    """
    if options.register is None:
        return
    registry = read_registry(options.register)
    plain, with_system = (make_entries(options, folder, system) for system in (False, True))
    taken = [name for name in plain if name in registry and registry[name] not in (plain[name], with_system[name])]
    if taken and not options.force:
        raise UsageError(
            f"{str(options.register)!r} already has another entry {', '.join(map(repr, taken))}; "
            "name the outputs differently, or replace it with --force"
        )


@contextmanager
def alone(path: Path | None) -> Iterator[None]:
    """Let one run at a time change a dataset_info.json: the others wait. `PATH.lock` stays there, empty.

    Raises:
        PrepareError: another run did not end.
        WriteError: there is no place for the lock.
    """
    if path is None:
        yield
        return
    path = path.resolve()
    lock = FileLock(f"{path}.lock", timeout=_PATIENCE)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            held = lock.acquire()
        except Timeout as error:
            raise PrepareError(
                f"another run has held {str(path)!r} for {_PATIENCE} s; try again when it has ended"
            ) from error
    with held:
        yield


def draft_registry(drafts: Drafts, options: Options, folder: Path, with_system: bool) -> bool:
    """Add drafts of the new dataset_info.json and of the old one, `.bak`; False where nothing would change.

    Must be called, and its drafts committed, `alone`: what others registered meanwhile stays.
    """
    if options.register is None:
        return False
    check_registry(options, folder)
    path = options.register
    registry = read_registry(path)
    updated = registry | make_entries(options, folder, with_system)
    if updated == registry and path.exists():
        return False
    if path.exists():
        with writing(path):
            old = path.read_bytes()
        drafts.write(path.with_name(f"{path.name}.bak"), old)
    drafts.write_json(path, updated)
    return True


def _base(options: Options) -> Path:
    if options.register is None:
        raise UsageError("no dataset_info.json to register the outputs in: name --register")
    return options.register.resolve().parent


def _relative(path: Path, base: Path) -> str:
    """The path from `base`, where there is a way (on Windows there is none to another drive)."""
    try:
        return Path(os.path.relpath(path.resolve(), base)).as_posix()
    except ValueError:
        return path.resolve().as_posix()
