"""A run resumes from its last whole checkpoint, whatever ended it, and ends as one that nothing happened to."""

import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from conftest import ROOT, Gdsh, annotation, answer, cli_environment, log_history, start_cli
from safetensors.torch import load_file
from transformers import TrainerCallback

from llamafactory_ext.training.resuming import choose_checkpoint, full_disk_told, rewind_log, take_last_whole
from llamafactory_ext.training.whole_checkpoints import checkpoints, first_fault, last_whole


Train = Callable[..., Path]


@pytest.fixture(scope="module")
def recipe(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Four steps on four short series, a checkpoint after each second one."""
    folder = tmp_path_factory.mktemp("resume")
    data = Gdsh(folder / "data")
    for point in range(4):
        data.csv(f"p{point}.csv", [float((i * (point + 3)) % 11) for i in range(64)])
    data.records(*[annotation(f"p{point}.jpg", answer((5 + point, 9 + point))) for point in range(4)])
    keys: dict[str, Any] = yaml.safe_load((ROOT / "yaml" / "cpu_demo.yaml").read_text("utf-8"))
    keys |= {"model_name_or_path": str(demo / "model"), "dataset": "a", "dataset_dir": str(data.folder)}
    keys |= {"cache_dir": str(folder / "cache"), "output_dir": str(folder / "whole"), "overwrite_output_dir": False}
    return keys | {"per_device_train_batch_size": 1, "max_steps": 4, "save_steps": 2, "save_total_limit": 2}


@pytest.fixture(scope="module")
def train(recipe: dict[str, Any]) -> Train:
    """LLaMA-Factory's own `run_exp` in this process; takes an output folder and keys, returns the folder."""

    def run(output: Path, **keys: Any) -> Path:
        from llamafactory.train.tuner import run_exp

        run_exp({**recipe, "output_dir": str(output), **keys})
        return output

    return run


@pytest.fixture(scope="module")
def whole(recipe: dict[str, Any], train: Train) -> Path:
    """A run that nothing happens to."""
    return train(Path(recipe["output_dir"]))


@pytest.fixture
def killed(whole: Path, tmp_path: Path) -> Path:
    """The same run as a kill in its last checkpoint leaves it: cut off there, nothing written after it."""
    output = tmp_path / "out"
    output.mkdir()
    shutil.copytree(whole / "checkpoint-2", output / "checkpoint-2")
    shutil.copytree(whole / "checkpoint-4", output / "checkpoint-4")
    (output / "checkpoint-4" / "trainer_state.json").unlink()
    cut(output / "checkpoint-4" / "optimizer.pt")
    shutil.copy(whole / "trainer_log.jsonl", output)
    return output


def cut(path: Path, share: float = 0.5) -> None:
    os.truncate(path, int(path.stat().st_size * share))


def assert_same(output: Path, whole: Path) -> None:
    """Weights to the bit, every loss, every line of the log that is no time."""
    expected, found = (load_file(folder / "model.safetensors") for folder in (whole, output))
    assert set(found) == set(expected) and all(torch.equal(found[key], expected[key]) for key in expected)
    keys = ("step", "loss", "grad_norm", "learning_rate")
    losses = [[[one.get(key) for key in keys] for one in log_history(folder)] for folder in (whole, output)]
    assert losses[0] == losses[1]
    lines = [[json.loads(line) for line in (folder / "trainer_log.jsonl").open()] for folder in (whole, output)]
    assert [[(one["current_steps"], one.get("loss")) for one in log] for log in lines[:1]] == [
        [(one["current_steps"], one.get("loss")) for one in log] for log in lines[1:]
    ]


def test_what_the_trainer_wrote_is_whole(whole: Path) -> None:
    assert [path.name for path in checkpoints(whole)] == ["checkpoint-4", "checkpoint-2"]
    assert [first_fault(path) for path in checkpoints(whole)] == [None, None]
    files = sorted((whole / "checkpoint-4").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert files[-1].name == "trainer_state.json"


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
)
def test_a_file_that_is_cut_off_is_named(whole: Path, tmp_path: Path, name: str, share: float) -> None:
    checkpoint = Path(shutil.copytree(whole / "checkpoint-4", tmp_path / "checkpoint-4"))
    cut(checkpoint / name, share)
    fault = first_fault(checkpoint)
    assert fault is not None and fault.startswith(name)
    assert last_whole(tmp_path) is None


def test_layouts_of_deepspeed_and_of_several_files_are_whole(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-8"
    (checkpoint / "global_step8").mkdir(parents=True)
    shards = [checkpoint / "global_step8" / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (0, 1)]
    for path in (*shards, checkpoint / "rng_state_0.pth"):
        torch.save({"state": torch.zeros(3)}, path)
    (checkpoint / "latest").write_text("global_step8")
    (checkpoint / "zero_to_fp32.py").write_text("")
    (checkpoint / "trainer_state.json").write_text("{}")
    torch.save({"old": torch.zeros(3)}, checkpoint / "old.bin", _use_new_zipfile_serialization=False)
    assert first_fault(checkpoint) is None
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00002.safetensors"}}))
    assert first_fault(checkpoint) == f"no model-00002.safetensors, which {index.name} names"
    index.unlink()
    cut(shards[1])
    assert str(first_fault(checkpoint)).startswith("global_step8/zero_pp_rank_1_mp_rank_00_optim_states.pt is cut off")


def test_a_killed_run_goes_on(killed: Path, whole: Path, train: Train, log: pytest.LogCaptureFixture) -> None:
    with (killed / "trainer_log.jsonl").open("a") as file:
        file.write('{"current_steps": 4, "lo')  # and the writer of the log was killed, too
    train(killed)
    assert_same(killed, whole)
    assert "checkpoint-4 is not resumed from: no trainer_state.json, which is written last." in log.text
    assert "It is incomplete-checkpoint-4 now" in log.text
    # What is set aside does not count as one of the two checkpoints that are kept.
    assert {path.name for path in killed.iterdir() if path.is_dir()} == {
        "checkpoint-2",
        "checkpoint-4",
        "incomplete-checkpoint-4",
    }


def test_a_run_without_a_whole_checkpoint_starts_at_the_start(killed: Path, whole: Path, train: Train) -> None:
    shutil.rmtree(killed / "checkpoint-2")
    train(killed)
    assert_same(killed, whole)


def test_a_half_checkpoint_that_is_asked_for_is_refused(killed: Path, train: Train) -> None:
    asked = killed / "checkpoint-4"
    with pytest.raises(ValueError, match=r"can't be resumed from: no trainer_state\.json.*checkpoint-2 is whole"):
        train(killed, resume_from_checkpoint=str(asked))
    assert asked.is_dir()


def test_true_means_the_last_whole_one(killed: Path, whole: Path, train: Train) -> None:
    train(killed, resume_from_checkpoint=True)
    assert_same(killed, whole)


def test_a_run_that_starts_over_leaves_no_checkpoint_of_another(killed: Path, train: Train) -> None:
    """Killed before its step 4, it would resume from the other run's checkpoint-4."""
    shutil.rmtree(killed / "checkpoint-4")
    (killed / "checkpoint-2").rename(killed / "checkpoint-4")
    train(killed, overwrite_output_dir=True, max_steps=2)
    assert {path.name for path in killed.iterdir() if path.is_dir()} == {"checkpoint-2", "earlier-checkpoint-4"}


def test_without_an_optimizer_is_said(killed: Path, train: Train, log: pytest.LogCaptureFixture) -> None:
    (killed / "checkpoint-2" / "optimizer.pt").unlink()
    train(killed)
    assert "checkpoint-2 holds no optimizer" in log.text


@pytest.fixture
def no_room_for_the_optimizer() -> Iterator[Callable[[], None]]:
    """No file may be longer than 2 MB: the weights fit, twice as many numbers of the optimizer do not."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, before[1]))

    def lift() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    yield lift
    lift()


def test_a_full_disk_is_told_in_one_line(
    killed: Path, whole: Path, train: Train, no_room_for_the_optimizer: Callable[[], None]
) -> None:
    with pytest.raises(
        OSError, match=r"out can't be written: a file may have 1\.9 MiB.*it resumes from checkpoint-2\."
    ) as caught:
        train(killed)
    assert "\n" not in str(caught.value)
    assert first_fault(killed / "checkpoint-2") is None and first_fault(killed / "checkpoint-4") is not None
    no_room_for_the_optimizer()
    train(killed)
    assert_same(killed, whole)


def os_error(number: int) -> OSError:
    return OSError(number, "told by its number alone")


def caused(err: Exception, cause: Exception) -> Exception:
    err.__cause__ = cause
    return err


@pytest.mark.parametrize(
    "err",
    [
        ValueError("an error of training"),
        FloatingPointError("the loss is nan"),
        os_error(errno.EACCES),
        os_error(errno.ENOENT),
        caused(RuntimeError("a worker"), os_error(errno.EPERM)),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
def test_other_errors_are_not_taken_for_a_full_disk(err: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(err)) as caught, full_disk_told(str(tmp_path)):
        raise err
    assert caught.value is err


@pytest.mark.parametrize(
    "err",
    [
        os_error(errno.ENOSPC),
        os_error(errno.EDQUOT),
        os_error(errno.EFBIG),
        caused(RuntimeError("unexpected pos 64"), os_error(errno.ENOSPC)),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=repr,
)
def test_failed_writes_are_told_in_one_line(err: Exception, tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=r"can't be written: .* MiB free \(.*\)\. .*it starts again\.") as caught,
        full_disk_told(str(tmp_path)),
    ):
        raise err
    assert caught.value.__suppress_context__ and "\n" not in str(caught.value)


def test_a_checkpoint_that_cannot_be_renamed_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a name that is taken leads to the next one."""
    (tmp_path / "checkpoint-4").mkdir()
    tried = []

    def refuse(path: Path, target: Path) -> None:
        tried.append(target.name)
        assert len(tried) < 5, tried
        raise os_error(errno.EACCES)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(PermissionError):
        take_last_whole(str(tmp_path))
    assert tried == ["incomplete-checkpoint-4"]


def test_a_checkpoint_that_another_process_renamed_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    def gone(path: Path, target: Path) -> None:
        raise os_error(errno.ENOENT)

    (tmp_path / "checkpoint-4").mkdir()
    monkeypatch.setattr(Path, "rename", gone)
    assert take_last_whole(str(tmp_path)) is None
    assert "not resumed from" not in log.text


def test_what_is_set_aside_again_gets_the_next_number(tmp_path: Path) -> None:
    for _ in range(3):
        (tmp_path / "checkpoint-4").mkdir()
        (tmp_path / "checkpoint-4" / "half").touch()  # an empty folder would be replaced
        assert take_last_whole(str(tmp_path)) is None
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"incomplete-checkpoint-4", "incomplete-checkpoint-4-2", "incomplete-checkpoint-4-3"}


def test_the_log_is_rewound_to_its_step(tmp_path: Path) -> None:
    lines = [f'{{"current_steps": {step}, "loss": 1.0}}' for step in (1, 2, 3, 4)]
    log = tmp_path / "trainer_log.jsonl"
    log.write_text("\n".join([*lines, '{"loss": 1.0}', "5", '{"current_steps": 4, "lo']), "utf-8")
    rewind_log(log, 4)
    assert log.read_text("utf-8").splitlines() == lines
    rewind_log(log, 2)
    assert log.read_text("utf-8") == f"{lines[0]}\n{lines[1]}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["trainer_log.jsonl"]


def test_what_may_be_asked_for(whole: Path, tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    assert choose_checkpoint(str(whole), None) is None
    assert choose_checkpoint(str(tmp_path), True) is True, "upstream says that there is none"
    assert choose_checkpoint(str(tmp_path), str(whole / "checkpoint-2")) == str(whole / "checkpoint-2")
    assert "holds no optimizer" not in log.text
    with pytest.raises(ValueError, match="there is no such folder; there is no whole one beside it"):
        choose_checkpoint(str(tmp_path), str(tmp_path / "checkpoint-9"))


# --- a folder belongs to one run ---


@pytest.fixture
def begun(whole: Path, tmp_path: Path) -> Path:
    """What a run that has ended leaves."""
    return Path(shutil.copytree(whole, tmp_path / "out"))


@pytest.fixture
def parse(recipe: dict[str, Any]) -> Callable[..., Any]:
    """LLaMA-Factory's own parser; takes an output folder and keys."""

    def run(output: Path, **keys: Any) -> Any:
        from llamafactory.hparams import get_train_args

        return get_train_args({**recipe, "output_dir": str(output), **keys})

    return run


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"learning_rate": 0.5}, "learning_rate 0.005 (here 0.5)"),
        ({"finetuning_type": "lora"}, "finetuning_type full (here lora)"),
        ({"lora_rank": 16, "seed": 1}, "lora_alpha 16 (here 32), lora_rank 8 (here 16), seed 42 (here 1)"),
        ({"cutoff_len": 512}, "cutoff_len 4096 (here 512)"),
        ({"dataset": "b"}, "dataset a (here b)"),
    ],
)
def test_another_run_in_the_folder_is_refused(
    begun: Path, parse: Callable[..., Any], keys: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(f"out holds a run with {told}: set `overwrite_output_dir")) as err:
        parse(begun, **keys)
    assert "\n" not in str(err.value)
    parse(begun, overwrite_output_dir=True, **keys)


