"""Writes the two demos, model and data each, without a download."""

from pathlib import Path

from llamafactory_ext.toolbox.demo import data, full_data
from llamafactory_ext.toolbox.demo.folder import refuse_foreign
from llamafactory_ext.toolbox.demo.model import Family, Size, write_model


# As large as two CPU cores teach in less than half an hour. Weights that keep the size of what passes through them:
# with the published 0.02 the encoder of this width would start with next to nothing at its end.
FULL = Size(width=128, layers=4, heads=4, key_value_heads=2, max_length=2 * full_data.LENGTH, deviation=0.08)


def write_demo(path: Path, seed: int = 0, family: Family = "qwen2") -> None:
    """Write `path`/data and `path`/model; raise ForeignFolderError if one of them is somebody else's."""
    for part in ("data", "model"):
        refuse_foreign(path / part)
    write_model(path / "model", seed, family)
    data.write_data(path / "data", seed)


def write_full_demo(
    path: Path, seed: int = 0, family: Family = "qwen2", training: int = 60_000, validation: int = 500
) -> None:
    """Write the full demo in the same way, with so many series to train on and to hold out."""
    for part in ("data", "model"):
        refuse_foreign(path / part)
    write_model(path / "model", seed, family, FULL, full_data.make_corpus(seed))
    full_data.write_data(path / "data", seed, training, validation)
