"""How many optimizer steps a run takes, counted by the installed Trainer itself, and how long, where measured."""

import inspect
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamafactory_ext.toolbox.session.silence import silence


RATES = Path(__file__).with_name("rates.json")
"""A list of `{"card", "layers", "hidden_size", "quantization_bit", "tokens_per_second", "versions", "date"}`."""


@dataclass(frozen=True)
class Steps:
    """Attributes:
    per_epoch: optimizer steps in one pass over the data.
    total: in the whole run; `global_step` at its end.
    epochs: passes over the data; a fraction where `max_steps` or a fractional `num_train_epochs` ends one early.
    rule_of_thumb: records / batch / accumulation / processes * epochs, rounded down.
    """

    per_epoch: int
    total: int
    epochs: float
    rule_of_thumb: int


@dataclass(frozen=True)
class Rhythm:
    """The keys of a recipe that decide about steps, under LLaMA-Factory's names."""

    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    num_train_epochs: float = 3.0
    max_steps: int = -1
    dataloader_drop_last: bool = False


class _Loader:
    """Stands for a data loader: its length, and the length of its data."""

    def __init__(self, batches: int, rows: int) -> None:
        self.batches, self.dataset = batches, range(rows)

    def __len__(self) -> int:
        return self.batches


def count_steps(rows: int, rhythm: Rhythm, processes: int = 1) -> Steps:
    """Counts the steps of a run over `rows` records (or packs of records) on `processes` processes.

    Batches are dealt out as accelerate deals them; the rest is `Trainer.set_initial_training_values`.

    Raises:
        ValueError: there is not one batch, or transformers refuses a value.
    """
    batches = batches_of_one_process(rows, rhythm, processes)
    if batches == 0:
        raise ValueError(
            f"{rows} records make no batch of {rhythm.per_device_train_batch_size} on {processes} processes"
        )
    with tempfile.TemporaryDirectory() as folder, silence():
        values = _trainers_count(batches, rows, rhythm, folder)
    per_epoch, total = values[1], values[-1]
    thumb = rows / rhythm.per_device_train_batch_size / rhythm.gradient_accumulation_steps / processes
    epochs = rhythm.num_train_epochs if rhythm.max_steps < 0 else total / per_epoch
    return Steps(per_epoch, total, epochs, int(thumb * rhythm.num_train_epochs))


def batches_of_one_process(rows: int, rhythm: Rhythm, processes: int) -> int:
    """Returns the length of one process's data loader: accelerate evens the processes out with repeated records."""
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler

    sampler = BatchSampler(range(rows), rhythm.per_device_train_batch_size, rhythm.dataloader_drop_last)
    if processes == 1:
        return len(sampler)
    return len(BatchSamplerShard(sampler, num_processes=processes, process_index=0))


def _trainers_count(batches: int, rows: int, rhythm: Rhythm, folder: str) -> tuple[Any, ...]:
    from torch import nn
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(folder, use_cpu=True, report_to="none", **vars(rhythm))
    trainer = Trainer(nn.Linear(1, 1), arguments)
    count = trainer.set_initial_training_values
    given: list[Any] = [arguments, _Loader(batches, rows)]
    if "total_train_batch_size" in inspect.signature(count).parameters:  # transformers 4; used for a log line only
        given.append(rhythm.per_device_train_batch_size * rhythm.gradient_accumulation_steps)
    result: tuple[Any, ...] = count(*given)
    return result


def seconds(card: str, shape: Any, quantization_bit: int | None, tokens: float, path: Path = RATES) -> float | None:
    """Returns how long a run over so many tokens takes on a card; None where it was not measured."""
    wanted = {"card": card, "layers": shape.layers, "hidden_size": shape.hidden_size}
    wanted["quantization_bit"] = quantization_bit
    for row in json.loads(path.read_text(encoding="utf-8")):
        if all(row.get(key) == value for key, value in wanted.items()):
            return float(tokens / row["tokens_per_second"])
    return None
