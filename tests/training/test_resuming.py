"""What a run resumes from, part by part: names, log, clocks, signals, and the Trainer that they are mixed into."""

import errno
import json
import os
import resource
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llamafactory_ext.training import lasting, resuming, whole_checkpoints
from llamafactory_ext.training.lasting import Lasting
from llamafactory_ext.training.stopping import StopOnSignal


NO_STATE = "trainer_state.json is not what a Trainer writes"
STATE = {"global_step": 4, "max_steps": 4, "log_history": [{"step": 4}]}


def checkpoint(path: Path, *files: str, size: int = 0) -> Path:
    """A whole checkpoint, with more files of this size."""
    path.mkdir(parents=True)
    for name in files:
        (path / name).write_bytes(b"x" * size)
    (path / "trainer_state.json").write_text(json.dumps(STATE))
    return path


# What is whole


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("trainer_state.json", "{", "trainer_state.json is cut off at 1 bytes"),
        ("trainer_state.json", "[1]", NO_STATE),
        ("trainer_state.json", json.dumps(STATE | {"global_step": -1}), NO_STATE),
        ("trainer_state.json", json.dumps(STATE | {"max_steps": 1.5}), NO_STATE),
        ("trainer_state.json", json.dumps(STATE | {"log_history": {}}), NO_STATE),
        ("trainer_state.json", json.dumps(STATE | {"log_history": [5]}), NO_STATE),
        ("trainer_state.json", json.dumps(STATE | {"global_step": 0, "max_steps": 0}), None),
        ("sub/trainer_state.json", json.dumps({"another": 1}), "sub/trainer_state.json is not what a Trainer writes"),
        ("a.pt", "P", "a.pt is cut off at 1 bytes"),
        ("a.pth", "PK" + "x" * 1998, "a.pth is cut off at 2,000 bytes"),
        ("a.bin", "ab", None),  # torch's older form can't be judged
        ("sub/a.safetensors", "x", "sub/a.safetensors is cut off at 1 bytes"),
        ("a.index.json", "{", "a.index.json is cut off at 1 bytes"),
        ("a.index.json", "[]", "a.index.json is no index of files beside it"),
        ("a.index.json", '{"weight_map": {"x": "../y"}}', "a.index.json is no index of files beside it"),
        ("a.index.json", '{"weight_map": {"x": 5}}', "a.index.json is no index of files beside it"),
        ("a.index.json", '{"weight_map": {"x": "y.bin", "z": "w.bin"}}', "no w.bin, which a.index.json names"),
        ("a.index.json", '{"weight_map": {"x": "beside.txt"}}', None),
        ("a.txt", "", None),
    ],
)  # fmt: skip
def test_what_a_checkpoint_lacks(name: str, content: str, fault: str | None, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "checkpoint-4", "beside.txt")
    (path / "sub").mkdir()
    (path / name).write_text(content)
    found = whole_checkpoints.first_fault(path)
    assert found == fault or (fault is not None and str(found).startswith(fault))
    assert whole_checkpoints.first_fault(path, deep=False) == (None if name.startswith("sub") else found)


