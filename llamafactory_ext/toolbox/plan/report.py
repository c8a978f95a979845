"""A plan as numbers, for scripts."""

import statistics
from typing import Any

from llamafactory_ext.toolbox.plan.planning import Plan


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
        "card": {"name": card.name, "gib": card.gib, "found": card.found, "device": card.device},
        "host_gib": {**_gib(plan.host_bytes), "machine": plan.host_gib},
        "disk_gib": dict(plan.disk_gib),
        "seconds": plan.seconds,
        "fits": verdict.fits,
        "verdict": verdict.text,
        "changes": [{"change": one.text, "price": one.price} for one in verdict.changes],
        "faster": {"change": plan.faster.text, "price": plan.faster.price} if plan.faster else None,
        "recommended_recipe": str(plan.recommended.path) if plan.recommended else None,
        "preflight": [{"level": one.level, "text": one.text} for one in plan.checks],
    }


def _gib(parts: Any) -> dict[str, float]:
    return {name: size / 2**30 for name, size in parts.items()} | {"total": sum(parts.values()) / 2**30}
