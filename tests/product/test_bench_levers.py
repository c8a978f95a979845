"""The benchmark of single levers: both sides compute the same."""

from dataclasses import replace

import levers
import pytest
import torch
from rows import ROWS


TINY = replace(next(row for row in ROWS if row.name == "tiny"), answer=8, prompt=40)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levers, "_SHORT", TINY)
    monkeypatch.setattr(levers.loss_module, "labels_at_once", levers.loss_module.labels_at_once)


@pytest.mark.parametrize("name", levers.LEVERS)
def test_both_sides_give_the_same_loss(name: str) -> None:
    """With the demo's model in place of the larger ones."""
    found = []
    for side in levers.LEVERS[name][1:]:
        shape = {"batch": side.row.batch, "points": min(side.row.points, 256), "checkpointing": side.row.checkpointing}
        found.append(levers.measure(replace(side, row=replace(TINY, **shape)), steps=1))
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], rel=1e-5)
    assert all(one["seconds"] > 0 for one in found)


def test_packed_records_do_not_see_each_other() -> None:
    packed = levers._packed(levers._records())
    lengths = [one["input_ids"].shape[1] for one in levers._records()]
    seen = packed["attention_mask"][0, 0] == 0
    assert int(seen.sum()) == sum(length * (length + 1) // 2 for length in lengths)
    starts = torch.tensor(lengths).cumsum(0)[:-1]
    assert (packed["labels"][0, starts] == -100).all() and (packed["position_ids"][0, starts] == 0).all()
