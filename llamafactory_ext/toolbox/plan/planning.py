"""The main path: a recipe in, all that can be known before the run out."""

import os
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamafactory_ext.errors import UsageError
from llamafactory_ext.toolbox.plan import cards
from llamafactory_ext.toolbox.plan.cards import Card
from llamafactory_ext.toolbox.plan.data import Data, read_data
from llamafactory_ext.toolbox.plan.memory import Load, at_worst, on_device, on_host, while_loading
from llamafactory_ext.toolbox.plan.preflight import Check, check, disk_needed
from llamafactory_ext.toolbox.plan.recipe import Recipe
from llamafactory_ext.toolbox.plan.steps import Steps, count_steps, seconds
from llamafactory_ext.toolbox.plan.verdict import Change, Recommendation, Verdict, faster, judge, recommend
from llamafactory_ext.toolbox.session.recipe import arguments, check_method, read_recipe


@dataclass(frozen=True)
class Plan:
    """Memory and disk are in bytes and GiB, as their names say; time in seconds, None where it was not measured."""

    recipe: Recipe
    data: Data
    processes: int
    steps: Steps
    load: Load
    card: Card
    device_bytes: Mapping[str, int]
    """At the peak of a step."""
    loading_bytes: Mapping[str, int]
    host_bytes: Mapping[str, int]
    host_gib: float
    disk_gib: Mapping[str, float]
    verdict: Verdict
    faster: Change | None
    recommended: Recommendation | None
    checks: list[Check]
    seconds: float | None

    @property
    def fits_host(self) -> bool:
        return sum(self.host_bytes.values()) / 2**30 <= self.host_gib

    @property
    def has_faults(self) -> bool:
        return any(one.level == "fault" for one in self.checks) or not self.fits_host

    @property
    def tightest(self) -> str:
        """The moment at which the device holds the most."""
        return "step" if sum(self.device_bytes.values()) >= sum(self.loading_bytes.values()) else "loading"


def make_plan(
    path: Path, overrides: list[str], gpu: str | None = None, processes: int | None = None, recipes: Path | None = None
) -> Plan:
    """Plans a run.

    Arguments:
        gpu: the card to plan for; None takes the one that is there, or the one that the recipe is named after.
        processes: that train together; None takes NPROC_PER_NODE * NNODES, or the cards that are there.
        recipes: the folder to recommend another recipe from.

    Raises:
        UsageError: recipe, key, data set, card or model are not there.
        CheckError: training would stop before its first step.
    """
    values = read_recipe(path, overrides)
    recipe = Recipe(path, values)
    if not values.get("do_train"):
        raise UsageError(f"{path} trains nothing (`do_train: true` is not set); plans are made of training runs")
    names = values.get("dataset")
    if not names:
        raise UsageError(f"{path} names no dataset; add dataset=… with a name of dataset_info.json")
    check_method(values)
    rhythm, shape = recipe.rhythm, recipe.shape
    try:
        card = choose_card(gpu, path.stem)
    except cards.UnknownCardError as err:
        raise UsageError(str(err)) from err
    processes = processes or _processes()
    recipe.settings(card.device, processes)  # DeepSpeed's file is read before the data
    data = read_data(arguments(values, names if isinstance(names, str) else ",".join(names)), shape.patch_size)
    try:
        steps = count_steps(data.rows, rhythm, processes)
    except ValueError as err:
        raise UsageError(f"{path}: {err}") from err
    load, one = at_worst(shape, data.load(rhythm.per_device_train_batch_size)), data.load(1)
    settings = recipe.settings(card.device, processes)
    tokens = sum(one.whole for one in data.tokens) * steps.epochs / processes
    return Plan(
        recipe=recipe,
        data=data,
        processes=processes,
        steps=steps,
        load=load,
        card=card,
        device_bytes=on_device(shape, settings, load),
        loading_bytes=while_loading(shape, settings),
        host_bytes=on_host(shape, settings, load),
        host_gib=cards.machine().gib,
        disk_gib=disk_needed(recipe, card, steps.total),
        verdict=judge(recipe, shape, load, card, processes),
        faster=faster(recipe, shape, load, card, processes),
        recommended=recommend(_siblings(recipe, recipes), shape, one, card),
        checks=check(recipe, card, steps.total),
        seconds=seconds(card.name, shape, settings.quantization_bit, tokens),
    )


def choose_card(gpu: str | None, stem: str) -> Card:
    """Returns the card that is named, or the smallest there is, or the recipe's own, or the machine without one."""
    if gpu is not None:
        return cards.named(gpu)
    there = cards.present()
    if there:
        return min(there, key=lambda card: card.gib)
    return cards.of_recipe(stem) or cards.machine()


def _processes() -> int:
    try:
        per_node, nodes = (int(os.environ.get(key, "0")) for key in ("NPROC_PER_NODE", "NNODES"))
    except ValueError:
        return 1
    return max(1, per_node or len(cards.present())) * max(1, nodes)


def _siblings(recipe: Recipe, folder: Path | None) -> list[Recipe]:
    """The training recipes beside, with this one's model; the overrides for data have no bearing on memory."""
    found = []
    for path in sorted((folder or recipe.path.parent).glob("*.yaml")):
        try:
            values = read_recipe(path)
        except UsageError:
            continue
        if values.get("do_train"):  # the folder holds recipes to ask and to export, too
            found.append(Recipe(path, {**values, "model_name_or_path": recipe.model}))
    return found


def report(plan: Plan) -> dict[str, Any]:
    """Returns everything that the tool prints, ready for JSON."""
    data, card, verdict = plan.data, plan.card, plan.verdict
    whole = [one.whole for one in data.tokens]
    return {
        "recipe": str(plan.recipe.path),
        "records": data.read,
        "records_held_out": data.held_out,
        "rows": data.rows,
        "estimated": data.estimated,
        "tokens": {
            "longest": max(whole),
            "median": statistics.median(whole),
            "total": sum(whole),
            "most_labels": max(one.answer for one in data.tokens),
            "most_patches": max(one.series for one in data.tokens),
        },
        "processes": plan.processes,
        "steps_per_epoch": plan.steps.per_epoch,
        "steps_total": plan.steps.total,
        "epochs": plan.steps.epochs,
        "rule_of_thumb": plan.steps.rule_of_thumb,
        "memory_gib": _gib(plan.device_bytes),
        "loading_gib": _gib(plan.loading_bytes),
        "tightest": plan.tightest,
        "card": {"name": card.name, "gib": card.gib, "found": card.found, "device": card.device},
        "host_gib": {**_gib(plan.host_bytes), "machine": plan.host_gib},
        "disk_gib": dict(plan.disk_gib),
        "seconds": plan.seconds,
        "fits": verdict.fits,
        "verdict": verdict.text,
        "changes": [{"change": one.text, "price": one.price} for one in verdict.changes],
        "faster": {"change": plan.faster.text, "price": plan.faster.price} if plan.faster else None,
        "recommended_recipe": str(plan.recommended.recipe.path) if plan.recommended else None,
        "recommended_why": plan.recommended.why if plan.recommended else None,
        "preflight": [{"level": one.level, "text": one.text} for one in plan.checks],
    }


def _gib(parts: Any) -> dict[str, float]:
    return {name: size / 2**30 for name, size in parts.items()} | {"total": sum(parts.values()) / 2**30}
