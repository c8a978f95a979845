"""A run that is asked to end (SIGTERM: a scheduler takes the machine away soon) saves a checkpoint first.

It ends with status 143 and no final model: it is not finished, and the same command resumes. Several processes agree
after each step, since the signal reaches them at different ones. A second signal ends the process at once.
"""

import signal
import threading
from types import FrameType
from typing import Any

import torch
from llamafactory.extras import logging
from transformers import TrainerCallback


logger = logging.get_logger("llamafactory.ext")

STATUS = 128 + signal.SIGTERM


class StopOnSignal(TrainerCallback):  # type: ignore[misc]
    """Lets the step end, has a checkpoint written, and stops. A handler of somebody else's is left in place."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.asked = self.stopped = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._note)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._anyone_asked() and state.global_step < state.max_steps:
            self.stopped = control.should_save = control.should_training_stop = True
            logger.warning_rank0(f"Asked to end (SIGTERM): checkpoint-{state.global_step} is written, then it stops.")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.release()

    def release(self) -> None:
        """Takes the handler away: what comes after training ends at once."""
        if signal.getsignal(signal.SIGTERM) == self._note:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _anyone_asked(self) -> bool:
        if self.trainer.args.world_size == 1:
            return self.asked
        asked = torch.tensor(int(self.asked), device=self.trainer.args.device)
        return bool(self.trainer.accelerator.reduce(asked, reduction="sum").item())
