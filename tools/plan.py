"""Tells before a run whether, how long and with how many steps it will go: nothing is trained, no weights are loaded.

python tools/plan.py yaml/2080ti_qlora.yaml
python tools/plan.py yaml/2080ti_qlora.yaml dataset=train max_steps=200 --gpu 3060
"""

import argparse
import json
from pathlib import Path

from terminal import DONE, FAULTS, USAGE, complain, refuse_other_words, run

from llamafactory_ext.toolbox.session.quiet import hush


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
        prog="python tools/plan.py",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="a YAML file, as for llamafactory-cli train")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the recipe, as for training")
    parser.add_argument("--gpu", metavar="CARD", help="2080ti, 3060, 3090, a100, …, or GiB; default: the card found")
    parser.add_argument("--processes", type=_positive, metavar="N", help="that train together; default: one a card")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON, and nothing else")
    found = parser.parse_intermixed_args(arguments)
    refuse_other_words(parser, found.overrides)
    return found


def main() -> int:
    options = parse()
    hush()
    try:
        from llamafactory_ext.toolbox.plan.data import DataError
        from llamafactory_ext.toolbox.plan.planning import make_plan
        from llamafactory_ext.toolbox.plan.report import report
        from llamafactory_ext.toolbox.session.recipe import UsageError

        plan = make_plan(options.recipe, options.overrides, options.gpu, options.processes)
    except ModuleNotFoundError as err:  # first: the other names are not there where their import failed
        complain(f"error: no module {err.name}; this tool goes LLaMA-Factory's own way: pip install '.[train]'")
        return USAGE
    except UsageError as err:
        complain(f"error: {err}")
        return USAGE
    except DataError as err:
        complain(f"error: training would stop: {err}")
        return FAULTS
    if options.json:
        print(json.dumps(report(plan), ensure_ascii=False, indent=1, allow_nan=False))
    else:
        from plan_summary import print_plan

        print_plan(plan)
    return DONE if plan.verdict.fits and not plan.has_faults else FAULTS


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


if __name__ == "__main__":
    run(main)
