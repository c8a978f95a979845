"""What the Trainers of runs with series add to upstream's, over a stand-in for those."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from llamafactory.train.callbacks import SaveProcessorCallback

from llamafactory_ext.model import ChatTSProcessor
from llamafactory_ext.training import lasting, trainers


class Base:
    """What of upstream's Trainers is called."""

    is_in_train = True

    def __init__(self, **given: Any) -> None:
        vars(self).update(given)
        self.callbacks, self.done = [SaveProcessorCallback], list[Any]()
        self.is_world_process_zero = lambda: given["args"].first

    def add_callback(self, one: Any) -> None:
        self.callbacks.append(type(one))

    def remove_callback(self, kind: Any) -> None:
        self.callbacks.remove(kind)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        return SimpleNamespace(metrics={**kwargs})

    def save_state(self) -> None:
        self.done.append("state")

    def save_model(self, output_dir: Any, internal: bool) -> None:
        self.done.append((output_dir, internal))

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        return self.compute_metrics, args, kwargs  # type: ignore[attr-defined]

    def forward(self, model: Any, batch: Any, prefix: str) -> Any:
        return model(), prefix


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A Trainer of stage `sft`; takes arguments of either kind."""
    monkeypatch.setattr(lasting, "is_our_run", lambda args: True)
    monkeypatch.setattr(trainers, "EventF1Callback", lambda *given: Measures())
    upstream: Any = SimpleNamespace(CustomSeq2SeqTrainer=Base)
    assert trainers.install_sft(upstream) == "wrapped"

    def run(processor: Any = None, reads: bool = True, **keys: Any) -> Any:
        args = {"do_train": True, "metric_for_best_model": None, "output_dir": str(tmp_path), "first": True}
        args |= {"should_save": True}
        own = {"event_f1_steps": None, "plot_loss": True}
        collator = SimpleNamespace(template=SimpleNamespace(mm_plugin=SimpleNamespace(reads_series=reads)))
        return upstream.CustomSeq2SeqTrainer(
            args=SimpleNamespace(**{key: keys.get(key, value) for key, value in args.items()}),
            finetuning_args=SimpleNamespace(**{key: keys.get(key, value) for key, value in own.items()}),
            processor=processor, train_dataset=keys.get("data"), data_collator=collator, compute_metrics="rouge",
            state=SimpleNamespace(log_history=keys.get("log", [])),
        )  # fmt: skip

    return run


class Measures:
    def measure(self) -> dict[str, float]:
        return {"event_f1": 0.5}


class Processor(ChatTSProcessor):
    patch_size = max_series_length = 8

    def __init__(self) -> None:
        self.saved: list[str] = []
        self._tokenizer = SimpleNamespace(convert_tokens_to_ids={"<ts>": 9}.get)

    def save_pretrained(self, folder: Any, **kwargs: Any) -> None:
        self.saved.append(str(folder))


def test_the_processor_is_saved_with_every_model(make: Any, tmp_path: Path) -> None:
    assert SaveProcessorCallback in make().callbacks
    trainer = make(processor := Processor())
    assert SaveProcessorCallback not in trainer.callbacks and trainer.callbacks[-1].__name__ == "RefuseNoStep"
    trainer.save_model("x"), trainer.save_model()
    trainer.args.should_save = False
    trainer.save_model("y")
    assert processor.saved == ["x", str(tmp_path)] and trainer.done == [("x", False), (None, False), ("y", False)]
    make().save_model("z")


def test_a_first_record_without_its_series_is_refused(make: Any) -> None:
    whole = {"input_ids": [1, 9, 9], "audios": [[0.0] * 16]}
    for rows in ([], [whole], [whole, {"input_ids": [1], "audios": [[0.0]]}]):
        make(Processor(), data=Dataset.from_list(rows))
    lost = Dataset.from_list([{"input_ids": [1, 9], "audios": [[0.0] * 16]}])
    with pytest.raises(ValueError, match="found 1 <ts> tokens in a batch and 2 patches"):
        make(Processor(), data=lost)
    make(Processor(), data=lost.to_iterable_dataset())
    make(data=lost)


@pytest.mark.parametrize(
    ("keys", "measures", "evaluates"),
    [
        ({}, False, False),
        ({"event_f1_steps": 5}, True, False),
        ({"metric_for_best_model": "event_f1"}, True, True),
        ({"event_f1_steps": 5, "do_train": False}, False, False),
        ({"metric_for_best_model": "event_f1", "do_train": False}, False, False),
    ],
)
def test_who_measures_event_f1(keys: dict[str, Any], measures: bool, evaluates: bool, make: Any) -> None:
    """With each evaluation where the best checkpoint is chosen by it: for any of several data sets."""
    trainer = make(**keys)
    assert (Measures in trainer.callbacks) is measures and (trainer.event_f1 is not None) is measures
    for prefix in ("eval", "eval_b"):
        added = {f"{prefix}_event_f1": 0.5, "eval_event_f1": 0.5} if evaluates else {}
        found = trainer.evaluation_loop(metric_key_prefix=prefix).metrics
        assert found == {"metric_key_prefix": prefix, **added}
    trainer.is_in_train = False
    assert trainer.evaluation_loop().metrics == {"metric_key_prefix": "eval"}


@pytest.mark.parametrize(
    ("keys", "plots"),
    [({}, True), ({"log": [{"loss": 1}]}, False), ({"plot_loss": False}, False), ({"first": False}, False)],
)
def test_event_f1_is_plotted(keys: dict[str, Any], plots: bool, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plotted: list[Any] = []
    monkeypatch.setattr(trainers, "plot_loss", lambda folder, keys: plotted.append(keys))
    trainer = make(**{"log": [{"loss": 1}, {"event_f1": 1}], **keys})
    trainer.save_state()
    assert trainer.done == ["state"] and plotted == [["event_f1"]] * plots


def test_predictions_about_series_come_without_rouge(make: Any, log: pytest.LogCaptureFixture) -> None:
    trainer = make(reads=False)
    assert trainer.predict(1, a=2) == ("rouge", (1,), {"a": 2}) and not log.records
    trainer = make()
    assert trainer.predict(1, a=2) == (None, (1,), {"use_cache": True, "a": 2})
    assert trainer.predict(use_cache=False) == (None, (), {"use_cache": False})
    assert trainer.compute_metrics == "rouge" and log.text.count("ROUGE and BLEU are left out") == 2


def test_series_reach_the_forward_pass_of_kto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lasting, "is_our_run", lambda args: True)
    upstream: Any = SimpleNamespace(CustomKTOTrainer=Base)
    assert trainers.install_kto(upstream) == "wrapped"
    trainer = upstream.CustomKTOTrainer(args=SimpleNamespace(first=True))
    assert trainer.forward(lambda **given: given, {"timeseries": 5}, "kl_") == ({"timeseries": 5}, "kl_")
    assert trainer.forward(lambda **given: given, {}) == ({}, "")


@pytest.mark.parametrize(
    ("install", "name", "resumes"),
    [
        (trainers.install_dpo, "CustomDPOTrainer", True),
        (trainers.install_pt, "CustomTrainer", True),
        (trainers.install_rm, "PairwiseTrainer", False),
    ],
)
def test_other_stages_last(install: Any, name: str, resumes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lasting, "is_our_run", lambda args: args is not None)
    upstream: Any = SimpleNamespace(**{name: Base})
    assert install(upstream) == "wrapped"
    made = getattr(upstream, name)(args=SimpleNamespace(first=True))
    assert isinstance(made, lasting.Lasting) and made.resumes is resumes and type(made).__name__ == "SeriesBase"
    assert type(getattr(upstream, name)(args=None)) is Base