def test_what_is_taken_for_a_checkpoint(tmp_path: Path) -> None:
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-8-old", "earlier-checkpoint-3", "checkpoint-x"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-11").touch()
    assert [path.name for path in whole_checkpoints.checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-9"]
    assert whole_checkpoints.checkpoints(tmp_path / "none") == []
    assert whole_checkpoints.step_of(tmp_path / "checkpoint-10") == 10
    for text, found in (("[1]", {}), ("{", {}), ('{"a": 1}', {"a": 1})):
        (tmp_path / "a.json").write_text(text)
        assert whole_checkpoints.read_json(tmp_path / "a.json") == found


# What is resumed from


def test_only_runs_of_ours_look_for_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint(tmp_path / "checkpoint-2"), (tmp_path / "checkpoint-4").mkdir()
    upstream: Any = SimpleNamespace(get_last_checkpoint=lambda folder: f"{folder}/checkpoint-4")
    assert resuming.install(upstream) == "wrapped"
    for ours, step in ((False, 4), (True, 2)):
        monkeypatch.setattr(resuming, "this_run_is_ours", lambda ours=ours: ours)
        assert upstream.get_last_checkpoint(str(tmp_path)) == str(tmp_path / f"checkpoint-{step}")


def test_the_first_process_of_a_machine_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkpoint-4").mkdir()
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert resuming.take_last_whole(str(tmp_path)) is None and (tmp_path / "checkpoint-4").is_dir()
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert resuming.take_last_whole(str(tmp_path)) is None and (tmp_path / "incomplete-checkpoint-4").is_dir()


def test_a_name_that_is_taken_meanwhile_leads_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "checkpoint-4").mkdir()
    rename, tried = Path.rename, []

    def taken(path: Path, target: Path) -> Any:
        tried.append(target.name)
        if len(tried) < 3:
            raise OSError((errno.ENOTEMPTY, errno.EEXIST)[len(tried) - 1], "taken")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", taken)
    assert resuming.take_last_whole(str(tmp_path)) is None
    assert tried == [f"incomplete-checkpoint-4{end}" for end in ("", "-2", "-3")]
    assert [one.message for one in log.records] == [
        f"{tmp_path}/checkpoint-4 is not resumed from: no trainer_state.json, which is written last. It is "
        "incomplete-checkpoint-4-3 now, and can be deleted."
    ]