def test_other_content_of_the_data_is_refused(begun: Path, parse: Callable[..., Any], recipe: dict[str, Any]) -> None:
    path = Path(recipe["dataset_dir"], "json", "a.json")
    text = path.read_text("utf-8")
    try:
        path.write_text(text + " ", "utf-8")
        with pytest.raises(ValueError, match="out holds a run with dataset a of other content: "):
            parse(begun)
    finally:
        path.write_text(text, "utf-8")
    parse(begun)


def test_another_model_or_adapter_is_refused(
    begun: Path, parse: Callable[..., Any], recipe: dict[str, Any], tmp_path: Path
) -> None:
    """By what the folders hold: the same one elsewhere is the same."""
    moved = shutil.copytree(recipe["model_name_or_path"], tmp_path / "moved")
    parse(begun, model_name_or_path=str(moved))
    config = json.loads((moved / "config.json").read_text("utf-8"))
    (moved / "config.json").write_text(json.dumps({**config, "rope_theta": 20000.5}), "utf-8")
    with pytest.raises(
        ValueError, match=r"out holds a run with model_name_or_path config\.json of other content: set"
    ):
        parse(begun, model_name_or_path=str(moved))
    record = json.loads((begun / "chatts_run.json").read_text("utf-8"))
    record["model"]["adapter_name_or_path"] = {"first": {"adapter_model.safetensors": 8}}
    (begun / "chatts_run.json").write_text(json.dumps(record), "utf-8")
    with pytest.raises(ValueError, match=r"out holds a run with adapter_name_or_path first \(here none\): set"):
        parse(begun)


