"""Whether a run fits a card; what to change so that it does, cheapest first; what room to spare is good for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llamafactory_ext.toolbox.plan.cards import Card
from llamafactory_ext.toolbox.plan.memory import Load, Settings, at_worst, on_device, while_loading
from llamafactory_ext.toolbox.plan.recipe import Recipe
from llamafactory_ext.toolbox.plan.shape import Shape


_POINTS = (4096, 3072, 2048, 1536, 1024, 768, 512, 256)
_AMPERE = (8, 0)
_SMALLER = "smaller: checkpoints wait in CPU memory; float32 between the layers, which float16 can't overflow"
_SMALLEST = "smallest: head and some layers come from CPU memory, too; the same results"
_TURING = (
    ("2080ti_qlora", "4 bit on one card; 2080ti_qlora_safe where float16 overflows (the run stops and says so)"),
    ("2080ti_qlora_safe", _SMALLER),
    ("8gb_qlora", _SMALLEST),
)
_LATER = (
    ("3060_qlora", "4 bit on one card, which has bfloat16: fp16=false bf16=true does not overflow"),
    ("2080ti_qlora_safe", _SMALLER),
    ("8gb_qlora", f"{_SMALLEST}; fp16=false bf16=true does not overflow"),
)
_FILLED = 0.92  # of a card, at most, where it is filled for speed alone: the arithmetic may be off by as much


@dataclass(frozen=True)
class Change:
    """One thing to change: keys of the recipe, or the data."""

    price: str
    keys: Mapping[str, Any]
    load: Load | None = None
    """What is computed at once, where that changes."""
    data: str = ""
    """What to do to the data, where no key does it."""

    @property
    def text(self) -> str:
        """As it is written on the command line."""
        return self.data or " ".join(f"{key}={str(value).lower()}" for key, value in self.keys.items())


@dataclass(frozen=True)
class Verdict:
    """Whether it fits as it is."""

    fits: bool
    changes: Sequence[Change] = ()
    """With all of these it fits; empty where it does already, or nothing helps."""

    @property
    def text(self) -> str:
        if self.fits:
            return "fits"
        return f"fits with {' '.join(change.text for change in self.changes)}" if self.changes else "does not fit"


def judge(recipe: Recipe, shape: Shape, load: Load, card: Card, processes: int) -> Verdict:
    """Compares the peak with the card's memory; where it is too much, adds one change after the other."""
    if total(shape, recipe.settings(card.device, processes), load) <= card.gib:
        return Verdict(True)
    chosen: list[Change] = []
    for change in _candidates(recipe, shape, load, card.device):
        before = total(shape, recipe.settings(card.device, processes), load)
        tried = recipe.with_overrides(change.keys)
        after = total(shape, tried.settings(card.device, processes), change.load or load)
        if after >= before:
            continue
        if change.data and chosen and chosen[-1].data:  # shorter than the last try
            chosen.pop()
        chosen.append(change)
        recipe = tried
        if after <= card.gib:
            return Verdict(False, chosen)
        load = change.load if change.load and change.keys else load
    return Verdict(False)


