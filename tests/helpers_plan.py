"""A recipe for ChatTS-14B to plan with, where no network and no disk of this machine has a say; two fixtures."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamafactory_ext.toolbox.plan.recipe import Recipe


GIB = 2**30
Make = Callable[..., Recipe]


@pytest.fixture(scope="module")
def no_network() -> Iterator[None]:
    """As where no config.json can be reached, and the disk has room for what would be downloaded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llamafactory_ext.toolbox.plan.recipe._config_of", lambda *_: None)
        patch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000 * GIB))
        yield


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes recipes as plain as they get; takes keys."""

    def recipe(**keys: Any) -> Recipe:
        values = {"model_name_or_path": "none/ChatTS-14B", "fp16": True, "quantization_bit": 4}
        values |= {"per_device_train_batch_size": 1, "lora_target": "q_proj,k_proj,v_proj"}
        return Recipe(Path("mine.yaml"), values | {"output_dir": str(tmp_path / "out")} | keys)

    return recipe
