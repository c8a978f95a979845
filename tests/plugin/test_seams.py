"""Upstream's source at each seam is what was looked at. Moved source fails here before it fails in a run."""

import ast
import textwrap

import pytest
import upstream
from conftest import ROOT

from llamafactory_ext.plugin.seams import SEAMS, Seam
from llamafactory_ext.plugin.versions import CHECKED


DIGESTS = {
    "llamafactory.data.converter:register_dataset_converter": {
        "0.9.4": "53b2bfd2f8268c7a",
        "0.9.5": "53b2bfd2f8268c7a",
    },
    "llamafactory.data.mm_plugin:register_mm_plugin": {
        "0.9.4": "a154220ae3709f42",
        "0.9.5": "a154220ae3709f42",
    },
    "llamafactory.data.template:register_template": {
        "0.9.4": "c7b2c839bcfc0a0b",
        "0.9.5": "434da6c3559669ab",
    },
    "llamafactory.data.parser:DatasetAttr.join": {
        "0.9.4": "193e3abae4700bd9",
        "0.9.5": "193e3abae4700bd9",
    },
    "llamafactory.data.loader:_load_single_dataset": {
        "0.9.4": "9c0e87848621a50f",
        "0.9.5": "9c0e87848621a50f",
    },
    "llamafactory.data.loader:_get_preprocessed_dataset": {
        "0.9.4": "459484d52d8ec340",
        "0.9.5": "459484d52d8ec340",
    },
    "llamafactory.hparams.parser:_TRAIN_ARGS": {
        "0.9.4": "6388ffe40269e610",
        "0.9.5": "f9e196d12a5a1169",
    },
    "llamafactory.hparams.parser:_verify_model_args": {
        "0.9.4": "a1fe0b408191ad78",
        "0.9.5": "8741ef431f10cab3",
    },
    "llamafactory.hparams.parser:get_last_checkpoint": {
        "0.9.4": "f657fbf1afd35cdf",
        "0.9.5": "6649fbb8bc7fba53",
    },
    "llamafactory.model.loader:_get_init_kwargs": {
        "0.9.4": "2e57404f91f19acd",
        "0.9.5": "384049d28d04e15f",
    },
    "llamafactory.model.loader:load_config": {
        "0.9.4": "f83e309bce1711ba",
        "0.9.5": "c0fcb3dd7829816f",
    },
    "llamafactory.model.loader:AutoProcessor": {
        "0.9.4": "3c4a4c9a9a83f86a",
        "0.9.5": "3c4a4c9a9a83f86a",
    },
    "llamafactory.model.adapter:patch_target_modules": {
        "0.9.4": "65a5d3f177b7b5ff",
        "0.9.5": "2e3c323914c34d25",
    },
    "llamafactory.model.adapter:get_forbidden_modules": {
        "0.9.4": "fe853698e4250937",
        "0.9.5": "4c537668c71cfa4c",
    },
    "llamafactory.model.loader:init_adapter": {
        "0.9.4": "d2f75ad0a60954b6",
        "0.9.5": "a1a096bb600f850e",
    },
    "llamafactory.train.sft.trainer:create_custom_optimizer": {
        "0.9.4": "180ac377aeee56c9",
        "0.9.5": "530fbefc32ba646b",
    },
    "llamafactory.train.sft.workflow:CustomSeq2SeqTrainer": {
        "0.9.4": "9f626bbca7847783",
        "0.9.5": "c667bdb2879dda38",
    },
    "llamafactory.train.kto.workflow:CustomKTOTrainer": {
        "0.9.4": "306abb132d8f03e5",
        "0.9.5": "d8cda73c18baf322",
    },
    "llamafactory.api.app:create_app": {
        "0.9.4": "fee0ffb3fcee2e0a",
        "0.9.5": "cd3d653cbc466ee3",
    },
    "llamafactory.chat.chat_model:run_chat": {
        "0.9.4": "a65ccf90f8a1db58",
        "0.9.5": "2457bb14259d7254",
    },
}
LEANING_DIGESTS = {
    "llamafactory_ext.training.encoder:optimizer_with_encoder_lr": {
        "4.57.1": "c18cba4c1d150bfc",
        "4.57.6": "c18cba4c1d150bfc",
        "5.6.0": "9b257be78f196f9f",
    },
    "llamafactory_ext.training.trainers:install_sft": {
        "4.57.1": "8c59d5290ae149aa",
        "4.57.6": "8c59d5290ae149aa",
        "5.6.0": "ab4bc3e0b784c8b7",
    },
    "llamafactory_ext.model.modeling:ChatTSMixin": {
        "4.57.1": "ab0f4331a8ae18a6",
        "4.57.6": "ab0f4331a8ae18a6",
        "5.6.0": "47e6563a62d183e1",
    },
    "llamafactory_ext.model.attention:sdpa_repeated": {
        "4.57.1": "2e2135deda572c9c",
        "4.57.6": "2e2135deda572c9c",
        "5.6.0": "a5e1a66fdaa0e143",
    },
    "llamafactory_ext.model.host_embedding:HostEmbedding": {"2.11.0": "1cc223e601462ea2"},
    "llamafactory_ext.model.host_embedding:keep_out_of_ddp": {"2.11.0": "275cab2067558397"},
}
BY_TARGET = {seam.target: seam for seam in SEAMS}


