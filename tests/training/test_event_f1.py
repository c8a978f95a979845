"""Event F1 while training: what is logged, that the run is the same with it, what is refused before the first step."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import NOTHING_FOUND, ROOT, Gdsh, annotation, answer, log_history, run_cli

from llamafactory_ext.toolbox.evaluate.predictions import Prediction
from llamafactory_ext.toolbox.evaluate.scoring import evaluate


Train = Callable[..., Path]
KEYS = ("event_f1", "event_precision", "event_recall", "event_unreadable")
REPLY = '{"detected_anomalies":[{"interval":[2,5]},{"interval":[40,44]}]}'


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six points with one and the same answer, which a tiny model knows by heart soon."""
    data = Gdsh(tmp_path / "data")
    for point in range(6):
        data.csv(f"p{point}.csv", [float((i * (point + 3)) % 11) for i in range(50 + 9 * point)])
    data.records(*[annotation(f"p{point}.jpg", REPLY) for point in range(6)])
    entry = json.loads((data.folder / "dataset_info.json").read_text())["a"]
    (data.folder / "dataset_info.json").write_text(
        json.dumps({"a": entry, "b": {**entry, "file_name": "json/b.json"}})
    )
    other = [annotation("p1.jpg", REPLY), annotation("p4.jpg", answer((2, 5))), annotation("p5.jpg", answer((30, 33)))]
    (data.folder / "json" / "b.json").write_text(json.dumps(other, ensure_ascii=False), "utf-8")
    return data.folder


@pytest.fixture
def train(demo: Path, data: Path, tmp_path: Path) -> Train:
    """LLaMA-Factory's own `run_exp` in this process; takes a recipe and keys, returns the output folder."""

    def run(recipe: str, name: str, **keys: Any) -> Path:
        import yaml
        from llamafactory.train.tuner import run_exp

        values = yaml.safe_load((ROOT / "yaml" / f"{recipe}.yaml").read_text("utf-8"))
        values |= {"model_name_or_path": str(demo / "model"), "dataset": "a", "dataset_dir": str(data)}
        values |= {"output_dir": str(tmp_path / name), "save_strategy": "no", "warmup_ratio": 0, "fp16": False}
        values |= {"cache_dir": str(tmp_path / "cache"), "preprocessing_num_workers": 1, "overwrite_output_dir": True}
        run_exp({**values, **keys})
        return tmp_path / name

    return run


def measured(output: Path) -> list[dict[str, Any]]:
    return [entry for entry in log_history(output) if "event_f1" in entry]


def losses(output: Path) -> list[tuple[int, float, float]]:
    return [(one["step"], one["loss"], one["grad_norm"]) for one in log_history(output) if "loss" in one]


