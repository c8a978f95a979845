"""What a run writes, and the room that there is for it."""

import shutil

from llamafactory_ext.toolbox.plan.memory import Settings
from llamafactory_ext.toolbox.plan.memory_weights import optimiser_bytes, trained_parameters
from llamafactory_ext.toolbox.plan.recipe import Recipe
from llamafactory_ext.toolbox.plan.shape import Shape


_TOKENIZER = 12 * 2**20  # saved with each checkpoint; Qwen's
_SAVE_STEPS = 500  # the Trainer's default


def checkpoint_bytes(recipe: Recipe, shape: Shape, settings: Settings) -> int:
    """Returns the size of one checkpoint: trained weights in float32, the optimizer's states, the tokenizer."""
    states = 0 if recipe.get("save_only_model", False) else optimiser_bytes(shape, settings)
    weights = 4 * trained_parameters(shape, settings)
    return weights + states + _TOKENIZER


def checkpoints_kept(recipe: Recipe, steps: int) -> int:
    """Returns how many checkpoints lie in `output_dir` at most; a new one is written before the oldest one goes."""
    every = recipe.get("save_steps", _SAVE_STEPS)
    written = -(-steps // every) if isinstance(every, int) and every >= 1 else steps
    limit = recipe.get("save_total_limit")
    return written if limit is None else min(written, int(limit) + 1)


def needed(recipe: Recipe, shape: Shape, settings: Settings, steps: int) -> dict[str, float]:
    """Returns GiB by part, and what is free where `output_dir` will be."""
    folder = next(parent for parent in (recipe.output, *recipe.output.absolute().parents) if parent.exists())
    each = checkpoint_bytes(recipe, shape, settings)
    parts = {"checkpoints": each * checkpoints_kept(recipe, steps), "result": each}
    if recipe.config is None:
        parts["download"] = 2 * shape.parameters
    return {name: size / 2**30 for name, size in parts.items()} | {"free": shutil.disk_usage(folder).free / 2**30}