def test_every_seam_is_watched() -> None:
    assert list(DIGESTS) == list(upstream.SOURCES) == list(BY_TARGET)
    for seam in SEAMS:
        assert seam.reason and (seam.public or seam.module)
        assert set(DIGESTS[seam.target]) == set(CHECKED["llamafactory"])


@pytest.mark.parametrize("target", DIGESTS)
def test_source_is_what_was_checked(target: str) -> None:
    version, seam = upstream.installed_version(), BY_TARGET[target]
    found = upstream.digest(upstream.installed_root(), upstream.SOURCES[target])
    recheck = (
        f"Read {', '.join(upstream.SOURCES[target])} against {seam.installer} ({seam.reason}), run the tests, then "
        "record what `python tests/upstream.py` prints, here and the version in installed.CHECKED."
    )
    recorded = DIGESTS[target].get(version)
    assert recorded is not None, f"{target}: llamafactory {version} has not been checked. {recheck}"
    assert found == recorded, f"{target}: upstream's source has moved in llamafactory {version}. {recheck}"


def test_every_leaning_is_watched() -> None:
    assert list(LEANING_DIGESTS) == list(upstream.LEANINGS)
    for ours, (package, _) in upstream.LEANINGS.items():
        assert set(LEANING_DIGESTS[ours]) == set(CHECKED[package])
        assert upstream.source_of(ROOT, ours.replace(".", "/").replace(":", ".py:"))


@pytest.mark.parametrize("ours", LEANING_DIGESTS)
def test_what_is_leaned_on_is_what_was_checked(ours: str) -> None:
    package, places = upstream.LEANINGS[ours]
    version = upstream.installed_version(package).partition("+")[0]
    recheck = (
        f"Read {', '.join(places)} of {package} against {ours}, run the tests, then record what "
        "`python tests/upstream.py` prints, here and the version in installed.CHECKED."
    )
    recorded = LEANING_DIGESTS[ours].get(version)
    assert recorded is not None, f"{ours}: {package} {version} has not been checked. {recheck}"
    found = upstream.digest(upstream.installed_root(package), places)
    assert found == recorded, f"{ours}: the source has moved in {package} {version}. {recheck}"


@pytest.mark.parametrize("seam", [seam for seam in SEAMS if seam.parameters], ids=lambda seam: seam.attribute)
def test_parameters_are_those_in_the_source(seam: Seam) -> None:
    """Read from the file: what is imported is our own wrapper already."""
    name = seam.attribute.rpartition(".")[2]
    (place,) = [
        place if place.endswith(f":{name}") else f"{place}.{name}"
        for place in upstream.SOURCES[seam.target]
        if place.endswith(f":{name}") or f":{seam.attribute}".startswith(f"{place[place.index(':') :]}.")
    ]
    (function,) = ast.parse(textwrap.dedent(upstream.source_of(upstream.installed_root(), place))).body
    assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
    names = tuple(argument.arg for argument in function.args.posonlyargs + function.args.args)
    assert names[: len(seam.parameters)] == seam.parameters
