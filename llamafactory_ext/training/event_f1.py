"""Event F1 while training: every N steps a few validation records are answered, and the answers scored.

Greedy, in left-padded batches; read as the converter reads annotations, scored as the evaluation scores events. The
run itself is as it would be without: weights, random numbers, train mode and padding side are put back. The records
come tokenised, as the loss sees them: the last answer is cut off, and what is left is the prompt.

A callback that :mod:`.trainers` adds, since it needs of the Trainer what callbacks are not given: validation data,
collator and log.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llamafactory.extras.constants import TRAINER_LOG
from transformers import GenerationConfig, TrainerCallback
from transformers.integrations import is_deepspeed_zero3_enabled, is_fsdp_enabled

from llamafactory_ext.gdsh.events import Counts, Interval, agreement, event_counts
from llamafactory_ext.gdsh.readings import UNREADABLE, place, read_answer


_SETTINGS = ("max_new_tokens", "max_length", "repetition_penalty", "eos_token_id", "pad_token_id")
_IGNORED = -100
_CHOOSE_BY = ("event_f1", "event_precision", "event_recall")


@dataclass(frozen=True)
class Question:
    """One record, its answer taken away."""

    features: Mapping[str, Any]
    """What the collator takes: the prompt's tokens, and the series."""
    intervals: frozenset[Interval]
    """Those of its answer."""
    length: int
    """Points of its longest series."""


def chooses_by_events(training_args: Any) -> bool:
    """True where ``metric_for_best_model`` is event F1, event precision or event recall."""
    return str(training_args.metric_for_best_model).removeprefix("eval_") in _CHOOSE_BY


