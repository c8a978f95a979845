"""Records that do not fit: over ``cutoff_len`` they are named, or dropped on request, never cut.

Wraps ``_get_preprocessed_dataset`` of ``llamafactory.data.loader``. Upstream cuts prompt and answer to size without a
word, which here means series without their end and answers that stop in the middle of their JSON. So it is run without
a limit first, and the lengths are looked at. Where answers are generated only the prompt counts: the label is there to
be compared with, and the model never sees it.
"""

import copy
import functools
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from llamafactory.extras import logging

from llamafactory_ext.data.entries import record_name
from llamafactory_ext.errors import listing


logger = logging.get_logger("llamafactory.ext")

_BATCH = 1000  # rows: the tokens and points of a whole data set need not fit in memory

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

Lengths = np.ndarray[Any, np.dtype[np.int64]]


def install(upstream: ModuleType) -> str | None:
    """Wraps the tokenising step; only runs with template ``chatts`` are touched."""
    preprocess = upstream._get_preprocessed_dataset

    @functools.wraps(preprocess)
    def preprocess_whole(
        dataset: Any,
        data_args: Any,
        training_args: Any,
        stage: str,
        template: Any,
        tokenizer: Any,
        processor: Any = None,
        is_eval: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        def tokenise(rows: Any, arguments: Any) -> Any:
            return preprocess(
                rows, arguments, training_args, stage, template, tokenizer, processor, is_eval, *args, **kwargs
            )

        if dataset is None or not getattr(template.mm_plugin, "reads_series", False):
            return tokenise(dataset, data_args)
        refuse_unfit(dataset, stage)
        if stage == "pt":  # text: cut into blocks, as it should be
            return tokenise(dataset, data_args)
        _refuse_long_series(dataset, getattr(processor, "max_series_length", None))
        drop = getattr(data_args, "overlong_records", "error") == "drop"
        reserved = 1 if data_args.packing else 0  # upstream lowers cutoff_len by one where it packs
        generates = stage == "ppo" or (stage == "sft" and is_eval and training_args.predict_with_generate)
        whole = tokenise(dataset, unlimited(data_args))
        if not hasattr(whole, "num_rows"):  # streaming
            return whole.filter(functools.partial(_fits, limit=data_args.cutoff_len, drop=drop))
        kept = _fitting(token_lengths(whole), dataset, data_args.cutoff_len, reserved, drop)
        if not data_args.packing or stage != "sft" or generates:
            return whole if len(kept) == len(whole) else whole.select(kept)
        return tokenise(dataset if len(kept) == len(dataset) else dataset.select(kept), data_args)

    upstream._get_preprocessed_dataset = preprocess_whole  # type: ignore[attr-defined]
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


def advised_cutoff(longest: int, reserved: int) -> int:
    """Returns the ``cutoff_len`` for records of up to ``longest`` tokens.

    Arguments:
        reserved: 1 where upstream packs: it keeps one token to itself, and fills what is packed, but not the positions
            that it wrote for it, to a multiple of 8; so ``cutoff_len`` must be one.
    """
    return -(-(longest + reserved) // 8) * 8 if reserved else longest


def unlimited(data_args: Any) -> Any:
    """Returns data arguments with which every record is tokenised whole, by itself."""
    data_args = copy.copy(data_args)
    data_args.cutoff_len, data_args.packing, data_args.neat_packing = sys.maxsize, False, False
    return data_args


def _fitting(lengths: Lengths, dataset: Any, limit: int, reserved: int, drop: bool) -> list[int]:
    """Returns the rows that fit.

    Raises:
        ValueError: some do not, and ``overlong_records`` is not ``drop``; or none is left.
    """
    overlong = np.flatnonzero(lengths > limit)
    if not overlong.size:
        return list(range(len(lengths)))
    names = (f"{_name(dataset, int(row), len(lengths))}: {lengths[row]} tokens" for row in overlong)
    lines = listing(names, overlong.size)
    found = (
        f"{overlong.size} of {len(lengths)} records do not fit cutoff_len {limit + reserved} "
        "(a series takes one token a patch)"
    )
    if not drop:
        fits = advised_cutoff(int(lengths.max()), reserved)
        lines.append(
            f"Set `cutoff_len: {fits}` to keep them all, shorten series or answers, or set `overlong_records: drop` "
            "to do without them."
        )
        raise ValueError("\n".join([f"{found}:", *lines]))
    logger.warning_rank0("\n".join([f"{found}; dropped, as `overlong_records: drop` says:", *lines]))
    if overlong.size == len(lengths):
        shortest = lengths.min()
        raise ValueError(f"No record is left: the shortest has {shortest} tokens, cutoff_len is {limit + reserved}.")
    return [int(row) for row in np.flatnonzero(lengths <= limit)]


def token_lengths(tokenised: Any) -> Lengths:
    """Returns the tokens of each row: its longest ``*input_ids``, which for generation is the prompt."""
    columns = [name for name in tokenised.column_names if name.endswith("input_ids")]
    lengths = [np.empty(0, np.int64)]
    for batch in tokenised.select_columns(columns).with_format("arrow").iter(_BATCH):
        lengths.append(np.max([pc.list_value_length(batch[name]).to_numpy() for name in columns], axis=0))
    return np.concatenate(lengths).astype(np.int64)


def _refuse_long_series(dataset: Any, limit: int | None) -> None:
    """Raises ValueError, naming the records, where a series has more points than the encoder can place."""
    if limit is None or not hasattr(dataset, "num_rows") or "_audios" not in dataset.column_names:
        return
    rows = dataset.select_columns(["_audios"]).with_format("arrow")
    found = []
    for start in range(0, len(dataset), _BATCH):
        series = rows[start : start + _BATCH]["_audios"].combine_chunks()
        if not (pa.types.is_list(series.type) and pa.types.is_list(series.type.value_type)):
            continue
        lengths = pc.list_value_length(pc.list_flatten(series)).to_numpy()
        parents = pc.list_parent_indices(series).to_numpy()
        found += [(start + int(parents[i]), int(lengths[i])) for i in np.flatnonzero(lengths > limit)]
    if not found:
        return
    lines = listing((f"{_name(dataset, row, len(dataset))}: {length} points" for row, length in found), len(found))
    raise ValueError(
        f"{len(found)} series have more points than the encoder of this checkpoint places, {limit} "
        "(max_sequence_length); downsample them or cut them into windows:\n" + "\n".join(lines)
    )


def _name(dataset: Any, row: int, rows: int) -> str:
    return record_name(dataset[row] if len(dataset) == rows else {}, row)


def _fits(example: dict[str, Any], limit: int, drop: bool) -> bool:
    length = max(len(example[name]) for name in example if name.endswith("input_ids"))
    if length > limit and not drop:
        raise ValueError(
            f"found a record of {length} tokens, cutoff_len is {limit}; raise it, shorten the record, or set "
            "`overlong_records: drop`"
        )
    return length <= limit