def test_series_of_other_content_are_refused(begun: Path, recipe: dict[str, Any], train: Train) -> None:
    """By their numbers: a file that was copied, or has another column changed, is the same."""
    path = Path(recipe["dataset_dir"], "timeseries", "gdsh", "p2.csv")
    text = path.read_text("utf-8")
    record = json.loads((begun / "chatts_run.json").read_text("utf-8"))
    assert sorted(record["series"]["a"]) == ["p0.csv", "p1.csv", "p2.csv", "p3.csv"]
    try:
        path.write_text(text.replace(",PV,", ",SP,") + "\n", "utf-8")
        with pytest.raises(ValueError, match="no step is left"):
            train(begun)
        row = text.splitlines()[40]
        path.write_text(text.replace(row, f"{row}5", 1), "utf-8")
        told = r"out holds a run with series of other content in a: p2\.csv: set `overwrite_output_dir: true` to start"
        with pytest.raises(ValueError, match=told):
            train(begun, max_steps=6)
        (begun / "chatts_run.json").write_text(json.dumps({**record, "series": {}}))  # of an earlier version
        train(begun, max_steps=5)
        assert json.loads((begun / "chatts_run.json").read_text("utf-8"))["series"]["a"]["p2.csv"]
        path.write_text(text, "utf-8")
        with pytest.raises(ValueError, match="series of other content"):
            train(begun, max_steps=6)
        train(begun, max_steps=1, overwrite_output_dir=True)
    finally:
        path.write_text(text, "utf-8")


