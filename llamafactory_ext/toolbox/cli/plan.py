"""Says before a run whether, how long and with how many steps it will go: nothing is trained, no weights are loaded.

llamafactory-ext plan yaml/2080ti_qlora.yaml
llamafactory-ext plan yaml/2080ti_qlora.yaml dataset=train max_steps=200 --gpu 3060
"""

import argparse
import json
import statistics
from pathlib import Path

from llamafactory_ext.errors import FaultError
from llamafactory_ext.toolbox.cli.terminal import (
    DONE,
    FAULTS,
    positive,
    print_table,
    refuse_other_words,
    say,
    stops_in_one_line,
)
from llamafactory_ext.toolbox.plan.planning import Plan
from llamafactory_ext.toolbox.session.silence import hush


DESCRIPTION = """
Plans a training run: records and tokens, optimizer steps as the installed Trainer counts them, memory part by part
against a card, CPU memory, disk, and what else would stop it. Without the checkpoint's tokenizer tokens are estimated.
"""
EPILOG = """
exit status: 0 it fits, 1 it does not, or something else would stop it, 2 wrong usage.
Files: none is written but the caches that training uses as well.
"""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="llamafactory-ext plan",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="a YAML file, as for llamafactory-cli train")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the recipe, as for training")
    parser.add_argument("--gpu", metavar="CARD", help="2080ti, 3060, 3090, a100, …, or GiB; default: the card found")
    parser.add_argument("--processes", type=positive, metavar="N", help="that train together; default: one a card")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON, and nothing else")
    found = parser.parse_intermixed_args(arguments)
    refuse_other_words(parser, found.overrides)
    return found


@stops_in_one_line()
def main() -> int:
    options = parse()
    hush()
    from llamafactory_ext.toolbox.plan.planning import make_plan, report
    from llamafactory_ext.toolbox.session.framework import CheckError

    try:
        plan = make_plan(options.recipe, options.overrides, options.gpu, options.processes)
    except CheckError as err:
        raise FaultError(f"training would stop: {err}") from err
    if options.json:
        print(json.dumps(report(plan), ensure_ascii=False, indent=1, allow_nan=False))
    else:
        print_plan(plan)
    return DONE if plan.verdict.fits and not plan.has_faults else FAULTS


def print_plan(plan: Plan) -> None:
    """Prints data and steps, memory, disk and time, what else was looked at, and the verdict last."""
    _print_steps(plan)
    _print_memory(plan)
    _print_rest(plan)
    for one in plan.checks:
        say(f"{one.level:8}{one.text}")
    say()
    _print_verdict(plan)


def _print_steps(plan: Plan) -> None:
    data, steps, rhythm = plan.data, plan.steps, plan.recipe.rhythm
    whole = [one.whole for one in data.tokens]
    if data.estimated:
        say(f"Tokens are estimated, rather too many: {data.why_estimated}")
    rows = [("records", f"{data.read:,}")]
    rows += [("held out for validation", f"{data.held_out:,}")] if data.held_out else []
    gone = data.read - data.held_out - data.rows
    rows += [("packed or dropped", f"{gone:,}")] if gone else []
    rows += [
        ("tokens of the longest", f"{max(whole):,}"),
        ("tokens, median", f"{statistics.median(whole):,.0f}"),
        ("labels of the longest answer", f"{max(one.answer for one in data.tokens):,}"),
        ("patches of the longest series", f"{max(one.series for one in data.tokens):,}"),
        ("processes", str(plan.processes)),
        ("steps an epoch", f"{steps.per_epoch:,}"),
        ("steps in all", f"{steps.total:,}"),
    ]
    print_table("Data and steps", ("", "count"), rows)
    if rhythm.max_steps > 0:
        say(f"max_steps: {rhythm.max_steps} counts, num_train_epochs does not: {steps.epochs:.2f} epochs")
    elif steps.rule_of_thumb != steps.total:
        say(
            f"Rule of thumb: {steps.rule_of_thumb} (records / batch / accumulation / processes × epochs). "
            "The Trainer rounds the steps of each epoch up."
        )
    say()


def _print_memory(plan: Plan) -> None:
    card, total = plan.card, sum(plan.device_bytes.values())
    rows = [(name, _gib(size)) for name, size in plan.device_bytes.items() if size >= 2**20]
    where = "found here" if card.found else "not here"
    print_table(
        f"Peak on {card.name}, {where}",
        ("", "                 GiB"),
        [
            *rows,
            ("total of a step", _gib(total)),
            ("while loading", _gib(sum(plan.loading_bytes.values()))),
            ("there is", f"{card.gib:.2f}"),
        ],
    )
    if card.device == "cuda":
        rows = [(name, _gib(size)) for name, size in plan.host_bytes.items() if size >= 2**20]
        needed = sum(plan.host_bytes.values())
        here = [("total", _gib(needed)), ("this machine has", f"{plan.host_gib:.2f}")]
        print_table("CPU memory", ("", "                   GiB"), [*rows, *here])


def _print_rest(plan: Plan) -> None:
    disk = ", ".join(f"{name} {size:.2f}" for name, size in plan.disk_gib.items())
    say(f"Disk, GiB: {disk}")
    time = "not measured on this card" if plan.seconds is None else f"{plan.seconds / 3600:.1f} h"
    say(f"Time: {time}")
    say()


def _print_verdict(plan: Plan) -> None:
    moments = {"step": plan.device_bytes, "loading": plan.loading_bytes}
    tightest = sum(moments[plan.tightest].values()) / 2**30
    where = "in a step" if plan.tightest == "step" else "while the weights are loaded"
    say(f"{plan.card.name}: {tightest:.2f} of {plan.card.gib:.2f} GiB, {where}: {plan.verdict.text}")
    for change in plan.verdict.changes:
        say(f"    {change.text}: {change.price}")
    if plan.faster:
        say(f"room for a faster run: {plan.faster.text}: {plan.faster.price}")
    if not plan.fits_host:
        say(f"CPU memory: does not fit: {sum(plan.host_bytes.values()) / 2**30:.2f} of {plan.host_gib:.2f} GiB")
    if plan.recommended and plan.recommended.recipe.path != plan.recipe.path:
        say(f"recommended for this card: {plan.recommended.recipe.path}: {plan.recommended.why}")


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"