def test_what_is_learnt_by_heart_is_found(train: Train) -> None:
    keys = {"max_steps": 60, "per_device_train_batch_size": 6, "logging_steps": 10}
    output = train("cpu_demo", "out", eval_dataset="b", event_f1_steps=40, max_new_tokens=30, **keys)
    found = measured(output)
    assert [entry["step"] for entry in found] == [40, 60]  # every 40 steps, and at the end
    assert {key: found[-1][key] for key in KEYS} == {
        "event_f1": round(2 * 3 / (2 * 3 + 3 + 1), 4),  # 3 hits, 3 false alarms, 1 miss
        "event_precision": 0.5,
        "event_recall": 0.75,
        "event_unreadable": 0,
    }
    lines = [json.loads(line) for line in (output / "trainer_log.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "event_f1" in line]
    assert [{key: line[key] for key in KEYS} for line in logged] == [{key: one[key] for key in KEYS} for one in found]
    assert [(line["current_steps"], line["total_steps"], line["percentage"]) for line in logged][-1] == (60, 60, 100.0)
    assert [one[0] for one in losses(output)] == [10, 20, 30, 40, 50, 60]  # the step's own line is not lost
    for name in ("training_event_f1.png", "training_loss.png"):
        assert (output / name).stat().st_size > 0
    predicted = [
        Prediction(i, f"[offset=0|scaling=1|length={n}|max=0]", REPLY, label)
        for i, n, label in ((0, 59, REPLY), (1, 86, answer((2, 5))), (2, 95, answer((30, 33))))
    ]
    assert evaluate(predicted).scores["event_f1"] == pytest.approx(found[-1]["event_f1"], abs=1e-4)


def test_the_run_is_the_same_as_without(train: Train) -> None:
    """In 4 bit, with gradient checkpoints and dropout: weights, random numbers, modes and padding are put back."""
    keys = {"max_steps": 4, "gradient_accumulation_steps": 2, "lora_dropout": 0.3, "learning_rate": 1e-2}
    keys |= {"eval_dataset": "b", "eval_strategy": "steps", "eval_steps": 2, "plot_loss": False}
    with_it = train("2080ti_qlora", "with", event_f1_steps=1, event_f1_records=2, max_new_tokens=5, **keys)
    without = train("2080ti_qlora", "without", **keys)
    assert len(measured(with_it)) == 4 and not measured(without)
    assert losses(with_it) == losses(without) and len(losses(without)) == 4
    evaluated = [[one["eval_loss"] for one in log_history(out) if "eval_loss" in one] for out in (with_it, without)]
    assert evaluated[0] == evaluated[1] and len(evaluated[0]) == 2


def test_two_processes(demo: Path, data: Path, tmp_path: Path) -> None:
    """Three records over two processes: one has two of them, and both log the same sum, once."""
    keys = [f"model_name_or_path={demo / 'model'}", "dataset=a", f"dataset_dir={data}", "eval_dataset=b", "fp16=false"]
    keys += ["output_dir=out", "max_steps=2", "gradient_accumulation_steps=1", "event_f1_steps=1", "max_new_tokens=5"]
    keys += ["save_strategy='no'", "preprocessing_num_workers=1", "event_f1_records=3", "overwrite_output_dir=true"]
    two = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2"}
    run = run_cli("train", str(ROOT / "yaml" / "2080ti_qlora.yaml"), *keys, cwd=tmp_path, **two)
    assert run.returncode == 0, (run.stdout + run.stderr)[-8000:]
    assert [(entry["step"], entry["event_unreadable"]) for entry in measured(tmp_path / "out")] == [(1, 3), (2, 3)]
    lines = (tmp_path / "out" / "trainer_log.jsonl").read_text().splitlines()
    assert sum("event_f1" in line for line in lines) == 2


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, r"needs validation data, and this run has none: set `eval_dataset`"),
        ({"eval_dataset": "b", "packing": True, "cutoff_len": 1024}, r"does not go with `packing`"),
        ({"eval_dataset": "b", "train_on_prompt": True}, r"does not go with `train_on_prompt`"),
    ],
)
def test_refused_before_the_first_step(train: Train, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"`event_f1_steps` {message}"):
        train("2080ti_qlora", "out", event_f1_steps=1, max_steps=1, **keys)


