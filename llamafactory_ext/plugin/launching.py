"""``llamafactory-cli train`` with several processes: blanks in its arguments, and a signal to end.

Wraps ``launch`` of ``llamafactory.launcher``, which joins the arguments to one text for torchrun and splits that at
blanks, and waits for torchrun without handing on SIGTERM. Only runs of ours that are started with torchrun.
"""

import functools
import json
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llamafactory_ext.plugin.relevance import run_needs_plugin


def install(upstream: Any) -> str | None:
    """Wraps ``launch``."""
    launch: Callable[[], None] = upstream.launch

    @functools.wraps(launch)
    def launch_whole() -> None:
        if sys.argv[1:2] != ["train"] or not _starts_torchrun() or not run_needs_plugin(sys.argv):
            return launch()
        if _has_blank(upstream.__file__):
            sys.exit(f"torchrun can't be started: there is a blank in {upstream.__file__}; install it elsewhere.")
        with _forwarded_signal():
            if not any(_has_blank(argument) for argument in sys.argv[2:]):
                return launch()
            with tempfile.TemporaryDirectory(prefix="chatts-") as folder:
                recipe = Path(folder, "recipe.yaml")
                recipe.write_text(json.dumps(_merged(sys.argv[2:]), ensure_ascii=False), "utf-8")  # JSON is YAML
                if _has_blank(str(recipe)):
                    sys.exit(f"torchrun can't be started: there is a blank in {recipe}; set TMPDIR to another folder.")
                sys.argv[2:] = [str(recipe)]
                return launch()

    upstream.launch = launch_whole
    return "wrapped"


def _starts_torchrun() -> bool:
    """As ``launch`` decides."""
    from llamafactory.extras.misc import get_device_count, is_env_enabled, use_ray

    return is_env_enabled("FORCE_TORCHRUN") or (get_device_count() > 1 and not use_ray())


def _has_blank(text: str) -> bool:
    return text.split() != [text]


def _merged(arguments: list[str]) -> Any:
    """Returns a recipe with what the command line overrides in it, as LLaMA-Factory reads both."""
    from omegaconf import OmegaConf

    if not arguments[0].endswith((".yaml", ".yml")):
        blank = next(argument for argument in arguments if _has_blank(argument))
        sys.exit(f"torchrun can't be started: there is a blank in {blank!r}; write the arguments to a recipe (YAML).")
    merged = OmegaConf.merge(OmegaConf.load(arguments[0]), OmegaConf.from_cli(arguments[1:]))
    return OmegaConf.to_container(merged)


@contextmanager
def _forwarded_signal() -> Iterator[None]:
    """Hands SIGTERM on to torchrun, which hands it on to its processes and waits for them."""
    import psutil  # comes with accelerate

    def forward(*_: object) -> None:
        for child in psutil.Process().children():
            child.terminate()

    if signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, forward)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
