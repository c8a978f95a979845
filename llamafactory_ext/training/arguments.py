"""The plugin's YAML keys, as fields of LLaMA-Factory's own argument classes.

Replaces two classes in the lists of ``llamafactory.hparams.parser`` by subclasses with more fields. Names and meaning
of the encoder's keys are the fork's, so that its recipes carry over; those of memory are applied in ``levers``, those
of event F1 in ``trainers``.
"""

import math
from dataclasses import dataclass, field
from types import ModuleType
from typing import Literal

from llamafactory.hparams import DataArguments, FinetuningArguments

from llamafactory_ext.data.fit import advised_cutoff
from llamafactory_ext.training.engines import refuse_other_engines


@dataclass
class SeriesDataArguments(DataArguments):  # type: ignore[misc]
    overlong_records: Literal["error", "drop"] = field(
        default="error",
        metadata={
            "help": "What becomes of records that do not fit `cutoff_len`: stop the run and list them, or drop them."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.overlong_records not in ("error", "drop"):  # a recipe's values are not checked against the annotation
            raise ValueError(f"`overlong_records` is {self.overlong_records!r}; expected `error` or `drop`.")
        if self.template == "chatts":
            refuse_other_engines()
            self._check_streaming()
            self._check_packing()

    def _check_streaming(self) -> None:
        if self.streaming and self.val_size:  # upstream draws the split anew for each pass over the stream
            raise ValueError(
                "`val_size` does not go with `streaming`: from the second epoch on, training would see validation "
                "records; split them off as a data set of their own and name it as `eval_dataset`."
            )

    def _check_packing(self) -> None:
        if not self.packing:
            return
        if self.streaming:
            raise ValueError(
                "`packing` does not go with `streaming`: whether records fit must be known before; remove one of them."
            )
        given, advised = self.cutoff_len + 1, advised_cutoff(self.cutoff_len, 1)  # upstream has lowered it
        if given != advised:
            raise ValueError(f"`packing` needs a `cutoff_len` that is a multiple of 8, found {given}; set {advised}.")


def is_count(value: object) -> bool:
    """True for whole numbers from 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


@dataclass
class SeriesFinetuningArguments(FinetuningArguments):  # type: ignore[misc]
    timeseries_sft_lr: float | None = field(
        default=None, metadata={"help": "Learning rate of the time-series encoder; `learning_rate` where it is unset."}
    )
    train_timeseries_modules: bool = field(
        default=True,
        metadata={
            "help": "Train the time-series encoder too: LoRA on its linear layers, or all in full and freeze tuning."
        },
    )
    embedding_on_cpu: bool = field(
        default=False,
        metadata={"help": "Keep the embedding table, which is only looked up, in CPU memory."},
    )
    offload_checkpoints: bool = field(
        default=False,
        metadata={"help": "Keep the inputs of checkpointed layers in CPU memory until the backward pass."},
    )
    layers_without_checkpoints: int = field(
        default=0,
        metadata={"help": "How many of the last layers keep what their backward pass needs: they are computed once."},
    )
    stream_head: bool = field(
        default=False,
        metadata={"help": "Keep the head in CPU memory; it comes to the card piece by piece, once a record."},
    )
    stream_layers: int = field(
        default=0,
        metadata={"help": "How many layers lie in CPU memory, their 4-bit weights on the card when they are used."},
    )
    event_f1_steps: int | None = field(
        default=None,
        metadata={"help": "Answer some validation records every so many steps and log the answers' event F1."},
    )
    event_f1_records: int = field(
        default=16, metadata={"help": "How many validation records `event_f1_steps` answers."}
    )

    constrained_answers: bool = field(
        default=False,
        metadata={"help": "Keep answers about series to JSON of anomalies, with intervals within the series."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("embedding_on_cpu", "offload_checkpoints", "stream_head", "constrained_answers"):
            if not isinstance(getattr(self, key), bool):
                raise ValueError(f"`{key}` is {getattr(self, key)!r}; expected `true` or `false`.")
        self._check_layers()
        self._check_event_f1()
        self._check_encoder_lr()

    def _check_layers(self) -> None:
        for key in ("layers_without_checkpoints", "stream_layers"):
            if (value := getattr(self, key)) != 0 and not is_count(value):
                raise ValueError(f"`{key}` is {value!r}; expected a whole number from 0.")
        if self.layers_without_checkpoints and self.offload_checkpoints:
            raise ValueError(
                "`layers_without_checkpoints` does not go with `offload_checkpoints`, which would move all that these "
                "layers keep; remove one of them."
            )
        if self.layers_without_checkpoints and self.stream_layers:
            raise ValueError(
                "`layers_without_checkpoints` does not go with `stream_layers`: a streamed layer's weights leave the "
                "card before its backward pass; remove one of them."
            )
        for key in ("stream_head", "stream_layers"):
            if getattr(self, key) and self.finetuning_type != "lora":
                raise ValueError(f"`{key}` needs weights that are not trained: `finetuning_type: lora`; or remove it.")

    def _check_event_f1(self) -> None:
        for key in ("event_f1_steps", "event_f1_records"):
            value = getattr(self, key)
            if (value is not None or key == "event_f1_records") and not is_count(value):
                raise ValueError(f"`{key}` is {value!r}; expected a whole number from 1.")
        if self.event_f1_steps is not None and self.stage != "sft":
            raise ValueError(f"`event_f1_steps` works in stage `sft`, not `{self.stage}`; remove it.")

    def _check_encoder_lr(self) -> None:
        if self.timeseries_sft_lr is None:
            return
        if not isinstance(self.timeseries_sft_lr, int | float) or not 0 < self.timeseries_sft_lr < math.inf:
            raise ValueError(f"`timeseries_sft_lr` is {self.timeseries_sft_lr!r}; expected a positive number.")
        if self.stage != "sft":
            raise ValueError(f"`timeseries_sft_lr` works in stage `sft`, not `{self.stage}`; remove it.")
        if not self.train_timeseries_modules:
            raise ValueError("`timeseries_sft_lr` is set but `train_timeseries_modules` is false; remove one of them.")


def install(upstream: ModuleType) -> str | None:
    """Puts our classes in place of their bases, unless upstream has the fields."""
    ours = {
        base: ours
        for base, ours, key in (
            (DataArguments, SeriesDataArguments, "overlong_records"),
            (FinetuningArguments, SeriesFinetuningArguments, "timeseries_sft_lr"),
        )
        if key not in base.__dataclass_fields__
    }
    for name in ("_TRAIN_ARGS", "_INFER_ARGS", "_EVAL_ARGS", "_TRAIN_MCA_ARGS", "_TRAIN_MBRIDGE_ARGS"):
        classes = getattr(upstream, name, [])
        classes[:] = [ours.get(one, one) for one in classes]
    if not set(ours.values()) <= set(upstream._TRAIN_ARGS):
        raise TypeError(f"`_TRAIN_ARGS` lacks one of {', '.join(base.__name__ for base in ours)}")
    return f"extended {', '.join(base.__name__ for base in ours)}" if ours else None
