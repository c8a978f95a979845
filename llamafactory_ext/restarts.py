"""Lets torchrun start a run again (``RDZV_ID=…`` and ``MAX_RESTARTS=…`` in LLaMA-Factory's launcher).

Checked on torch 2.11. Standard library only: switching the plugin on imports it.
"""

import os


OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"


def prepare_restarts() -> None:
    """Gives each start of the processes a store of its own, unless the environment says otherwise.

    By default they share torchrun's, where the addresses of those before are still to be found: the new ones wait for
    the dead, gloo for ever (pytorch issue 135712, where this setting is named).
    """
    if "RDZV_ID" in os.environ:
        os.environ.setdefault(OWN_STORE, "1")
