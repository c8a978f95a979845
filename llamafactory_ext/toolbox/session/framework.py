"""LLaMA-Factory's own steps from an entry to tokens, run so that nothing stops at the first fault.

Uses ``_load_single_dataset`` and ``_get_preprocessed_dataset`` of ``llamafactory.data.loader`` as they are under our
seams, and ``split_dataset`` and ``merge_dataset`` of ``llamafactory.data.data_utils``. Checked on 0.9.5.
"""

import copy
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamafactory_ext.errors import FaultError
from llamafactory_ext.toolbox.session.recipe import Arguments
from llamafactory_ext.toolbox.session.silence import silence


_SECONDS = 5


class CheckError(FaultError):
    """A step that training would not get through either, or that this LLaMA-Factory does not have."""


@dataclass(frozen=True)
class Tokenizer:
    """What LLaMA-Factory's processors need to tokenise."""

    template: Any
    tokenizer: Any
    processor: Any

    @property
    def max_series_length(self) -> int | None:
        """Points of the longest series that the checkpoint's encoder places; None where it sets no limit."""
        return getattr(self.processor, "max_series_length", None)


def load(entry: Any, arguments: Arguments) -> Any:
    """Returns a data set as it was converted, faulty records included, with the column ``_notes``.

    Raises:
        CheckError: the file as a whole can't be read.
    """
    from llamafactory.data import loader

    from llamafactory_ext.data.loading import load_with_notes

    if not hasattr(loader._load_single_dataset, "__wrapped__"):
        raise CheckError("this LLaMA-Factory loads data in a way that check does not know")
    with silence():
        try:
            return load_with_notes(entry, arguments.model, arguments.data, arguments.training)
        except (ValueError, OSError, RuntimeError) as err:
            raise CheckError(str(err)) from err


def load_tokenizer(arguments: Arguments) -> Tokenizer:
    """Loads tokenizer and template.

    Raises:
        CheckError: there is no tokenizer: a wrong path, or not downloaded and no network.
    """
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.model import load_tokenizer as load_upstream

    path = arguments.model.model_name_or_path
    with silence():
        _go_offline_if_unreachable(path)
        try:
            module = load_upstream(copy.copy(arguments.model))
            template = get_template_and_fix_tokenizer(module["tokenizer"], arguments.data)
        except (ValueError, OSError, ImportError, KeyError, AttributeError) as err:
            said = " ".join(str(err.__cause__ or err).split()).partition(". ")[0]  # what follows is a link to a manual
            raise CheckError(f"no tokenizer for {path}: {said[:200]}") from err
    return Tokenizer(template, **module)


def tokenise(rows: Any, arguments: Arguments, tokenizer: Tokenizer) -> Any:
    """Returns the rows tokenised in full, with ``input_ids``, ``labels`` and ``audios``: no limit, no packing.

    Raises:
        CheckError: LLaMA-Factory can't tokenise them, or is a version that this is not made for.
    """
    from llamafactory.data import loader

    from llamafactory_ext.data.fit import unlimited

    preprocess = getattr(loader._get_preprocessed_dataset, "__wrapped__", None)
    if preprocess is None:
        raise CheckError("this LLaMA-Factory tokenises in a way that check does not know; lengths are left out")
    with silence():
        try:
            tokenised = preprocess(
                rows,
                unlimited(arguments.data),
                arguments.training,
                "sft",
                tokenizer.template,
                tokenizer.tokenizer,
                tokenizer.processor,
            )
        except (ValueError, TypeError, RuntimeError) as err:
            raise CheckError(f"LLaMA-Factory can't tokenise the data: {err}") from err
    if len(tokenised) != len(rows):
        raise CheckError(f"LLaMA-Factory made {len(tokenised)} rows of {len(rows)} records; lengths are left out")
    return tokenised


def validation_rows(counts: Sequence[int], arguments: Arguments) -> list[int]:
    """Returns the rows that `val_size` would put into validation, by LLaMA-Factory's own split of row numbers.

    Arguments:
        counts: records of each data set, in their order.
    """
    from datasets import Dataset
    from llamafactory.data.data_utils import merge_dataset, split_dataset

    if arguments.data.val_size <= 1e-6:
        return []
    starts = [sum(counts[:place]) for place in range(len(counts))]
    numbers = [Dataset.from_dict({"row": range(a, a + n)}) for a, n in zip(starts, counts, strict=True)]
    with silence():
        try:
            merged = merge_dataset(numbers, arguments.data, seed=arguments.training.seed)
            _, held_out = split_dataset(merged, None, arguments.data, seed=arguments.training.seed)
        except ValueError as err:
            raise CheckError(
                f"val_size: {arguments.data.val_size:g} can't split {sum(counts)} records: {err}"
            ) from err
    return list(held_out["validation"]["row"])


def _go_offline_if_unreachable(path: str) -> None:
    """Spares the hub's client minutes of retries, file by file, where there is no network; its cache is still used."""
    from huggingface_hub import constants

    elsewhere = any(os.environ.get(name, "0") != "0" for name in ("USE_MODELSCOPE_HUB", "USE_OPENMIND_HUB"))
    if constants.HF_HUB_OFFLINE or Path(path).is_dir() or elsewhere:
        return
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_SECONDS).close()
    except urllib.error.HTTPError:
        return  # it answers
    except OSError:
        constants.HF_HUB_OFFLINE = True
