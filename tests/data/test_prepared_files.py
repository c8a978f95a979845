"""Prepared files in datasets' cache: the same for the same records, kept while they are used, gone a month after."""

import os
import time
from pathlib import Path

import pytest

from llamafactory_ext.data.normalise import write_lines


DAY = 24 * 3600


def age(path: Path, accessed: float, written: float) -> None:
    """Sets both times, in days before now."""
    now = time.time()
    os.utime(path, (now - accessed * DAY, now - written * DAY))


def test_what_is_not_used_for_a_month_goes(tmp_path: Path) -> None:
    unused, read, new = (write_lines([text], tmp_path, "a b") for text in ("unused", "read", "new"))
    age(unused, accessed=31, written=31)
    age(read, accessed=29, written=90)
    age(new, accessed=90, written=29)
    left = tmp_path / ".part-abc.jsonl"  # by a kill
    left.touch()
    age(left, accessed=31, written=31)
    write_lines(["another"], tmp_path, "b")
    assert not unused.exists() and not left.exists()
    assert read.exists() and new.exists()


def test_a_use_counts_and_leaves_the_time_of_change(tmp_path: Path) -> None:
    """datasets knows a file by its time of change: its own cache would be lost with it."""
    path = write_lines(["one"], tmp_path, "a")
    age(path, accessed=31, written=31)
    before = path.stat()
    assert write_lines(["one"], tmp_path, "a") == path
    after = path.stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)
    assert after.st_atime > time.time() - DAY


@pytest.mark.parametrize("name", ["data.jsonl", "a-0123456789abcdef.json", "a-0123456789ABCDEF.jsonl", "part.jsonl"])
def test_files_of_other_names_stay(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    age(tmp_path / name, accessed=400, written=400)
    write_lines(["one"], tmp_path, "b")
    assert (tmp_path / name).exists()


def test_only_regular_files_go(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.touch()
    age(target, accessed=400, written=400)
    link, folder = (tmp_path / f"{name}-0123456789abcdef.jsonl" for name in ("link", "folder"))
    link.symlink_to(target)
    folder.mkdir()
    age(folder, accessed=400, written=400)
    write_lines(["one"], tmp_path, "b")
    assert link.is_symlink() and target.exists() and folder.is_dir()


def test_a_fault_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        write_lines(["one", "\ud800"], tmp_path, "a")
    assert not any(tmp_path.iterdir())
