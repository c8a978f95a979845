"""What the check of lengths says of data sets whose numbers are known beforehand."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset

from llamafactory_ext.data import fit


def rows(**columns: list[Any]) -> Dataset:
    return Dataset.from_dict(columns)


def turns(*counts: int) -> list[Any]:
    return [[{"role": "assistant", "content": "x"}] * count for count in counts]


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ("pt", "Stage `pt` reads text alone and would leave the series out"),
        ("ppo", "Stage `ppo` scores its answers without their series"),
    ],
)
def test_stages_that_read_text_alone(stage: str, said: str) -> None:
    fit.refuse_unfit(rows(_audios=[None, None], _response=turns(1, 1)), stage)
    fit.refuse_unfit(rows(_response=turns(1)), stage)
    with pytest.raises(ValueError, match=said):
        fit.refuse_unfit(rows(_audios=[None, [[1.0]]], _response=turns(1, 1)), stage)
    fit.refuse_unfit(rows(_audios=[[[1.0]]], _response=turns(1)), "sft")


@pytest.mark.parametrize(
    ("stage", "counts", "said"),
    [
        (
            "sft",
            (1, 2, 2),
            ["2 records have a `kto_tag`, in stage `sft`; take stage `kto`", "  record 1", "  record 2"],
        ),
        ("kto", (2, 1, 2), ["1 records have no `kto_tag`, in stage `kto`; name the column", "  record 1"]),
        ("sft", (1, 1), None),
        ("kto", (2, 2), None),
        ("rm", (2, 1), None),
        ("sft", (1, 0), None),
    ],
)
def test_answers_that_a_stage_drops(stage: str, counts: tuple[int, ...], said: list[str] | None) -> None:
    data = rows(_response=turns(*counts))
    for one in (data, data.to_iterable_dataset()):
        if said is None or (one is not data and counts[0] == (1 if stage == "sft" else 2)):
            fit.refuse_unfit(one, stage)  # of a stream the first record alone is seen
            continue
        with pytest.raises(ValueError) as caught:
            fit.refuse_unfit(one, stage)
        found = str(caught.value).splitlines()
        assert found[0].startswith(said[0]) and found[0].endswith(":") and found[1:] == said[1:]


def test_of_a_stream_the_first_record_says_whether_there_are_series() -> None:
    for first, expected in ((None, False), ([[1.0]], True)):
        data = rows(_audios=[first, [[2.0]]], _response=turns(1, 1))
        assert fit.has_series(data.to_iterable_dataset()) is expected
    stream = rows(_response=turns(2)).to_iterable_dataset()
    with pytest.raises(ValueError, match="1 records have a `kto_tag`"):
        fit.refuse_unfit(stream, "sft")


@pytest.mark.parametrize(
    ("longest", "reserved", "cutoff"), [(303, 0, 303), (303, 1, 304), (304, 1, 312), (295, 1, 296), (296, 1, 304)]
)
def test_advised_cutoff(longest: int, reserved: int, cutoff: int) -> None:
    assert fit.advised_cutoff(longest, reserved) == cutoff


def test_unlimited_is_a_copy() -> None:
    given = SimpleNamespace(cutoff_len=10, packing=True, neat_packing=True, other=1)
    found = fit.unlimited(given)
    assert vars(found) == {"cutoff_len": sys.maxsize, "packing": False, "neat_packing": False, "other": 1}
    assert given.cutoff_len == 10 and given.packing


def test_the_longest_of_a_records_texts_counts() -> None:
    """Those of chosen and rejected answers lie in columns of their own."""
    data = rows(chosen_input_ids=[[1] * 3, [1] * 5], rejected_input_ids=[[1] * 4, [1]], labels=[[1] * 9, [1] * 9])
    assert fit.token_lengths(data).tolist() == [4, 5]
    assert fit.token_lengths(data.select([])).tolist() == []
    found = [fit._fits(row, limit=4, drop=True) for row in data]
    assert found == [True, False] and fit._fits(data[0], limit=4, drop=False)
    with pytest.raises(ValueError, match="found a record of 5 tokens, cutoff_len is 4; raise it"):
        fit._fits(data[1], limit=4, drop=False)


def test_what_fits_is_told_from_what_does_not(log: pytest.LogCaptureFixture) -> None:
    data = rows(input_ids=[[1] * length for length in (4, 5, 6, 7)], _record=["", "a", "b", "record 9 (c.jpg)"])
    lengths = fit.token_lengths(data)
    assert fit._fitting(lengths, data, 7, 0, False) == [0, 1, 2, 3] and not log.text
    with pytest.raises(ValueError) as caught:
        fit._fitting(lengths, data, 5, 0, False)
    assert str(caught.value).splitlines()[:3] == [
        "2 of 4 records do not fit cutoff_len 5 (a series takes one token a patch):",
        "  record 2 (b): 6 tokens",
        "  record 9 (c.jpg): 7 tokens",
    ]
    assert "Set `cutoff_len: 7` to keep them all" in str(caught.value)
    assert fit._fitting(lengths, data, 5, 0, True) == [0, 1] and "record 2 (b): 6 tokens" in log.text
    # Of packed records one token is upstream's own, and names are known only where no record has become several.
    with pytest.raises(
        ValueError, match=r"do not fit cutoff_len 5 \(a series[\s\S]*  record 3: 7 tokens[\s\S]*len: 8`"
    ):
        fit._fitting(lengths, data.select([0]), 4, 1, False)
    with pytest.raises(ValueError, match="No record is left: the shortest has 4 tokens, cutoff_len is 4"):
        fit._fitting(lengths, data, 3, 1, True)


def test_series_that_are_longer_than_the_encoder_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "_BATCH", 2)
    data = rows(_audios=[[[0.0] * 4], None, [[0.0] * 5], [[0.0] * 3, [0.0] * 6]], _record=["a", "b", "c", "d"])
    fit._refuse_long_series(data, 6)
    fit._refuse_long_series(data, None)
    fit._refuse_long_series(data.to_iterable_dataset(), 1)
    fit._refuse_long_series(rows(_record=["a"]), 1)
    fit._refuse_long_series(rows(_audios=[None, None, None], _record=["a", "b", "c"]), 1)
    with pytest.raises(ValueError) as caught:
        fit._refuse_long_series(data, 4)
    first, *names = str(caught.value).splitlines()
    assert first.startswith("2 series have more points than the encoder of this checkpoint places, 4 (max_sequence_l")
    assert names == ["  record 2 (c): 5 points", "  record 3 (d): 6 points"]
