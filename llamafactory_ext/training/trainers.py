"""The Trainers of runs with series: stage ``sft`` with event F1 while it trains, predictions without ROUGE, tokenizers
as published; stage ``kto`` with the series that its forward pass would leave out; each with what :mod:`.lasting` adds.

Puts subclasses in place of the Trainers that LLaMA-Factory's workflows take; a run that is not ours gets an instance
of upstream's own class from them. ``dpo`` and ``rm`` hand on what the collator made, series included.
"""

import functools
from typing import Any

from llamafactory.extras import logging
from llamafactory.extras.ploting import plot_loss
from llamafactory.train.callbacks import SaveProcessorCallback

from llamafactory_ext.data.template import check_tokens
from llamafactory_ext.model import ChatTSProcessor
from llamafactory_ext.training.event_f1 import EventF1Callback, chooses_by_events
from llamafactory_ext.training.lasting import Lasting, for_our_runs
from llamafactory_ext.training.resuming import full_disk_told


logger = logging.get_logger("llamafactory.ext")


def _check_first(dataset: Any, processor: Any) -> None:
    """Raises where the first record has lost its series: `tokenized_path` may have been written without the plugin."""
    if hasattr(dataset, "num_rows") and len(dataset):
        row = dataset[0]
        check_tokens(row.get("audios") or [], [row["input_ids"]], processor)


def install_sft(upstream: Any) -> str | None:
    """Puts the subclass in place of the workflow's Trainer."""
    base: Any = upstream.CustomSeq2SeqTrainer

    class SeriesTrainer(Lasting, base):  # type: ignore[misc]
        compute_metrics: Any

        def __init__(self, *, finetuning_args: Any, processor: Any, gen_kwargs: Any = None, **kwargs: Any) -> None:
            super().__init__(finetuning_args=finetuning_args, processor=processor, gen_kwargs=gen_kwargs, **kwargs)
            self.series_processor = processor if isinstance(processor, ChatTSProcessor) else None
            if self.series_processor is not None:  # written by `save_model`; upstream writes it again, after all else
                self.remove_callback(SaveProcessorCallback)
                _check_first(self.train_dataset, self.series_processor)
            self.event_f1 = None
            if self.args.do_train and (finetuning_args.event_f1_steps is not None or chooses_by_events(self.args)):
                self.event_f1 = EventF1Callback(self, finetuning_args, gen_kwargs or {})
                self.add_callback(self.event_f1)

        def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
            """As upstream's; with event F1 where the best checkpoint is chosen by it."""
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
            if self.event_f1 is not None and self.is_in_train and chooses_by_events(self.args):
                scores = self.event_f1.measure()
                output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in scores.items()})
                output.metrics.update({f"eval_{name}": value for name, value in scores.items()})
            return output

        def save_state(self) -> None:
            super().save_state()  # writes the log that is plotted
            logged = any("event_f1" in entry for entry in self.state.log_history)
            if logged and self.finetuning_args.plot_loss and self.is_world_process_zero():
                plot_loss(self.args.output_dir, keys=["event_f1"])

        def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
            super().save_model(output_dir, _internal_call)
            if self.series_processor is not None and self.args.should_save:
                # The Trainer has saved its tokenizer last, in a form that published loaders can't open.
                with full_disk_told(self.args.output_dir):
                    self.series_processor.save_pretrained(output_dir or self.args.output_dir)

        def predict(self, *args: Any, **kwargs: Any) -> Any:
            """As upstream's; for series with a cache of keys and values, whatever the checkpoint says, and without
            ROUGE and BLEU, which come before the predictions are written.

            ROUGE-L tabulates every pair of words: 20 s and 0.7 GB for an answer of 2,400 characters against a label
            of 8,900, and labels of 50,000 are known. And they say nothing about intervals.
            """
            if not getattr(self.data_collator.template.mm_plugin, "reads_series", False):
                return super().predict(*args, **kwargs)
            logger.info_rank0(
                "ROUGE and BLEU are left out: they take hours for long answers, and intervals are no prose."
            )
            similarity, self.compute_metrics = self.compute_metrics, None
            try:
                return super().predict(*args, **{"use_cache": True, **kwargs})
            finally:
                self.compute_metrics = similarity

    upstream.CustomSeq2SeqTrainer = for_our_runs(SeriesTrainer, base)
    return "wrapped"


def install_kto(upstream: Any) -> str | None:
    """Puts the subclass in place of the workflow's Trainer."""
    base: Any = upstream.CustomKTOTrainer

    class SeriesKTOTrainer(Lasting, base):  # type: ignore[misc]
        def forward(self, model: Any, batch: dict[str, Any], prefix: str = "") -> Any:
            """As upstream's, which picks the inputs by name; the same series belong to both prefixes."""
            series = batch.get("timeseries")
            return super().forward(
                model if series is None else functools.partial(model, timeseries=series), batch, prefix
            )

    upstream.CustomKTOTrainer = for_our_runs(SeriesKTOTrainer, base)
    return "wrapped"


def install_dpo(upstream: Any) -> str | None:
    """Puts a subclass in place of the one that the workflow takes when it runs."""
    upstream.CustomDPOTrainer = _lasting(upstream.CustomDPOTrainer)
    return "wrapped"


def install_pt(upstream: Any) -> str | None:
    """Puts a subclass in place of the workflow's Trainer: a ChatTS checkpoint that is trained on text."""
    upstream.CustomTrainer = _lasting(upstream.CustomTrainer)
    return "wrapped"


def install_rm(upstream: Any) -> str | None:
    """Puts a subclass in place of the workflow's Trainer."""
    upstream.PairwiseTrainer = _lasting(upstream.PairwiseTrainer, resumes=False)
    return "wrapped"


def _lasting(base: Any, resumes: bool = True) -> Any:
    """Returns a subclass that does what `Lasting` adds, and nothing else."""
    return for_our_runs(type(f"Series{base.__name__}", (Lasting, base), {"resumes": resumes}), base)