def faster(recipe: Recipe, shape: Shape, load: Load, card: Card, processes: int) -> Change | None:
    """Returns what saves time on a card with room to spare, without another result; None where there is nothing.

    Gradient checkpoints: with LoRA a layer's forward, repeated forward and backward pass take about as long each, so
    that a step without any takes two thirds. DeepSpeed's recipes are left as they are: what they gather and when was
    not measured without checkpoints.
    """
    if recipe.deepspeed or recipe.get("disable_gradient_checkpointing", False) or recipe.get("stream_layers", 0):
        return None

    now = int(recipe.get("layers_without_checkpoints", 0))
    found = None
    for layers in range(max(now + 1, shape.layers // 10), shape.layers + 1):  # fewer are not worth a key
        keys: dict[str, Any] = {"layers_without_checkpoints": layers}
        if layers == shape.layers:
            keys = {"disable_gradient_checkpointing": True, **({"layers_without_checkpoints": 0} if now else {})}
        if recipe.get("offload_checkpoints", False):
            keys["offload_checkpoints"] = False
        needed = total(shape, recipe.with_overrides(keys).settings(card.device, processes), load)
        if needed > _FILLED * card.gib:
            break
        price = f"{layers} of {shape.layers} layers are computed once a step, not twice; peak {needed:.2f} GiB"
        found = Change(price, keys)
    return found


def total(shape: Shape, settings: Settings, load: Load) -> float:
    """Returns the peak on the device in GiB, of a step or while the weights are loaded."""
    step = sum(on_device(shape, settings, at_worst(shape, load)).values())
    return max(step, sum(while_loading(shape, settings).values())) / 2**30


def _candidates(recipe: Recipe, shape: Shape, load: Load, device: str) -> list[Change]:
    batch, accumulation = recipe.rhythm.per_device_train_batch_size, recipe.rhythm.gradient_accumulation_steps
    found = []
    if device == "cuda" and not recipe.deepspeed and not shape.tied and recipe.get("finetuning_type") == "lora":
        found.append(Change("a copy of a few MB a step", {"embedding_on_cpu": True}))
    if recipe.get("disable_gradient_checkpointing", False):
        found.append(Change("each layer is computed twice", {"disable_gradient_checkpointing": False}))
    else:
        # Layers without checkpoints and offloaded ones are refused together, whichever of them is set.
        again = {"layers_without_checkpoints": 0} if recipe.get("layers_without_checkpoints", 0) else {}
        found += [Change("these layers are computed twice", again)] if again else []
        found.append(Change("checkpoints cross the bus twice a step", {"offload_checkpoints": True, **again}))
    found.append(Change("moments rounded to 8 bit", {"optim": "paged_adamw_8bit"}))
    if batch > 1:
        keys = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": batch * accumulation}
        load = Load(-(-load.tokens // load.rows), -(-load.labels // load.rows), -(-load.patches // load.rows))
        found.append(Change("the same step in more passes", keys, load))
    found += _streams(recipe, shape) if device == "cuda" and not recipe.deepspeed else []
    if recipe.get("quantization_bit") is None and not recipe.deepspeed and recipe.get("finetuning_type") == "lora":
        found.append(Change("weights rounded to 4 bit", {"quantization_bit": 4}))
    for points in _POINTS:
        patches = -(-points // shape.patch_size) * load.rows
        if patches < load.patches:
            shorter = replace(load, patches=patches, tokens=load.tokens - load.patches + patches)
            data = f"(series thinned: llamafactory-ext prepare --max-points {points})"
            found.append(Change("fewer points a series", {}, shorter, data))
    return found


def _streams(recipe: Recipe, shape: Shape) -> list[Change]:
    """What can come from CPU memory: the head, a sixth of the layers, half of them."""
    if recipe.get("finetuning_type") != "lora":
        return []
    found = [] if shape.tied else [Change("the head crosses the bus once a record", {"stream_head": True})]
    now = int(recipe.get("stream_layers", 0)) if recipe.get("quantization_bit") == 4 else shape.layers
    # Refused together with layers that have no checkpoint.
    others = {"layers_without_checkpoints": 0, "disable_gradient_checkpointing": False}
    again = {key: value for key, value in others.items() if recipe.get(key, False)}
    for layers in (shape.layers // 6, shape.layers // 2):
        if layers > now:
            price = f"{layers} layers cross the bus twice a record, beside computing"
            found.append(Change(price, {"stream_layers": layers, **again}))
    return found


@dataclass(frozen=True)
class Recommendation:
    """A recipe for a card, as README's table has it."""

    recipe: Recipe
    why: str


def recommend(recipes: Sequence[Recipe], shape: Shape, load: Load, card: Card) -> Recommendation | None:
    """Returns README's recipe for a card, or where that does not fit the next smaller one; None where none fits.

    `load` is of one record; batches are multiplied in.
    """
    if card.device == "cpu":
        return None
    turing = card.capability is None or card.capability < _AMPERE
    by_name = {recipe.path.stem: recipe for recipe in recipes}
    for name, why in _TURING if turing else _LATER:
        recipe = by_name.get(name)
        if recipe is None:
            continue
        batch = recipe.rhythm.per_device_train_batch_size
        heavier = Load(load.tokens * batch, load.labels * batch, load.patches * batch, batch)
        if total(shape, recipe.settings("cuda", 1), heavier) <= card.gib:
            return Recommendation(recipe, why)
    return None