def test_many_series_of_other_content_are_counted(tmp_path: Path) -> None:
    from llamafactory_ext.training.folder import refuse_other_series, write_record

    files = {f"s{number}.csv": "x" for number in range(8)}
    write_record(tmp_path, {"series": {"a": files}})
    refuse_other_series(tmp_path, "a", {})  # there is no result yet
    (tmp_path / "checkpoint-1").mkdir()
    refuse_other_series(tmp_path, "a", files)
    refuse_other_series(tmp_path, "b", {"t.csv": "y"})
    with pytest.raises(ValueError, match=r"in a: s0\.csv, s1\.csv, s2\.csv, s3\.csv, s4\.csv and 3 more: set"):
        refuse_other_series(tmp_path, "a", dict.fromkeys(files, "y"))
    with pytest.raises(ValueError, match=r"in a: s7\.csv, t\.csv: set"):
        refuse_other_series(tmp_path, "a", {**{file: "x" for file in files if file != "s7.csv"}, "t.csv": "x"})


def test_what_may_differ_is_logged(begun: Path, parse: Callable[..., Any], log: pytest.LogCaptureFixture) -> None:
    parse(begun, max_steps=6, save_steps=3)
    assert "begun: max_steps 4 (here 6), save_steps 2 (here 3)." in log.text