def test_answers_that_tell_no_intervals(train: Train, data: Path) -> None:
    rows = [{"input": "<ts><ts/> ?", "output": "it rises", "timeseries": [[1, 2, 3]]}]
    (data / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    info = json.loads((data / "dataset_info.json").read_text())
    info["c"] = {"file_name": "c.jsonl", "formatting": "chatts"}
    (data / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"can't read that of validation record 0: .*it rises"):
        train("2080ti_qlora", "out", event_f1_steps=1, max_steps=1, eval_dataset="c")


def test_zero3_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from llamafactory_ext.training import event_f1

    monkeypatch.setattr(event_f1, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match="does not go with ZeRO-3 or FSDP, which spread the weights"):
        event_f1.EventF1Callback(None, None, {})


def test_a_batch_answers_what_its_records_do(demo: Path, data: Path, tokenise: Callable[..., Any]) -> None:
    """Left padding, the series of each record, and everything put back."""
    from llamafactory.data import SFTDataCollatorWith4DAttentionMask
    from transformers import AutoModelForCausalLM, GenerationConfig

    from llamafactory_ext.model import read_config
    from llamafactory_ext.series import encode
    from llamafactory_ext.training.event_f1 import answers, validation_questions

    run = tokenise(data, eval_dataset="b")
    path = str(demo / "model")
    model = AutoModelForCausalLM.from_pretrained(path, config=read_config(path)).train()
    with torch.no_grad():
        for name, weight in model.named_parameters():  # so that answers differ, and depend on the series
            weight.mul_(15 if "ts_encoder" in name else 3)
    model.model.layers[0].eval()
    collator = SFTDataCollatorWith4DAttentionMask(
        template=run["template"], tokenizer=run["tokenizer"], processor=run["processor"], pad_to_multiple_of=8
    )
    arguments = SimpleNamespace(predict_with_generate=False, per_device_eval_batch_size=3, device=torch.device("cpu"))
    trainer = SimpleNamespace(
        model=model,
        processing_class=run["tokenizer"],
        data_collator=collator,
        args=arguments,
        eval_dataset={"b": run["eval_dataset"]},
        compute_loss_context_manager=nullcontext,
    )
    questions = validation_questions(trainer, 16)
    assert [question.intervals for question in questions] == [{(2, 5), (40, 44)}, {(2, 5)}, {(30, 33)}]
    assert [question.length for question in questions] == [59, 86, 95]
    generation = GenerationConfig(max_new_tokens=8, do_sample=False, pad_token_id=run["tokenizer"].pad_token_id)
    state = torch.random.get_rng_state()
    together = answers(trainer, questions, generation)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training and model.lm_head.training and not model.model.layers[0].training
    assert run["tokenizer"].padding_side == "right"
    alone = []
    for question in questions:
        ids = torch.tensor([question.features["input_ids"]])
        both = [torch.from_numpy(encode([[s * v for v in question.features["audios"][0]]])) for s in (1, -1)]
        output, turned = (model.eval().generate(ids, timeseries=one, generation_config=generation) for one in both)
        alone.append(run["tokenizer"].decode(output[0, ids.shape[1] :], skip_special_tokens=True))
        assert not torch.equal(turned, output)  # or the series would not matter here
    assert together == alone


@pytest.mark.parametrize(
    ("metric", "chooses"),
    [("event_f1", True), ("eval_event_f1", True), ("event_recall", True), ("loss", False), (None, False)],
)
def test_scores_of_events_by_either_name(metric: str | None, chooses: bool) -> None:
    from llamafactory_ext.training.event_f1 import chooses_by_events

    assert chooses_by_events(SimpleNamespace(metric_for_best_model=metric)) is chooses


def test_the_best_checkpoint_is_chosen_by_event_f1(train: Train) -> None:
    keys = {"eval_dataset": "b", "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    keys |= {"load_best_model_at_end": True, "metric_for_best_model": "event_f1", "max_new_tokens": 8, "max_steps": 4}
    output = train("cpu_demo", "best", **keys)
    state = json.loads((output / "trainer_state.json").read_text())
    scores = [entry["eval_event_f1"] for entry in state["log_history"] if "eval_event_f1" in entry]
    assert len(scores) == 2 and state["best_metric"] == max(scores)


def test_an_unreadable_answer_is_a_failure_where_there_is_nothing_to_find() -> None:
    """It would be right otherwise: nothing found, nothing missed."""
    from llamafactory_ext.training.event_f1 import Question, score

    assert score(Question({}, frozenset(), 50), "I see nothing") == ((0, 1, 0), False)
    assert score(Question({}, frozenset({(3, 5)}), 50), "I see nothing") == ((0, 0, 1), False)
    assert score(Question({}, frozenset(), 50), NOTHING_FOUND) == ((0, 0, 0), True)


# --- part by part, without a model ---


class Bytes:
    """A tokenizer of a token for each byte."""

    padding_side = "right"

    def decode(self, ids: Any, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return bytes(int(one) for one in ids).decode()


def rows(*replies: str, **more: Any) -> Any:
    """Validation records of a prompt of three tokens, a first answer and a second prompt, and these last answers."""
    from datasets import Dataset

    found = []
    for reply in replies:
        last = list(reply.encode())
        labels = [-100, -100, -100, 65, -100, *last]
        record = {"input_ids": [1, 2, 3, 65, 4, *last], "labels": labels, "audios": [[0.0] * 9, [0.0] * 50]}
        found.append({**record, **more})
    return Dataset.from_list(found)


def stub(*datasets: Any, **keys: Any) -> Any:
    arguments = {"predict_with_generate": False, "process_index": 0, "world_size": 1, "device": torch.device("cpu")}
    data = {str(number): one for number, one in enumerate(datasets)} if len(datasets) != 1 else datasets[0]
    return SimpleNamespace(eval_dataset=data, processing_class=Bytes(), args=SimpleNamespace(**arguments | keys))


def test_questions_end_where_the_last_answer_begins() -> None:
    from llamafactory_ext.training.event_f1 import Question, validation_questions

    features = {"input_ids": [1, 2, 3, 65, 4], "attention_mask": [1] * 5, "audios": [[0.0] * 9, [0.0] * 50]}
    found = validation_questions(stub(rows(answer((2, 49), (60, 61)))), 1)
    assert found == [Question(features, frozenset({(2, 49)}), 50)]
    asked = rows(NOTHING_FOUND).map(lambda row: {"labels": row["labels"][5:], "input_ids": row["input_ids"][:5]})
    (found,) = validation_questions(stub(asked, predict_with_generate=True), 1)
    assert (found.features, found.intervals) == (features, frozenset())
    bare = rows(NOTHING_FOUND).remove_columns("audios")
    (found,) = validation_questions(stub(bare), 1)
    assert found.length == 0 and "audios" not in found.features


@pytest.mark.parametrize(
    ("count", "chosen"), [(4, [0, 2, 5, 7]), (3, [0, 3, 6]), (9, [*range(9)]), (10, [*range(10)]), (16, [*range(10)])]
)
def test_questions_are_spread_over_all_data(count: int, chosen: list[int]) -> None:
    from llamafactory_ext.training.event_f1 import validation_questions

    replies = [answer((number, number)) for number in range(10)]
    found = validation_questions(stub(rows(*replies[:4]), rows(*replies[4:])), count)
    assert [question.intervals for question in found] == [{(number, number)} for number in chosen]


def test_questions_that_can_not_be_asked() -> None:
    from llamafactory_ext.training.event_f1 import validation_questions

    for data, told in (
        ([None], "^`event_f1_steps` needs validation data"),
        ([rows(NOTHING_FOUND), None], "^`event_f1_steps` needs validation data"),
        ([rows(NOTHING_FOUND).to_iterable_dataset()], "^`event_f1_steps` does not go with `streaming`"),
        ([rows(NOTHING_FOUND, position_ids=[0])], "^`event_f1_steps` does not go with `packing`"),
        ([rows(NOTHING_FOUND, labels=[65])], "^`event_f1_steps` does not go with `train_on_prompt`"),
        ([rows(NOTHING_FOUND, "it rises")], "can't read that of validation record 1: .*Correct the record"),
    ):
        with pytest.raises(ValueError, match=told):
            validation_questions(stub(*data), 16)


def test_scores_are_summed_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five questions over two processes: this one has the second and the fourth."""
    from llamafactory_ext.training import event_f1

    questions = [event_f1.Question({}, frozenset({(5, 6), (number, number)}), 50) for number in (20, 21, 22, 23, 24)]
    replies = [answer((21, 21), (40, 41), (60, 61)), "nothing to be read"]
    monkeypatch.setattr(event_f1, "answers", lambda trainer, own, generation: replies * (own == questions[1::2]))
    trainer = stub(process_index=1, world_size=2)
    seen: list[Any] = []
    trainer.accelerator = SimpleNamespace(reduce=lambda counts, reduction: seen.append(counts.tolist()) or counts * 3)
    found = event_f1.measure(trainer, questions, None)
    assert seen == [[1, 2, 3, 1]]  # one is found; one is false, one outside; one and both of the other are missed
    rates = {"event_f1": 0.2857, "event_precision": 0.3333, "event_recall": 0.25}  # 2/7, 1/3, 1/4
    assert found == {**rates, "event_unreadable": 3} and next(iter(found)) == "event_f1"


@pytest.fixture
def callback(monkeypatch: pytest.MonkeyPatch) -> Any:
    from llamafactory_ext.training import event_f1

    trainer = stub(rows(NOTHING_FOUND))
    trainer.logged = []
    trainer.log = trainer.logged.append
    settings = {"max_new_tokens": 7, "temperature": 0.5, "eos_token_id": 3}
    finetuning_args = SimpleNamespace(event_f1_steps=2, event_f1_records=16)
    found = event_f1.EventF1Callback(trainer, finetuning_args, settings)
    monkeypatch.setattr(found, "measure", lambda: {"event_f1": 0.5})
    return found


def test_settings_of_answers(callback: Any) -> None:
    given = callback.generation
    assert (given.max_new_tokens, given.eos_token_id, given.num_beams, given.do_sample) == (7, 3, 1, False)
    assert given.temperature != 0.5 and given.use_cache is True and len(callback.questions) == 1


@pytest.mark.parametrize(
    ("steps", "step", "measured"), [(2, 1, 0), (2, 2, 1), (2, 4, 1), (2, 5, 1), (None, 2, 0), (None, 5, 0), (9, 4, 0)]
)
@pytest.mark.parametrize("due", [True, False])
def test_when_it_is_measured(callback: Any, steps: int | None, step: int, measured: int, due: bool) -> None:
    callback.steps, control = steps, SimpleNamespace(should_log=due)
    callback.trainer.log = lambda scores: (callback.trainer.logged.append(scores), vars(control).update(should_log=0))
    callback.on_step_end(None, SimpleNamespace(global_step=step, max_steps=5), control)
    assert callback.trainer.logged == [{"event_f1": 0.5}] * measured
    assert control.should_log is due


def test_lines_of_the_log(callback: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute for 40 of 64 steps; 36 s are left."""
    from llamafactory_ext.training import event_f1

    clock = iter([100.0, 160.0, 160.0])
    monkeypatch.setattr(event_f1.time, "monotonic", lambda: next(clock))
    args, state = SimpleNamespace(output_dir=str(tmp_path), should_save=True), SimpleNamespace(max_steps=64)
    callback.on_train_begin(args, state, None)
    for step, more in ((40, {"should_save": False}), (40, {}), (0, {})):
        state.global_step = step
        callback.on_log(SimpleNamespace(**{**vars(args), **more}), state, None, {"event_f1": 0.5, "x": 1})
    callback.on_log(args, state, None, {"loss": 1.0}), callback.on_log(args, state, None)
    found = [json.loads(line) for line in (tmp_path / "trainer_log.jsonl").read_text().splitlines()]
    same = {"total_steps": 64, "event_f1": 0.5, "x": 1, "elapsed_time": "0:01:00"}
    assert found == [
        same | {"current_steps": 40, "percentage": 62.5, "remaining_time": "0:00:36"},
        same | {"current_steps": 0, "percentage": 0.0, "remaining_time": "1:04:00"},
    ]


def test_fsdp_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from llamafactory_ext.training import event_f1

    monkeypatch.setattr(event_f1, "is_fsdp_enabled", lambda: True)
    with pytest.raises(ValueError, match="does not go with ZeRO-3 or FSDP, which spread the weights"):
        event_f1.EventF1Callback(None, None, {})