@pytest.mark.parametrize(("file", "said"), [("optimizer.pt", 0), ("global_step4", 0), ("scheduler.pt", 1)])
def test_a_fresh_optimizer_is_said(file: str, said: int, tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    asked = checkpoint(tmp_path / "checkpoint-4", file, size=4)
    assert resuming.choose_checkpoint(str(tmp_path / "out"), str(asked)) == str(asked)
    assert log.text.count(f"{asked} holds no optimizer (save_only_model?)") == said
    assert resuming.choose_checkpoint(str(tmp_path), True) == str(asked)
    assert resuming.choose_checkpoint(str(tmp_path), "") is None


def test_numbered_cpus_are_places() -> None:
    import io

    resuming.name_numbered_cpus()
    torch.save({"a": torch.arange(3)}, file := io.BytesIO())
    for place in ("cpu:0", "cpu"):
        file.seek(0)
        assert torch.equal(torch.load(file, map_location=place)["a"], torch.arange(3))
    for place in ("cpu:x", "tpu:0"):
        file.seek(0)
        with pytest.raises(RuntimeError, match="don't know how to restore data location"):
            torch.load(file, map_location=place)


# The folder and the log before training


def test_a_run_that_starts_over_clears_its_way(tmp_path: Path) -> None:
    lines = [f'{{"current_steps": {step}, "loss": 1.0}}' for step in (1, 2)]
    (log := tmp_path / "trainer_log.jsonl").write_text("\n".join(lines))
    checkpoint(tmp_path / "checkpoint-2")
    resuming.clear_way(str(tmp_path), str(tmp_path / "checkpoint-1"))
    assert log.read_text() == lines[0] + "\n" and (tmp_path / "checkpoint-2").is_dir()
    resuming.clear_way(str(tmp_path), True)
    assert log.read_text() == "" and (tmp_path / "checkpoint-2").is_dir()
    resuming.clear_way(str(tmp_path), None)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["earlier-checkpoint-2"]
    log.unlink()
    resuming.clear_way(str(tmp_path), None)
    assert not log.exists()


def test_lines_that_stay(tmp_path: Path) -> None:
    nothing = dict.fromkeys(("current_steps", "total_steps", "epoch", "percentage", "elapsed_time"), 1)
    kept = [{"current_steps": 2.0, "loss": 1}, {"current_steps": 1, "remaining_time": "0", "eval_loss": 1}]
    gone = [{"current_steps": 2.5, "loss": 1}, nothing, nothing | {"remaining_time": "0"}, {"loss": 1}, 5, [1]]
    gone += [{"current_steps": None}, {"current_steps": "x"}]
    log = tmp_path / "trainer_log.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in [*gone[:3], *kept, *gone[3:]]) + "{")
    resuming.rewind_log(log, 2)
    assert [json.loads(line) for line in log.read_text().splitlines()] == kept
    before = log.stat()
    resuming.rewind_log(log, 2)
    assert (log.stat().st_ino, log.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns), "nothing to take out"


def test_clocks_that_went_back(tmp_path: Path) -> None:
    times = {"checkpoint-8": 900, "checkpoint-10": 2000, "checkpoint-12": 1000}
    for name, when in times.items():
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (when, when))
    resuming.order_by_step(tmp_path / "checkpoint-12")
    found = {path.name: path.stat().st_mtime for path in tmp_path.iterdir()}
    assert found == {"checkpoint-12": 1000, "checkpoint-10": 998, "checkpoint-8": 996}
    os.utime(tmp_path / "checkpoint-8", (500, 500))
    resuming.order_by_step(tmp_path / "checkpoint-12")
    assert (tmp_path / "checkpoint-8").stat().st_mtime == 500, "in order, so that nothing is touched"


def test_no_step_is_left(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    args = SimpleNamespace(output_dir=str(tmp_path))

    def begin(step: int, most: int = 4) -> None:
        state = SimpleNamespace(global_step=step, max_steps=most)
        resuming.RefuseNoStep().on_train_begin(args, state, None)

    begin(3)
    assert not log.records
    begin(4)
    (tmp_path / "trainer_state.json").write_text(json.dumps(STATE))
    begin(4)  # without its model it has not ended
    told = "No step is left after 4: only the final model is written."
    assert [one.message for one in log.records] == [told] * 2
    (tmp_path / "adapter_model.bin").write_bytes(b"ab")
    with pytest.raises(ValueError, match=rf"^{tmp_path}: this run has ended at step 4 of 3, no step is left\. Raise"):
        begin(4, 3)
    begin(5)  # the model there is of an earlier step
    (tmp_path / "trainer_state.json").write_text(json.dumps(STATE | {"global_step": "4"}))
    begin(4)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.pt").write_bytes(b"P")  # not looked at
    (tmp_path / "trainer_state.json").write_text(json.dumps(STATE))
    with pytest.raises(ValueError, match="no step is left"):
        begin(4)
    (tmp_path / "adapter_model.bin").write_bytes(b"P")
    begin(4)


# What a write lacks


def told(err: Exception, folder: Path) -> str:
    with pytest.raises(resuming.FullDiskError) as caught, resuming.full_disk_told(str(folder)):
        raise err
    return str(caught.value)


NO_ROOM = OSError(errno.ENOSPC, "No space left")


def test_room_and_what_a_checkpoint_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """12.5 MiB are 25 blocks of half a MiB; files are counted, folders are not."""
    free = SimpleNamespace(f_flag=0, f_files=9, f_favail=9, f_bavail=25, f_frsize=1 << 19)
    monkeypatch.setattr(resuming.os, "statvfs", lambda path: free)
    remedy = "Make room (fewer checkpoints: save_total_limit=2), then give the same command again: it"
    reason = f"([Errno {errno.ENOSPC}] No space left)"
    assert told(NO_ROOM, tmp_path) == f"{tmp_path} can't be written: 12.5 MiB free {reason}. {remedy} starts again."
    path = checkpoint(tmp_path / "checkpoint-4", "a", size=(1 << 20) - len(json.dumps(STATE)))
    (path / "sub").mkdir()
    (path / "sub" / "b").write_bytes(bytes(1 << 19))
    assert told(NO_ROOM, tmp_path) == (
        f"{tmp_path} can't be written: 12.5 MiB free, a checkpoint takes 1.5 MiB {reason}. {remedy} resumes from "
        "checkpoint-4."
    )
    for longest, lack in ((3 << 19, "12.5 MiB free"), ((3 << 19) - 1, "a file may have 1.5 MiB here (ulimit -f)")):
        monkeypatch.setattr(resuming.resource, "getrlimit", lambda which, longest=longest: (longest, 1))
        assert told(NO_ROOM, tmp_path).startswith(f"{tmp_path} can't be written: {lack}")
    (path / "trainer_state.json").unlink()
    assert "12.5 MiB free (" in told(NO_ROOM, tmp_path), "no whole checkpoint, whose size would tell"


def test_who_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, outside = (PermissionError(errno.EACCES, "no", f"{tmp_path}{end}") for end in ("/a", "/../a"))
    outside.filename = "/elsewhere/a"
    lack = f"{tmp_path} can't be written: it may not be written to by this user ("
    monkeypatch.setattr(resuming.os, "access", lambda path, mode: mode != os.W_OK)
    assert told(NO_ROOM, tmp_path).startswith(lack)
    monkeypatch.undo()
    denied = PermissionError(errno.EACCES, "Permission denied", f"{tmp_path}/a")
    assert told(denied, tmp_path).startswith(lack) and "). Allow it, then give" in told(denied, tmp_path)
    assert "MiB free" in told(inside, tmp_path)
    with pytest.raises(PermissionError), resuming.full_disk_told(str(tmp_path)):
        raise outside


def test_memory_by_its_limit_or_a_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin, end = "There is no memory left for this process", "then give the same command again: it starts again."
    assert told(MemoryError(), tmp_path) == f"{begin} (MemoryError). Allow it more, {end}"
    err = RuntimeError("a worker\nand more")
    err.__context__ = MemoryError()
    assert told(err, tmp_path) == f"{begin} (a worker). Allow it more, {end}"
    monkeypatch.setattr(resuming.resource, "getrlimit", lambda which: (3 << 29, resource.RLIM_INFINITY))
    limit = "which may have 1.50 GiB (ulimit -v)"
    assert told(MemoryError(), tmp_path) == f"{begin}, {limit} (MemoryError). Allow it more, {end}"


# A signal to end


@pytest.fixture
def stop() -> Any:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield StopOnSignal(SimpleNamespace(args=SimpleNamespace(world_size=1)))
    signal.signal(signal.SIGTERM, before)


def test_a_signal_stops_after_the_step(stop: Any, log: pytest.LogCaptureFixture) -> None:
    def step(number: int) -> tuple[bool, bool]:
        control = SimpleNamespace(should_save=False, should_training_stop=False)
        stop.on_step_end(None, SimpleNamespace(global_step=number, max_steps=4), control)
        return control.should_save, control.should_training_stop

    stop.on_train_begin(None, None, None)
    assert step(1) == (False, False) and not stop.stopped
    os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "the second one ends the process"
    assert step(4) == (False, False) and not stop.stopped, "it ends by itself"
    assert step(3) == (True, True) and stop.stopped
    assert [one.message for one in log.records] == ["Asked to end (SIGTERM): checkpoint-3 is written, then it stops."]


def test_the_handler_of_somebody_else_stays(stop: Any) -> None:
    stop.on_train_begin(None, None, None)
    assert signal.getsignal(signal.SIGTERM) == stop._note
    stop.on_train_end(None, None, None)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    thread = threading.Thread(target=stop.on_train_begin, args=(None, None, None))
    thread.start(), thread.join()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stop.on_train_begin(None, None, None), stop.release()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN


# The Trainer


class Base:
    """What of upstream's Trainer is called."""

    def __init__(self, args: Any) -> None:
        self.args, self.callbacks, self.done = args, list[Any](), list[Any]()
        self.accelerator = SimpleNamespace(wait_for_everyone=lambda: self.done.append("waited"))
        self.is_world_process_zero = lambda: args.first

    def add_callback(self, one: Any) -> None:
        self.callbacks.append(type(one).__name__)

    def train(self, checkpoint: Any, *more: Any) -> Any:
        self.done.append((checkpoint, *more))
        if self.args.fails:
            raise self.args.fails
        return "result"

    def _save_rng_state(self, output_dir: str) -> None:
        self.done.append("saved")

    def save_model(self, output_dir: str | None, internal: bool) -> None:
        self.done.append((output_dir, internal))


class Lasts(Lasting, Base):
    pass


@pytest.fixture
def trainer(tmp_path: Path) -> Any:
    cpu = SimpleNamespace(type="cpu")
    args = SimpleNamespace(output_dir=str(tmp_path), world_size=1, device=cpu, first=True, fails=None)
    args.should_save, args.overwrite_output_dir = True, False
    return Lasts(args)


def test_a_trainer_that_lasts(trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []
    monkeypatch.setattr(lasting, "name_numbered_cpus", lambda: trained.append("cpus"))
    monkeypatch.setattr(trainer.stop_on_signal, "release", lambda: trained.append("released"))
    assert trainer.callbacks == ["StopOnSignal", "RefuseNoStep"]
    assert trainer.train(None, 5) == "result" and trainer.done == [(None, 5)] and trained == ["released"]
    asked = str(checkpoint(tmp_path / "checkpoint-2", "optimizer.pt", size=4))
    trainer.args.world_size, trainer.args.first = 2, False
    trainer.train(None), trainer.train(asked)
    assert (tmp_path / "checkpoint-2").is_dir() and trained[1:] == ["released", "cpus", "released"]
    trainer.args.device.type = "cuda"
    trainer.train(asked)
    assert trained[4:] == ["released"]
    trainer.args.fails, trainer.args.first = OSError(errno.ENOSPC, "No space left"), True
    with pytest.raises(resuming.FullDiskError):
        trainer.train(None)
    assert (tmp_path / "earlier-checkpoint-2").is_dir() and trained[5:] == ["released"]


@pytest.mark.parametrize(("resumes", "then"), [(True, "the same command resumes"), (False, "the checkpoint is what")])
def test_a_run_that_was_stopped(resumes: bool, then: str, trainer: Any, log: pytest.LogCaptureFixture) -> None:
    trainer.resumes, trainer.stop_on_signal.stopped = resumes, True
    with pytest.raises(SystemExit) as ended:
        trainer.train()
    assert ended.value.code == 143 and log.records[-1].message.startswith(f"Not finished: {then}")


def test_what_is_saved_in_which_order(trainer: Any, tmp_path: Path) -> None:
    trainer._save_rng_state("x")
    assert trainer.done == ["saved", "waited"]
    for step, when in ((2, 900), (4, 500)):
        os.utime(checkpoint(tmp_path / f"checkpoint-{step}"), (when, when))
    last, before = tmp_path / "checkpoint-4", tmp_path / "checkpoint-2"
    trainer.save_model(None, True), trainer.save_model(str(last), False)
    trainer.args.should_save = False
    trainer.save_model(str(last), True)
    assert before.stat().st_mtime == 900
    trainer.args.should_save = True
    trainer.save_model(str(last), True)
    assert before.stat().st_mtime == 498


def test_a_stage_that_does_not_resume(trainer: Any, tmp_path: Path) -> None:
    trainer.resumes = False
    told = r"Stage `rm` can't resume from .*checkpoint-2: "
    asked = str(checkpoint(tmp_path / "checkpoint-2", "optimizer.pt", size=4))
    with pytest.raises(ValueError, match=told):
        trainer.train(None)
    trainer.args.overwrite_output_dir = True
    with pytest.raises(ValueError, match=told):
        trainer.train(asked)
    assert trainer.train(None) == "result"
