"""Planned steps are the Trainer's: against real runs, and against the arithmetic stated once more."""

import json
import logging
import math
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Gdsh, annotation, answer, run_cli
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafactory_ext.toolbox.plan.steps import Rhythm, batches_of_one_process, count_steps


def test_the_known_417() -> None:
    """27 steps an epoch, the last one over a single record, three times; the rule of thumb spreads it over all."""
    steps = count_steps(417, Rhythm(1, 16, 3.0))
    assert (steps.per_epoch, steps.total, steps.rule_of_thumb, steps.epochs) == (27, 81, 78, 3.0)


@given(
    rows=st.integers(1, 200),
    batch=st.integers(1, 9),
    accumulation=st.integers(1, 20),
    processes=st.integers(1, 5),
    epochs=st.floats(0.1, 5),
    max_steps=st.one_of(st.just(-1), st.integers(1, 50)),
)
@settings(deadline=None, max_examples=60)
def test_steps_are_as_stated(
    rows: int, batch: int, accumulation: int, processes: int, epochs: float, max_steps: int
) -> None:
    steps = count_steps(rows, Rhythm(batch, accumulation, epochs, max_steps), processes)
    batches = math.ceil(math.ceil(rows / batch) / processes)
    per_epoch = math.ceil(batches / accumulation)
    assert steps.per_epoch == per_epoch
    assert steps.total == (max_steps if max_steps > 0 else math.ceil(epochs * per_epoch))
    assert steps.epochs == pytest.approx(epochs if max_steps < 0 else max_steps / per_epoch)


@given(rows=st.integers(1, 60), batch=st.integers(1, 5), processes=st.integers(1, 4), drop=st.booleans())
@settings(deadline=None)
def test_batches_are_those_of_a_real_loader(rows: int, batch: int, processes: int, drop: bool) -> None:
    from accelerate.data_loader import prepare_data_loader
    from torch.utils.data import DataLoader

    loader = DataLoader(range(rows), batch_size=batch, drop_last=drop)  # type: ignore[arg-type]
    shard = prepare_data_loader(loader, num_processes=processes, process_index=0, put_on_device=False)
    found = batches_of_one_process(rows, Rhythm(batch, dataloader_drop_last=drop), processes)
    assert found == len(shard)


def test_no_batch_at_all() -> None:
    with pytest.raises(ValueError, match="3 records make no batch of 4 on 1 processes"):
        count_steps(3, Rhythm(4, dataloader_drop_last=True))


CASES = {
    "divides": ["per_device_train_batch_size=1", "gradient_accumulation_steps=23", "num_train_epochs=2"],
    "does not divide": ["per_device_train_batch_size=4", "gradient_accumulation_steps=4", "num_train_epochs=2"],
    "two processes": ["per_device_train_batch_size=2", "gradient_accumulation_steps=5", "num_train_epochs=1"],
    "max_steps and val_size": ["per_device_train_batch_size=4", "max_steps=4", "val_size=0.2"],
}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many records as the demo has, 23, of short series: steps hang on their number alone."""
    data = Gdsh(tmp_path_factory.mktemp("steps"))
    for point in range(23):
        data.csv(f"p{point}.csv", [float((i * (point + 3)) % 11) for i in range(32)])
    return data.records(*[annotation(f"p{point}.jpg", answer((point, point + 3))) for point in range(23)]).folder


@pytest.mark.parametrize("case", CASES)
def test_steps_of_a_real_run(
    case: str,
    demo: Path,
    records: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """`global_step`, `max_steps` and the steps an epoch in `trainer_state.json`.

    One process is this one, which has imported everything; it gets what the command line would.
    """
    from llamafactory.train.tuner import run_exp

    from llamafactory_ext.toolbox.plan.planning import make_plan

    recipe, processes = ROOT / "yaml" / "2080ti_qlora.yaml", 2 if case == "two processes" else 1
    keys = [f"model_name_or_path={demo / 'model'}", f"dataset_dir={records}", "dataset=a", *CASES[case]]
    keys += ["fp16=false", "quantization_bit=null", "preprocessing_num_workers=null", f"output_dir={tmp_path / 'out'}"]
    keys += [f"cache_dir={tmp_path / 'cache'}"]
    steps = make_plan(recipe, keys, processes=processes).steps
    if processes == 2:
        run = run_cli("train", str(recipe), *keys, cwd=tmp_path, FORCE_TORCHRUN="1", NPROC_PER_NODE="2")
        assert run.returncode == 0, (run.stdout + run.stderr)[-6000:]
        said = run.stderr
    else:
        monkeypatch.setattr(sys, "argv", ["llamafactory-cli", str(recipe), *keys])
        monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
        run_exp()
        said = caplog.text
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert (state["global_step"], state["max_steps"]) == (steps.total, steps.total)
    assert f"Total optimization steps = {steps.total}" in said
    if "max_steps" not in case:
        assert state["epoch"] == steps.epochs
    epochs = [entry["epoch"] for entry in state["log_history"] if "loss" in entry]
    assert sum(epoch <= 1.0 + 1e-9 for epoch in epochs) == min(steps.per_epoch, steps.total)
