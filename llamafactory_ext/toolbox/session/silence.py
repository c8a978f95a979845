"""Keeps the training stack from talking over the tool: its logs, progress bars and warnings."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path


def hush() -> None:
    """To be called before LLaMA-Factory is imported: asks it, and what it imports, for errors only.

    What a user has set stays.
    """
    for key, value in {
        "LLAMAFACTORY_VERBOSITY": "ERROR",
        "TRANSFORMERS_VERBOSITY": "error",
        "DATASETS_VERBOSITY": "error",
        "HF_HUB_VERBOSITY": "error",
        "DS_ACCELERATOR": "cpu",  # or deepspeed, where it is installed, looks for one and says what it found
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",  # or every worker process warns that it was forked
    }.items():
        os.environ.setdefault(key, value)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Shows nothing of the training stack meanwhile: no log below errors, no warning, no printed example.

    Only the bars of datasets stay, and only where standard error is a terminal: conversion takes its time.
    """
    import datasets
    import transformers
    from llamafactory.extras import logging as upstream

    logger = upstream.get_logger("llamafactory")
    level, bars = logger.level, datasets.are_progress_bars_disabled()
    verbosity = datasets.logging.get_verbosity(), transformers.logging.get_verbosity()
    logger.setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    datasets.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings(), Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        datasets.logging.set_verbosity(verbosity[0])
        transformers.logging.set_verbosity(verbosity[1])
        if not bars:
            datasets.enable_progress_bars()
        sys.stdout.flush()