class EventF1Callback(TrainerCallback):  # type: ignore[misc]
    """Measures after every ``event_f1_steps``-th step and after the last one; by :meth:`measure` at other times.

    Raises:
        ValueError: this run can't be measured; the message says what to change.
    """

    def __init__(self, trainer: Any, finetuning_args: Any, gen_kwargs: dict[str, Any]) -> None:
        if is_deepspeed_zero3_enabled() or is_fsdp_enabled():
            raise ValueError(
                "`event_f1_steps` does not go with ZeRO-3 or FSDP, which spread the weights over the processes; "
                "remove it, and predict with the adapter when it is trained (yaml/predict.yaml)."
            )
        self.trainer, self.steps = trainer, finetuning_args.event_f1_steps
        self.questions = validation_questions(trainer, finetuning_args.event_f1_records)
        settings = {key: gen_kwargs[key] for key in _SETTINGS if key in gen_kwargs}
        self.generation = GenerationConfig(do_sample=False, num_beams=1, use_cache=True, **settings)
        self.started = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = time.monotonic()

    def measure(self) -> dict[str, float]:
        """Returns the scores of the model as it is; every process takes part."""
        return measure(self.trainer, self.questions, self.generation)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.steps is None:  # measured with each evaluation only
            return
        if state.global_step % self.steps and state.global_step < state.max_steps:
            return
        scores = self.measure()
        due = control.should_log  # logging takes it back, and the step's own loss would be left out
        self.trainer.log(scores)
        control.should_log = due

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Writes a line of upstream's own log file, whose writer knows a fixed list of keys."""
        if not args.should_save or "event_f1" not in (logs or {}):
            return
        elapsed = time.monotonic() - self.started
        left = elapsed / max(state.global_step, 1) * (state.max_steps - state.global_step)
        line = {"current_steps": state.global_step, "total_steps": state.max_steps, **logs}
        line["percentage"] = round(state.global_step / state.max_steps * 100, 2)
        line["elapsed_time"], line["remaining_time"] = (str(timedelta(seconds=int(t))) for t in (elapsed, left))
        with Path(args.output_dir, TRAINER_LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def measure(trainer: Any, questions: Sequence[Question], generation: Any) -> dict[str, float]:
    """Returns event precision, recall and F1 over all questions, and how many answers could not be read.

    Each process answers its share; what is summed is the same in all of them afterwards. An answer that can't be read
    finds nothing, and is a false alarm where there is nothing to be found.
    """
    counts = torch.zeros(4, dtype=torch.long, device=trainer.args.device)
    own = questions[trainer.args.process_index :: trainer.args.world_size]
    for question, text in zip(own, answers(trainer, own, generation), strict=True):
        events, readable = score(question, text)
        counts += counts.new_tensor([*events, not readable])
    *events, unreadable = trainer.accelerator.reduce(counts, reduction="sum").tolist()
    found = agreement(*events)
    rounded = {f"event_{name}": round(value, 4) for name, value in found._asdict().items()}
    return {"event_f1": rounded.pop("event_f1"), **rounded, "event_unreadable": unreadable}


def answers(trainer: Any, questions: Sequence[Question], generation: Any) -> list[str]:
    """Returns the greedy answer to each question, ``per_device_eval_batch_size`` of them at a time."""
    model, tokenizer, size = trainer.model, trainer.processing_class, trainer.args.per_device_eval_batch_size
    found: list[str] = []
    with _as_for_generation(model, tokenizer), trainer.compute_loss_context_manager():
        for start in range(0, len(questions), size):
            batch = trainer.data_collator([dict(one.features) for one in questions[start : start + size]])
            inputs = {key: value.to(trainer.args.device) for key, value in batch.items() if value is not None}
            output = model.generate(**inputs, generation_config=generation)
            new = output[:, inputs["input_ids"].shape[1] :]
            found += tokenizer.batch_decode(new, skip_special_tokens=True)
    return found


@contextmanager
def _as_for_generation(model: Any, tokenizer: Any) -> Iterator[None]:
    """Evaluation, no gradients, padding on the left; afterwards everything is as it was, random numbers too."""
    modes = [(module, module.training) for module in model.modules()]
    side = tokenizer.padding_side
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        try:
            model.eval()
            tokenizer.padding_side = "left"
            yield
        finally:
            tokenizer.padding_side = side
            for module, training in modes:
                module.training = training


def validation_questions(trainer: Any, count: int) -> list[Question]:
    """Returns up to ``count`` records, evenly spread over the validation data; the same in every process.

    Raises:
        ValueError: there are none, or they can't be asked; the message says what to change.
    """
    datasets = trainer.eval_dataset
    datasets = list(datasets.values()) if isinstance(datasets, dict) else [datasets]
    if any(dataset is None for dataset in datasets):
        raise ValueError(
            "`event_f1_steps` needs validation data, and this run has none: set `eval_dataset` "
            "(llamafactory-ext prepare --split 0.1 --register makes one) or `val_size`; or remove `event_f1_steps`."
        )
    if not all(hasattr(dataset, "num_rows") for dataset in datasets):
        raise ValueError("`event_f1_steps` does not go with `streaming`; remove one of them.")
    places = [(dataset, row) for dataset in datasets for row in range(len(dataset))]
    chosen = [places[number * len(places) // count] for number in range(count)] if count < len(places) else places
    generates = trainer.args.predict_with_generate
    return [_question(dataset[row], row, trainer.processing_class, generates) for dataset, row in chosen]


def score(question: Question, text: str) -> tuple[Counts, bool]:
    """Returns the events of an answer, counted as the evaluation counts them, and whether it could be read.

    One that could not is a false alarm where there is nothing to be missed.
    """
    reading = read_answer(text)
    placed = place(reading.anomalies, question.length)
    found = event_counts(question.intervals, {(one.start, one.end) for one in placed.inside})
    readable = reading.form != UNREADABLE
    nothing = (
        not readable and not question.intervals
    )  # no answer, and yet nothing is missed: it must not count as right
    return found._replace(false_alarms=found.false_alarms + len(placed.outside) + nothing), readable


def _question(example: dict[str, Any], row: int, tokenizer: Any, generates: bool) -> Question:
    """Arguments: ``generates``: prompt and answer stand apart already, as ``predict_with_generate`` has them."""
    if "position_ids" in example:  # several records in one row
        raise ValueError("`event_f1_steps` does not go with `packing`; remove one of them.")
    ids, labels = example["input_ids"], np.asarray(example["labels"])
    if generates:
        end, answer = len(ids), labels
    else:
        gaps = np.flatnonzero(labels == _IGNORED)
        if not gaps.size:
            raise ValueError("`event_f1_steps` does not go with `train_on_prompt`: no answer can be told; remove one.")
        end = int(gaps[-1]) + 1
        answer = labels[end:]
    reading = read_answer(tokenizer.decode(answer, skip_special_tokens=True))
    if reading.form == UNREADABLE:
        raise ValueError(
            "`event_f1_steps` reads intervals from answers, and can't read that of validation record "
            f"{row}: {reading.problem}. Correct the record, or remove `event_f1_steps`."
        )
    length = max((len(series) for series in example.get("audios") or ()), default=0)
    intervals = frozenset((one.start, one.end) for one in place(reading.anomalies, length).inside)
    features = {"input_ids": ids[:end], "attention_mask": [1] * end}
    features |= {key: example[key] for key in ("images", "videos", "audios") if key in example}
    return Question(features, intervals, length)
