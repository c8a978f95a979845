"""Stages beside ``sft``: series for ``kto``, no ``pt`` and ``ppo`` with series, records that fit their stage.

Puts a subclass in place of ``CustomKTOTrainer`` in ``llamafactory.train.kto.workflow``. ``dpo`` and ``rm`` hand on
what the collator made, series included; ``pt`` reads text alone, and ``ppo`` scores its answers again without series.
"""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.compute as pc

from llamafactory_ext.messages import listing, record_name


_BATCH = 1000  # rows at a time

_TEXT_ONLY = {
    "pt": "Stage `pt` reads text alone and would leave the series out; train records with series in stage `sft`.",
    "ppo": "Stage `ppo` scores its answers without their series; train records with series in stage `dpo` or `kto`.",
}
# Answers in `_response`. Upstream drops records with others, and tells stage `rm` from the entry itself.
_ANSWERS = {
    "sft": 1,
    "kto": 2,
}
_ADVICE = {
    "sft": "take stage `kto`, or leave `kto_tag` out of the entry",
    "kto": "name the column that says true or false as `kto_tag` under `columns`, or take stage `sft`",
}


def install_kto(upstream: Any) -> str | None:
    """Puts the subclass in place of the workflow's Trainer."""

    class SeriesKTOTrainer(upstream.CustomKTOTrainer):  # type: ignore[misc]
        def forward(self, model: Any, batch: dict[str, Any], prefix: str = "") -> Any:
            """As upstream's, which picks the inputs by name; the same series belong to both prefixes."""
            series = batch.get("timeseries")
            return super().forward(
                model if series is None else functools.partial(model, timeseries=series), batch, prefix
            )

    upstream.CustomKTOTrainer = SeriesKTOTrainer
    return "wrapped"


def refuse_unfit(dataset: Any, stage: str) -> None:
    """Raises ValueError where a stage would leave out the series of a data set, or drop its records.

    Arguments:
        dataset: converted records. Of a stream only the first one can be looked at.
        stage: as the workflows call it; ``rm`` stands for ``dpo``, too.
    """
    if stage in _TEXT_ONLY and has_series(dataset):
        raise ValueError(_TEXT_ONLY[stage])
    expected = _ANSWERS.get(stage)
    if expected is None:
        return
    other = [row for row, answers in enumerate(_answer_counts(dataset)) if answers == 3 - expected]
    if other:
        rows = dataset if hasattr(dataset, "num_rows") else list(dataset.take(1))
        lines = listing((record_name(rows[row], row) for row in other), len(other))
        found = "have no `kto_tag`" if stage == "kto" else "have a `kto_tag`"
        raise ValueError("\n".join([f"{len(other)} records {found}, in stage `{stage}`; {_ADVICE[stage]}:", *lines]))


def has_series(dataset: Any) -> bool:
    """True where a record has series; of a stream only the first one is looked at."""
    if not hasattr(dataset, "num_rows"):
        return bool(next(iter(dataset)).get("_audios"))
    if "_audios" not in dataset.column_names:
        return False
    return any(column.null_count < len(column) for column in _column(dataset, "_audios"))


def _answer_counts(dataset: Any) -> list[int]:
    if not hasattr(dataset, "num_rows"):
        return [len(next(iter(dataset))["_response"])]
    counts = [pc.list_value_length(column).to_numpy() for column in _column(dataset, "_response")]
    return [int(count) for count in np.concatenate(counts)] if counts else []


def _column(dataset: Any, name: str) -> Iterator[Any]:
    """Yields the Arrow arrays of a column."""
    for batch in dataset.select_columns([name]).with_format("arrow").iter(_BATCH):
        yield batch[name]
