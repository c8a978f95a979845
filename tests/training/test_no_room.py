"""What a run lacks is named: inodes, a folder that can be written, memory, room. With the real thing where root may
make it (a small tmpfs, a read-only mount), and everywhere with what the system says of it."""

import errno
import multiprocessing
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from resilience.options_bench import PLAIN, Bench, prepare
from transformers import TrainerCallback

from llamafactory_ext.training import resuming
from llamafactory_ext.training.resuming import full_disk_told
from llamafactory_ext.training.whole_checkpoints import checkpoints, first_fault


Train = Callable[..., Path]


class At(TrainerCallback):  # type: ignore[misc]
    """Does something in the middle of step 3."""

    def __init__(self, what: Callable[[], object]) -> None:
        self.what = what

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            self.what()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with prepare(tmp_path_factory.mktemp("room")) as bench:
        yield bench


@pytest.fixture(scope="module")
def train(bench: Bench) -> Train:
    return partial(train_in, bench.folder)


def train_in(folder: Path, output: Path, at_step_3: Callable[[], object] | None = None, **keys: Any) -> Path:
    """LLaMA-Factory's own `run_exp` in this process, three steps with a checkpoint each."""
    from llamafactory.train.tuner import run_exp

    paths = {"model_name_or_path": str(folder / "model"), "dataset_dir": str(folder / "data")}
    paths |= {"cache_dir": str(folder / "cache"), "output_dir": str(output), "overwrite_output_dir": False}
    steps = {"max_steps": 3, "save_steps": 1, "per_device_train_batch_size": 2}
    run_exp({**PLAIN, **paths, **steps, **keys}, callbacks=[At(at_step_3)] if at_step_3 else [])
    return output


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Runs `mount` with these words; what it mounted is taken away at the end."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root may mount")
    places: list[str] = []

    def run(*words: str) -> None:
        done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"may not mount here: {done.stderr.strip()}")
        places.append(words[-1])

    yield run
    for place in reversed(places):
        subprocess.run(["umount", "--lazy", place], check=False, capture_output=True)


def test_a_full_inode_table(tmp_path: Path, train: Train, mount: Callable[..., None]) -> None:
    place = tmp_path / "small"
    place.mkdir()
    mount("-t", "tmpfs", "-o", "size=64m,nr_inodes=200", "tmpfs", str(place))

    def fill() -> None:
        for number in range(200 - sum(1 for _ in place.rglob("*")) - 8):
            (place / f"small{number}").touch()

    with pytest.raises(OSError, match=r"out can't be written: its file system has no inode free, for all the") as told:
        train(place / "out", fill)
    assert "Delete files of any size, then give the same command again: it resumes from checkpoint-2." in str(
        told.value
    )
    assert "\n" not in str(told.value)
    for path in place.glob("small*"):
        path.unlink()
    assert first_fault(train(place / "out") / "checkpoint-3") is None


def test_a_folder_that_becomes_read_only(tmp_path: Path, train: Train, mount: Callable[..., None]) -> None:
    output = tmp_path / "out"

    def lock() -> None:
        mount("--bind", str(output), str(output))
        mount("-o", "remount,ro,bind", str(output))

    with pytest.raises(OSError, match=r"out can't be written: its file system is read-only \(") as told:
        train(output, lock)
    assert "Make it writable, then give the same command again: it resumes from checkpoint-2." in str(told.value)


def test_a_folder_that_is_read_only_from_the_start(tmp_path: Path, train: Train, mount: Callable[..., None]) -> None:
    mount("-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(tmp_path))
    with pytest.raises(OSError, match=r"Read-only file system") as told:
        train(tmp_path / "out")
    assert str(tmp_path / "out") in str(told.value)


def allocate_beyond_a_limit() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
    torch.empty(1 << 30, dtype=torch.uint8)


def train_within_a_limit(folder: Path, output: Path, told: Path) -> None:
    try:
        train_in(folder, output, allocate_beyond_a_limit)
    except BaseException as err:
        told.write_text(f"{type(err).__name__}: {err}", encoding="utf-8")


def test_a_limit_of_memory(tmp_path: Path, bench: Bench) -> None:
    """In a process of its own, since a limit may strike anywhere; a new one, since autograd's threads bear no fork."""
    report = tmp_path / "told"
    given = (bench.folder, tmp_path / "out", report)
    child = multiprocessing.get_context("spawn").Process(target=train_within_a_limit, args=given)
    child.start()
    child.join()
    told = report.read_text(encoding="utf-8")
    assert told.startswith("FullDiskError: There is no memory left for this process, which may have "), told
    assert "GiB (ulimit -v) (" in told and "\n" not in told
    assert told.endswith("Allow it more, then give the same command again: it resumes from checkpoint-2.")
    assert [path.name for path in checkpoints(tmp_path / "out")] == ["checkpoint-2", "checkpoint-1"]


# --- by what the system says, for those who may not mount ---


def system(**changed: int) -> Callable[[object], SimpleNamespace]:
    """What `statvfs` says of a file system with much room."""
    plain = {"f_flag": 0, "f_files": 1000, "f_favail": 500, "f_bavail": 1 << 20, "f_frsize": 4096}
    return lambda path: SimpleNamespace(**{**plain, **changed})


@pytest.mark.parametrize(
    ("number", "said", "lack"),
    [
        (errno.ENOSPC, system(f_favail=0), "its file system has no inode free, for all the room"),
        (errno.ENOSPC, system(f_bavail=0), "0.0 MiB free"),
        (errno.ENOSPC, system(f_files=0, f_favail=0, f_bavail=0), "0.0 MiB free"),  # btrfs counts no inodes
        (errno.EROFS, system(f_flag=os.ST_RDONLY), "its file system is read-only"),
        (errno.EROFS, system(), "its file system is read-only"),
    ],
)
def test_the_lack_is_named(number: int, said: Any, lack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming.os, "statvfs", said)
    with pytest.raises(OSError) as told, full_disk_told(str(tmp_path)), full_disk_told(str(tmp_path)):
        raise OSError(number, os.strerror(number))
    reason = f"({OSError(number, os.strerror(number))})"
    assert str(told.value).startswith(f"{tmp_path} can't be written: {lack} {reason}. "), "told once, not twice"


def test_a_file_system_that_says_itself_that_it_is_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch tells no more than that its archive came out wrong."""
    monkeypatch.setattr(resuming.os, "statvfs", system(f_flag=os.ST_RDONLY))
    with pytest.raises(OSError, match="its file system is read-only"), full_disk_told(str(tmp_path)):
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")


def test_a_folder_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming.os, "access", lambda path, mode: False)
    with pytest.raises(OSError, match="it may not be written to by this user"), full_disk_told(str(tmp_path)):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "checkpoint-2" / "model.safetensors"))


@pytest.mark.parametrize(
    "err",
    [
        MemoryError(),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        RuntimeError("[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("could not create a primitive"),
    ],
    ids=repr,
)
def test_memory_is_named(err: Exception, tmp_path: Path) -> None:
    said = r"^There is no memory left for this process.*it starts again\.$"
    with pytest.raises(OSError, match=said) as told, full_disk_told(str(tmp_path)):
        raise err
    assert "written" not in str(told.value)
