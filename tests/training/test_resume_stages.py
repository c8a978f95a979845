"""What holds for stage `sft` holds in the others: SIGTERM, resuming, no step left, rotation; or it is said."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from resilience.options_bench import PLAIN, Bench, prepare
from safetensors.torch import load_file
from transformers import TrainerCallback

from llamafactory_ext.training.whole_checkpoints import checkpoints, first_fault


STAGES: dict[str, dict[str, Any]] = {
    "pt": {"stage": "pt", "dataset": "text", "cutoff_len": 4, "per_device_train_batch_size": 1},
    "dpo": {"stage": "dpo", "dataset": "pairs"},
    "kto": {"stage": "kto", "dataset": "tagged"},
    "rm": {"stage": "rm", "dataset": "pairs"},
}
RESUMED = ["pt", "dpo", "kto"]
Train = Callable[..., Path]


class Terminate(TrainerCallback):  # type: ignore[misc]
    """Sends SIGTERM in the middle of step 3; sets the clock of the checkpoints before it forward."""

    def __init__(self, output: Path) -> None:
        self.output = output

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            for checkpoint in checkpoints(self.output):
                os.utime(checkpoint, (4e9, 4e9))
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with prepare(tmp_path_factory.mktemp("stages")) as bench:
        yield bench


@pytest.fixture(scope="module")
def train(bench: Bench) -> Train:
    """LLaMA-Factory's own `run_exp` in this process, four steps of two records; returns the folder."""

    def run(name: str, stage: str, callbacks: Any = None, **keys: Any) -> Path:
        from llamafactory.train.tuner import run_exp

        folder = bench.folder
        paths = {"model_name_or_path": str(folder / "model"), "dataset_dir": str(folder / "data")}
        paths |= {"cache_dir": str(folder / "cache"), "output_dir": str(folder / name)}
        steps = {"max_steps": 4, "save_steps": 1, "save_total_limit": 2, "per_device_train_batch_size": 2}
        own = {**STAGES[stage], "overwrite_output_dir": False, "flash_attn": "sdpa"}
        run_exp({**PLAIN, **paths, **steps, **own, **keys}, callbacks=callbacks)
        return folder / name

    return run


@pytest.fixture(scope="module")
def stopped(bench: Bench, train: Train) -> Callable[[str], Path]:
    """The folder of a run that was asked to end in its third step; each stage once."""
    known: dict[str, Path] = {}

    def run(stage: str) -> Path:
        if stage not in known:
            output = bench.folder / f"{stage}_stopped"
            with pytest.raises(SystemExit) as ended:
                train(output.name, stage, callbacks=[Terminate(output)])
            assert ended.value.code == 143
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
            known[stage] = output
        return known[stage]

    return run


@pytest.mark.parametrize("stage", STAGES)
def test_sigterm_saves_and_rotation_goes_by_step(stage: str, stopped: Callable[[str], Path]) -> None:
    output = stopped(stage)
    assert [path.name for path in checkpoints(output)] == ["checkpoint-3", "checkpoint-2"]
    assert [first_fault(path) for path in checkpoints(output)] == [None, None]
    assert not list(output.glob("*.safetensors")) and not (output / "trainer_state.json").exists()


@pytest.mark.parametrize("stage", RESUMED)
def test_it_resumes_ends_the_same_and_no_step_is_left(
    stage: str, stopped: Callable[[str], Path], train: Train
) -> None:
    output = stopped(stage)
    train(output.name, stage)
    whole = train(f"{stage}_whole", stage)
    found, expected = (load_file(folder / "adapter_model.safetensors") for folder in (output, whole))
    assert set(found) == set(expected) and all(torch.equal(found[key], expected[key]) for key in expected)
    with pytest.raises(ValueError, match=r"this run has ended at step 4 of 4, no step is left"):
        train(output.name, stage)


def test_a_half_checkpoint_is_passed_over_in_every_stage(train: Train, log: pytest.LogCaptureFixture) -> None:
    output = train("pt_half", "pt")
    (output / "checkpoint-4" / "trainer_state.json").unlink()
    (output / "trainer_state.json").unlink()
    train("pt_half", "pt")
    assert "checkpoint-4 is not resumed from: no trainer_state.json" in log.text
    assert first_fault(output / "checkpoint-4") is None


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_reward_model_says_that_it_does_not_resume(method: str, train: Train, log: pytest.LogCaptureFixture) -> None:
    """Upstream finds nothing of an adapter in its checkpoint, and starts over without a word with a whole model."""
    train(f"rm_{method}", "rm", finetuning_type=method, max_steps=1)
    assert "Stage `rm` can't be resumed: if this run is ended (SIGTERM too), its last checkpoint" in log.text
    told = rf"Stage `rm` can't resume from .*rm_{method}/checkpoint-1: .*Set `overwrite_output_dir: true`"
    with pytest.raises(ValueError, match=told):
        train(f"rm_{method}", "rm", finetuning_type=method, max_steps=2)
    train(f"rm_{method}", "rm", finetuning_type=method, max_steps=1, overwrite_output_dir=True)
