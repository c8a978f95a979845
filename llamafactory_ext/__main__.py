"""``llamafactory-ext``, or ``python -m llamafactory_ext``: the commands; without one, what is active here."""

import importlib
import sys

from llamafactory_ext import __version__
from llamafactory_ext.plugin import activation
from llamafactory_ext.plugin.seams import SEAMS


_AUTOLOADED = "llamafactory_ext.autoload" in sys.modules  # before the next line imports it

from llamafactory_ext.autoload import enabled  # noqa: E402
from llamafactory_ext.plugin.versions import CHECKED, on_fork, too_old, version  # noqa: E402


_PACKAGES = ("llamafactory", "torch", "transformers", "peft", "bitsandbytes", "deepspeed", "datasets", "pandas")


COMMANDS = {
    "init": "write the recipes and dataset_info/ into a folder",
    "demo": "make a tiny model and a made-up data set for a first run",
    "graft": "make a ChatTS of a plain Qwen",
    "import": "bring labels and series of any form to annotations and CSV files",
    "prepare": "make training data of annotations and CSV files",
    "check": "show what a run would see of a data set, and what is wrong with it",
    "plan": "say before a run whether it fits, how many steps it has and how long it takes",
    "detect": "find anomalies in a folder of series with a trained model",
    "evaluate": "score what a model predicted",
    "compare": "hold runs over the same records to one another",
    "labels": "write labels or predictions as pre-labels for people's tools",
}
USAGE = 2


def main() -> int:
    """Runs the command that is named; without one, prints the state. Exit status 1 if something is wrong."""
    if len(sys.argv) < 2:
        return status()
    name, *rest = sys.argv[1:]
    if name in ("-h", "--help"):
        print("usage: llamafactory-ext [COMMAND] [--help]\n\nwithout a command: versions, and what is active here\n")
        print("\n".join(f"  {command:10}{text}" for command, text in COMMANDS.items()))
        return 0
    if name not in COMMANDS:
        print(f"error: there is no command {name!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return USAGE
    try:
        command = importlib.import_module(f"llamafactory_ext.toolbox.cli.{'import_' if name == 'import' else name}")
        from llamafactory_ext.toolbox.cli.terminal import run
    except ModuleNotFoundError as missing:
        print(f"error: no module {missing.name}; install what it needs: pip install '.[tools]'", file=sys.stderr)
        return USAGE
    sys.argv = [f"llamafactory-ext {name}", *rest]
    return run(command.main)


def status() -> int:
    """Prints versions, seams and their state, template, formats and the off switch."""
    print(f"llamafactory_ext {__version__}, Python {sys.version.split()[0]}")
    for name in _PACKAGES:
        checked = CHECKED.get(name)
        print(f"  {name:14} {version(name)}" + (f"  (checked with {', '.join(checked)})" if checked else ""))
    if not enabled():
        print("Switched off: LLAMAFACTORY_EXT=0 is set. LLaMA-Factory runs as if this package were not installed.")
        return 0
    if not _AUTOLOADED:
        print("Autoload: missing. No llamafactory_ext.pth in this Python's site-packages: LLaMA-Factory runs as if")
        print("this package were not installed. Install it with pip, not by a copy or through PYTHONPATH.")
        return 1
    try:
        formats, templates = _load()
    except Exception as err:  # whatever an install can have wrong, it is reported here
        print(f"LLaMA-Factory can't be imported: {type(err).__name__}: {err}")
        print("Install versions that fit together, from this project's folder: pip install '.[train]'")
        return 1
    print("Where it meets LLaMA-Factory" + (" (the fork: only what it lacks):" if on_fork() else ":"))
    for seam in SEAMS:
        kind = "public" if seam.public else "seam"
        print(f"  {kind:7} {seam.target.removeprefix('llamafactory.'):48} {activation.states()[seam.target]}")
        print(f"{'':10} runs: {seam.runs}")
    print(f"Data formats: {', '.join(formats) or 'none'}. Template: {', '.join(templates) or 'none'}.")
    print("Autoload: in place.")
    print("Off switch: LLAMAFACTORY_EXT=0.")
    wrong = {target: state for target, state in activation.states().items() if state == activation.WAITING}
    wrong |= activation.failures()
    for target, why in wrong.items():
        print(f"WRONG {target}: {why}")
    old = too_old()
    if old:
        print(f"WRONG {old}")
    missing = not templates or "gdsh" not in formats or ("chatts" not in formats and not on_fork())
    return 1 if wrong or missing or old else 0


def _load() -> tuple[list[str], list[str]]:
    """Imports every module that has a seam; returns which of our formats and templates are registered."""
    activation.activate()  # notices modules that are gone, which are not to be imported
    for module in dict.fromkeys(seam.module for seam in SEAMS if seam.target not in activation.failures()):
        importlib.import_module(module)
    from llamafactory_ext.data.formats import FORMATS  # behind those that an empty environment lacks

    converters = getattr(sys.modules.get("llamafactory.data.converter"), "DATASET_CONVERTERS", {})
    templates = getattr(sys.modules.get("llamafactory.data.template"), "TEMPLATES", {})
    return [name for name in FORMATS if name in converters], ["chatts"] if "chatts" in templates else []


if __name__ == "__main__":
    sys.exit(main())