def test_a_folder_with_checkpoints_of_unknown_origin(
    begun: Path, parse: Callable[..., Any], log: pytest.LogCaptureFixture
) -> None:
    (begun / "chatts_run.json").unlink()
    parse(begun, learning_rate=0.5)
    assert "holds checkpoints and no chatts_run.json" in log.text


def test_a_folder_without_a_result_is_free(begun: Path, parse: Callable[..., Any]) -> None:
    """What failed before its first checkpoint may be changed and tried again."""
    for path in [*begun.glob("checkpoint-*"), *begun.glob("*.safetensors")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    parse(begun, learning_rate=0.5)


def test_a_run_without_a_step_left_stops(begun: Path, train: Train) -> None:
    before = {path: path.stat().st_mtime_ns for path in begun.rglob("*.safetensors")}
    with pytest.raises(ValueError, match=r"this run has ended at step 4 of 4, no step is left\. Raise"):
        train(begun)
    assert {path: path.stat().st_mtime_ns for path in begun.rglob("*.safetensors")} == before


def test_a_run_that_was_killed_before_its_final_model_gets_it(begun: Path, whole: Path, train: Train) -> None:
    (begun / "trainer_state.json").unlink()
    cut(begun / "model.safetensors")
    train(begun)
    assert_same(begun, whole)


@contextmanager
def another_process(act: Callable[[], object]) -> Iterator[int]:
    """A fork that has done this and lives to the end of the context; its number."""
    (ready, tell), (wait, end) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        act()
        os.write(tell, b"x")
        os.close(end)
        os.read(wait, 1)
        os._exit(0)
    os.read(ready, 1)
    try:
        yield child
    finally:
        os.close(end)
        os.waitpid(child, 0)


def test_two_runs_in_one_folder(begun: Path, parse: Callable[..., Any]) -> None:
    import socket

    from llamafactory_ext.training import folder

    with another_process(lambda: folder.lock(begun)) as child:
        told = f"out is in use by process {child} on host {socket.gethostname()}: wait"
        with pytest.raises(ValueError, match=re.escape(told)):
            parse(begun, overwrite_output_dir=True)
    parse(begun)


def test_of_two_runs_in_a_new_folder_one_trains(
    tmp_path: Path, parse: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both found no folder when they looked; the one that comes second to training stops."""
    from llamafactory_ext.training import folder, runs

    output = tmp_path / "new"
    parse(output)
    monkeypatch.setattr(folder, "_WAIT", 0.1)
    with (
        another_process(runs.begin_training) as child,
        pytest.raises(ValueError, match=f"new is in use by process {child} on host"),
    ):
        runs.begin_training()


def test_rotation_goes_by_step(tmp_path: Path) -> None:
    from transformers import trainer_utils

    from llamafactory_ext.training.resuming import order_by_step

    now = time.time()
    for step, hours in ((8, 5), (10, 6), (12, 0)):  # the clock was set back before step 12
        (tmp_path / f"checkpoint-{step}").mkdir()
        os.utime(tmp_path / f"checkpoint-{step}", (now + 3600 * hours,) * 2)
    order_by_step(tmp_path / "checkpoint-12")
    rotate = getattr(trainer_utils, "rotate_checkpoints", None)  # transformers 4 has it in the Trainer
    if rotate is not None:
        rotate(str(tmp_path), save_total_limit=2, use_mtime=True)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-12"]
    times = [(tmp_path / f"checkpoint-{step}").stat().st_mtime for step in (10, 12)]
    assert times[1] - times[0] >= 1


STEPS = """
import os
from accelerate import PartialState
PartialState(cpu=True)
from llamafactory_ext.training.resuming import require_one_step
require_one_step("out/checkpoint-4")
try:
    require_one_step("out/checkpoint-4" if os.environ["RANK"] == "0" else None)
except ValueError as err:
    print(err, flush=True)
from types import SimpleNamespace
from accelerate import Accelerator
from llamafactory_ext.training.stopping import StopOnSignal
args = SimpleNamespace(world_size=2, device="cpu")
stop = StopOnSignal(SimpleNamespace(args=args, accelerator=Accelerator(cpu=True)))
stop.asked = os.environ["RANK"] == "1"
control, state = SimpleNamespace(should_save=False), SimpleNamespace(global_step=3, max_steps=9)
stop.on_step_end(args, state, control)
print(f"saves: {control.should_save}", flush=True)
PartialState().wait_for_everyone()
PartialState().destroy_process_group()
"""


def test_processes_that_resume_from_different_steps_stop(tmp_path: Path) -> None:
    """And all of them save and stop where one alone was asked to end."""
    (tmp_path / "steps.py").write_text(STEPS)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29641"]
    done = subprocess.run(
        [*command, "steps.py"], cwd=tmp_path, env=cli_environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    # Both say it, at the same time and perhaps on one line.
    for part in ("The processes resume from different checkpoints", ": step 4, process 1 on ", ": step 0)"):
        assert done.stdout.count(part) == 2, done.stdout
    assert done.stdout.count("saves: True") == 2, done.stdout


def test_processes_compare_their_steps_before_training(
    killed: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llamafactory_ext.training import lasting

    def differ(checkpoint: str | bool | None) -> None:
        raise ValueError(f"compared {checkpoint}")

    monkeypatch.setattr(lasting, "require_one_step", differ)
    with pytest.raises(ValueError, match=r"compared .*checkpoint-2$"):
        train(killed)
    assert not (killed / "model.safetensors").exists()


# --- a signal to end ---


class Terminate(TrainerCallback):  # type: ignore[misc]
    """Sends SIGTERM in the middle of step 3."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_saves_and_ends_unfinished(recipe: dict[str, Any], whole: Path, train: Train, tmp_path: Path) -> None:
    from llamafactory.train.tuner import run_exp

    output = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        run_exp({**recipe, "output_dir": str(output)}, callbacks=[Terminate()])
    assert ended.value.code == 143
    assert [path.name for path in checkpoints(output)] == ["checkpoint-3", "checkpoint-2"]
    assert not (output / "model.safetensors").exists() and not (output / "trainer_state.json").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    train(output)
    assert_same(output, whole)


SLOW_SECOND_PROCESS = """
import os
if os.environ.get("LOCAL_RANK") == "1":
    import time, torch
    save = torch.save
    torch.save = lambda *args, **kwargs: (time.sleep(0.5), save(*args, **kwargs))
"""


def test_torchrun_starts_again_what_was_killed(recipe: dict[str, Any], tmp_path: Path) -> None:
    """One of two processes is killed; both go on. ``trainer_state.json`` has waited for the slower one's files."""
    output, text = tmp_path / "out", tmp_path / "log.txt"
    (tmp_path / "sitecustomize.py").write_text(SLOW_SECOND_PROCESS)
    (tmp_path / "recipe.yaml").write_text(json.dumps({**recipe, "output_dir": str(output), "max_steps": 6}))
    environment = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2", "RDZV_ID": "resume", "MAX_RESTARTS": "2"}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(ROOT)])
    process = start_cli("train", str(tmp_path / "recipe.yaml"), cwd=tmp_path, log=text, **environment)
    try:
        while process.poll() is None and not (output / "checkpoint-2" / "trainer_state.json").exists():
            time.sleep(0.01)
        assert process.poll() is None, text.read_text()[-4000:]
        for child in psutil.Process(process.pid).children(recursive=True):
            if child.environ().get("LOCAL_RANK") == "1":
                child.kill()
        assert process.wait(timeout=600) == 0, text.read_text()[-4000:]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert "Resuming training from" in text.read_text()
    assert [one["step"] for one in log_history(output) if "loss" in one] == [1, 2, 3, 4, 5, 6]
    for checkpoint in checkpoints(output):
        times = {path.name: path.stat().st_mtime_ns for path in checkpoint.iterdir()}
        assert times["trainer_state.json"] >= times["rng_state_1.pth"]


def test_sigterm_to_several_processes_in_a_folder_with_a_blank(recipe: dict[str, Any], tmp_path: Path) -> None:
    """Sent to the command alone. All save one checkpoint, none starts again, the same command resumes."""
    folder = tmp_path / "mit Leerzeichen 数据"
    folder.mkdir()
    (folder / "a recipe.yaml").write_text(json.dumps({**recipe, "max_steps": 2000, "save_steps": 1000}))
    command = ["train", str(folder / "a recipe.yaml"), f"output_dir={folder / 'out put'}"]
    output, text = folder / "out put", folder / "log.txt"
    environment = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2", "PYTHONPATH": str(ROOT)}
    process = start_cli(*command, cwd=tmp_path, log=text, **environment)
    try:
        log = output / "trainer_log.jsonl"
        while process.poll() is None and not log.exists():
            time.sleep(0.05)
        assert process.poll() is None, text.read_text()[-4000:]
        process.terminate()
        assert process.wait(timeout=300) != 0
        (saved,) = checkpoints(output)
        assert first_fault(saved) is None and "Asked to end (SIGTERM)" in text.read_text()
        assert not (output / "model.safetensors").exists()
        step = int(saved.name.rpartition("-")[2])
        again = start_cli(*command, f"max_steps={step + 1}", cwd=tmp_path, log=text, **environment)
        assert again.wait(timeout=300) == 0, text.read_text()[-4000:]
        assert log_history(output)[-1]["step"] == step + 1
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
