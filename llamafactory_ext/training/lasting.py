"""Lasting: what a Trainer of a run of ours does in every stage, so that whatever ends the run loses nothing.

Whole checkpoints, resuming from the last of them, an end at SIGTERM that does not look finished, no start without a
step left, rotation by step, and a disk that is full in one line. Mixed into the Trainers by :mod:`.trainers`.
"""

from pathlib import Path
from typing import Any

from llamafactory.extras import logging

from llamafactory_ext.plugin.relevance import is_our_run
from llamafactory_ext.training.resuming import (
    RefuseNoStep,
    choose_checkpoint,
    clear_way,
    full_disk_told,
    name_numbered_cpus,
    order_by_step,
    require_one_step,
    take_last_whole,
)
from llamafactory_ext.training.stopping import STATUS, StopOnSignal


logger = logging.get_logger("llamafactory.ext")


class Lasting:
    """Stands before one of upstream's Trainers."""

    resumes = True
    """Whether upstream can load the checkpoints that it writes in this stage."""

    args: Any
    accelerator: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stop_on_signal = StopOnSignal(self)
        self.add_callback(self.stop_on_signal)  # type: ignore[attr-defined]
        self.add_callback(RefuseNoStep())  # type: ignore[attr-defined]

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        checkpoint = choose_checkpoint(self.args.output_dir, resume_from_checkpoint)
        if not self.resumes:
            _require_start(self.args, checkpoint)
        require_one_step(checkpoint)
        if self.is_world_process_zero():  # type: ignore[attr-defined]
            clear_way(self.args.output_dir, checkpoint)
        if checkpoint is not None and self.args.world_size > 1 and self.args.device.type == "cpu":
            name_numbered_cpus()
        try:
            with full_disk_told(self.args.output_dir):
                result = super().train(checkpoint, *args, **kwargs)  # type: ignore[misc]
        finally:
            self.stop_on_signal.release()
        if self.stop_on_signal.stopped:  # upstream would write what looks like the final model
            then = (
                "the same command resumes from the checkpoint" if self.resumes else "the checkpoint is what there is"
            )
            logger.warning_rank0(f"Not finished: {then}.")
            raise SystemExit(STATUS)
        return result

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)  # type: ignore[misc]
        # The last file of each process. Process 0 then writes trainer_state.json, which says that all are there,
        # and deletes older checkpoints.
        self.accelerator.wait_for_everyone()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        with full_disk_told(self.args.output_dir):
            super().save_model(output_dir, _internal_call)  # type: ignore[misc]
            if _internal_call and output_dir is not None and self.args.should_save:
                order_by_step(Path(output_dir))


def _require_start(args: Any, checkpoint: str | bool | None) -> None:
    """Says that a run in this stage can't be resumed, and raises ValueError where it would be.

    Upstream takes the value head out of a reward model's checkpoints: of an adapter it finds nothing again, and with a
    whole model it starts over without a word.
    """
    if checkpoint is None and not args.overwrite_output_dir:
        checkpoint = take_last_whole(args.output_dir)
    if checkpoint is not None:
        raise ValueError(
            f"Stage `rm` can't resume from {checkpoint}: LLaMA-Factory does not load the checkpoints that it writes "
            "of a reward model. Set `overwrite_output_dir: true` to start over, or name another `output_dir`."
        )
    logger.warning_rank0(
        "Stage `rm` can't be resumed: if this run is ended (SIGTERM too), its last checkpoint is what there is."
    )


def for_our_runs(ours: Any, base: Any) -> Any:
    """Returns ``ours``, which makes an instance of ``base`` where the run is not ours."""

    def __new__(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if cls is ours and not is_our_run(kwargs.get("args")):
            return base(*args, **kwargs)
        return base.__new__(cls)

    ours.__new__ = __new__
    return ours
