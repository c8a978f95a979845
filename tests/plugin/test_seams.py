"""Upstream's source at each seam is what was looked at. Moved source fails here before it fails in a run."""

import ast
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import upstream
from conftest import ROOT

from llamafactory_ext.plugin.seams import SEAMS, Seam
from llamafactory_ext.plugin.versions import CHECKED


DIGESTS = {
    "llamafactory.data.converter:register_dataset_converter": {
        "0.9.4": "53b2bfd2f8268c7a",
        "0.9.5": "53b2bfd2f8268c7a",
        "0.9.6.dev0": "53b2bfd2f8268c7a",
    },
    "llamafactory.data.mm_plugin:register_mm_plugin": {
        "0.9.4": "a154220ae3709f42",
        "0.9.5": "a154220ae3709f42",
        "0.9.6.dev0": "a154220ae3709f42",
    },
    "llamafactory.data.template:register_template": {
        "0.9.4": "c7b2c839bcfc0a0b",
        "0.9.5": "434da6c3559669ab",
        "0.9.6.dev0": "434da6c3559669ab",
    },
    "llamafactory.data.parser:DatasetAttr.join": {
        "0.9.4": "193e3abae4700bd9",
        "0.9.5": "193e3abae4700bd9",
        "0.9.6.dev0": "193e3abae4700bd9",
    },
    "llamafactory.data.loader:_load_single_dataset": {
        "0.9.4": "9c0e87848621a50f",
        "0.9.5": "9c0e87848621a50f",
        "0.9.6.dev0": "9c0e87848621a50f",
    },
    "llamafactory.data.loader:_get_preprocessed_dataset": {
        "0.9.4": "459484d52d8ec340",
        "0.9.5": "459484d52d8ec340",
        "0.9.6.dev0": "459484d52d8ec340",
    },
    "llamafactory.hparams.parser:_TRAIN_ARGS": {
        "0.9.4": "6388ffe40269e610",
        "0.9.5": "f9e196d12a5a1169",
        "0.9.6.dev0": "394abe1492320efe",
    },
    "llamafactory.hparams.parser:_parse_train_args": {
        "0.9.4": "08590743a3b81459",
        "0.9.5": "ef9fdbc52e2e2de9",
        "0.9.6.dev0": "ede60de0c5056ee9",
    },
    "llamafactory.hparams.parser:_parse_infer_args": {
        "0.9.4": "d4663896ebe97747",
        "0.9.5": "d4663896ebe97747",
        "0.9.6.dev0": "9903aced2d0e04e1",
    },
    "llamafactory.hparams.parser:_verify_model_args": {
        "0.9.4": "a1fe0b408191ad78",
        "0.9.5": "8741ef431f10cab3",
        "0.9.6.dev0": "da5de3bd2bd0ae87",
    },
    "llamafactory.hparams.parser:get_last_checkpoint": {
        "0.9.4": "f657fbf1afd35cdf",
        "0.9.5": "6649fbb8bc7fba53",
        "0.9.6.dev0": "0d6c688affd5ac4b",
    },
    "llamafactory.model.loader:_get_init_kwargs": {
        "0.9.4": "2e57404f91f19acd",
        "0.9.5": "384049d28d04e15f",
        "0.9.6.dev0": "ebf3350cf12a01a2",
    },
    "llamafactory.model.loader:load_config": {
        "0.9.4": "f83e309bce1711ba",
        "0.9.5": "c0fcb3dd7829816f",
        "0.9.6.dev0": "c1953e0bed937f00",
    },
    "llamafactory.model.loader:AutoProcessor": {
        "0.9.4": "3c4a4c9a9a83f86a",
        "0.9.5": "3c4a4c9a9a83f86a",
        "0.9.6.dev0": "3c4a4c9a9a83f86a",
    },
    "llamafactory.model.adapter:patch_target_modules": {
        "0.9.4": "65a5d3f177b7b5ff",
        "0.9.5": "2e3c323914c34d25",
        "0.9.6.dev0": "977e81932730c0c3",
    },
    "llamafactory.model.adapter:get_forbidden_modules": {
        "0.9.4": "fe853698e4250937",
        "0.9.5": "4c537668c71cfa4c",
        "0.9.6.dev0": "4c537668c71cfa4c",
    },
    "llamafactory.model.loader:init_adapter": {
        "0.9.4": "d2f75ad0a60954b6",
        "0.9.5": "a1a096bb600f850e",
        "0.9.6.dev0": "8894091479d1260d",
    },
    "llamafactory.train.sft.trainer:create_custom_optimizer": {
        "0.9.4": "180ac377aeee56c9",
        "0.9.5": "530fbefc32ba646b",
        "0.9.6.dev0": "530fbefc32ba646b",
    },
    "llamafactory.train.sft.workflow:CustomSeq2SeqTrainer": {
        "0.9.4": "9f626bbca7847783",
        "0.9.5": "c667bdb2879dda38",
        "0.9.6.dev0": "c667bdb2879dda38",
    },
    "llamafactory.train.kto.workflow:CustomKTOTrainer": {
        "0.9.4": "306abb132d8f03e5",
        "0.9.5": "d8cda73c18baf322",
        "0.9.6.dev0": "d8cda73c18baf322",
    },
    "llamafactory.train.dpo.trainer:CustomDPOTrainer": {
        "0.9.4": "f8c35dfb6850ef8e",
        "0.9.5": "c04690fde340b6b5",
        "0.9.6.dev0": "c04690fde340b6b5",
    },
    "llamafactory.train.rm.workflow:PairwiseTrainer": {
        "0.9.4": "084829ed730c4f05",
        "0.9.5": "8c323c7430ed1e4f",
        "0.9.6.dev0": "8c323c7430ed1e4f",
    },
    "llamafactory.train.pt.workflow:CustomTrainer": {
        "0.9.4": "7337b710bf6a54d2",
        "0.9.5": "3a9fdbbc3f6f4a83",
        "0.9.6.dev0": "3a9fdbbc3f6f4a83",
    },
    "llamafactory.launcher:launch": {
        "0.9.4": "7d059532b51866ce",
        "0.9.5": "aa2be37acddf1f7d",
        "0.9.6.dev0": "fcb20f30eec5f07f",
    },
    "llamafactory.api.app:create_app": {
        "0.9.4": "fee0ffb3fcee2e0a",
        "0.9.5": "cd3d653cbc466ee3",
        "0.9.6.dev0": "34e38e1f12d30ffa",
    },
    "llamafactory.chat.chat_model:run_chat": {
        "0.9.4": "a65ccf90f8a1db58",
        "0.9.5": "2457bb14259d7254",
        "0.9.6.dev0": "2457bb14259d7254",
    },
}
LEANING_DIGESTS = {
    "llamafactory_ext.training.encoder:optimizer_with_encoder_lr": {
        "4.57.1": "c18cba4c1d150bfc",
        "4.57.6": "c18cba4c1d150bfc",
        "5.5.4": "9b257be78f196f9f",
        "5.6.0": "9b257be78f196f9f",
        "5.8.0": "9b257be78f196f9f",
    },
    "llamafactory_ext.training.engines:known_faults": {
        "4.57.1": "62aebab165dccf21",
        "4.57.6": "62aebab165dccf21",
        "5.5.4": "45afb4ae6ea1275c",
        "5.6.0": "45afb4ae6ea1275c",
        "5.8.0": "45afb4ae6ea1275c",
    },
    "llamafactory_ext.training.trainers:install_sft": {
        "4.57.1": "8c59d5290ae149aa",
        "4.57.6": "8c59d5290ae149aa",
        "5.5.4": "ab4bc3e0b784c8b7",
        "5.6.0": "ab4bc3e0b784c8b7",
        "5.8.0": "ab4bc3e0b784c8b7",
    },
    "llamafactory_ext.model.modeling:ChatTSMixin": {
        "4.57.1": "ab0f4331a8ae18a6",
        "4.57.6": "ab0f4331a8ae18a6",
        "5.5.4": "47e6563a62d183e1",
        "5.6.0": "47e6563a62d183e1",
        "5.8.0": "47e6563a62d183e1",
    },
    "llamafactory_ext.model.attention:sdpa_repeated": {
        "4.57.1": "2e2135deda572c9c",
        "4.57.6": "2e2135deda572c9c",
        "5.5.4": "a5e1a66fdaa0e143",
        "5.6.0": "a5e1a66fdaa0e143",
        "5.8.0": "a5e1a66fdaa0e143",
    },
    "llamafactory_ext.toolbox.session.recipe:arguments": {
        "0.9.4": "a7492d680bef378e",
        "0.9.5": "825ad45f54e3129a",
        "0.9.6.dev0": "40afce01fe291e21",
    },
    "llamafactory_ext.toolbox.session.framework:load": {
        "0.9.4": "9c0e87848621a50f",
        "0.9.5": "9c0e87848621a50f",
        "0.9.6.dev0": "9c0e87848621a50f",
    },
    "llamafactory_ext.toolbox.session.framework:load_tokenizer": {
        "0.9.4": "0384637eaff15d09",
        "0.9.5": "f925ec37c117b6c5",
        "0.9.6.dev0": "f0829f716af8cd9b",
    },
    "llamafactory_ext.toolbox.session.framework:tokenise": {
        "0.9.4": "459484d52d8ec340",
        "0.9.5": "459484d52d8ec340",
        "0.9.6.dev0": "459484d52d8ec340",
    },
    "llamafactory_ext.toolbox.session.framework:validation_rows": {
        "0.9.4": "a2f4e6c52033e179",
        "0.9.5": "9ed5861d17404cc4",
        "0.9.6.dev0": "9ed5861d17404cc4",
    },
    "llamafactory_ext.toolbox.plan.data:read_data": {
        "0.9.4": "0c7421a43401f01f",
        "0.9.5": "0c7421a43401f01f",
        "0.9.6.dev0": "0c7421a43401f01f",
    },
    "llamafactory_ext.toolbox.plan.steps:count_steps": {
        "4.57.1": "4257cf7be1aae04c",
        "4.57.6": "4257cf7be1aae04c",
        "5.5.4": "b55f33c627482fae",
        "5.6.0": "b55f33c627482fae",
        "5.8.0": "b55f33c627482fae",
    },
    "llamafactory_ext.model.last_layer:read_rows_only": {
        "4.57.1": "241ed43df07ec97f",
        "4.57.6": "241ed43df07ec97f",
        "5.5.4": "41b67427b2ea02c8",
        "5.6.0": "41b67427b2ea02c8",
        "5.8.0": "41b67427b2ea02c8",
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


def check(package: str, places: Sequence[str], recorded: Mapping[str, str], for_whom: str) -> None:
    """The source is one that was looked at: of this version, or, where the version is a new one, of any other."""
    version = upstream.installed_version(package).partition("+")[0]
    wanted = {recorded[version]} if version in recorded else set(recorded.values())
    assert upstream.digest(upstream.installed_root(package), places) in wanted, (
        f"{for_whom}: the source has moved in {package} {version}. Read what `tests/upstream.py --diff OLD NEW` "
        f"shows of {', '.join(places)} (OLD: a site-packages with {package} {' or '.join(recorded)}), run the tests, "
        "record what `python tests/upstream.py` prints, and the version in `plugin.versions.CHECKED`."
    )


@pytest.mark.parametrize("target", DIGESTS)
def test_source_is_what_was_checked(target: str) -> None:
    seam = BY_TARGET[target]
    check("llamafactory", upstream.SOURCES[target], DIGESTS[target], f"{seam.installer} ({seam.reason})")


def test_every_leaning_is_watched() -> None:
    assert list(LEANING_DIGESTS) == list(upstream.LEANINGS)
    for ours, (package, _) in upstream.LEANINGS.items():
        assert set(LEANING_DIGESTS[ours]) == set(CHECKED[package])
        assert upstream.source_of(ROOT, ours.replace(".", "/").replace(":", ".py:"))


@pytest.mark.parametrize("ours", LEANING_DIGESTS)
def test_what_is_leaned_on_is_what_was_checked(ours: str) -> None:
    package, places = upstream.LEANINGS[ours]
    check(package, places, LEANING_DIGESTS[ours], ours)


def test_a_new_version_passes_where_its_source_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    target = "llamafactory.data.parser:DatasetAttr.join"
    monkeypatch.setattr(upstream, "installed_version", lambda package: "0.9.6")
    check("llamafactory", upstream.SOURCES[target], DIGESTS[target], target)
    with pytest.raises(AssertionError, match=r"moved in llamafactory 0\.9\.6\. Read what .*--diff OLD NEW"):
        check("llamafactory", upstream.SOURCES[target], {"0.9.5": "0" * 16}, target)
    monkeypatch.setattr(upstream, "installed_version", lambda package: "0.9.5+local")
    with pytest.raises(AssertionError, match="moved"):  # a recorded version has its own source and no other's
        check("llamafactory", upstream.SOURCES[target], {**DIGESTS[target], "0.9.5": "0" * 16}, target)


def test_what_moved_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Between two source trees: a line changed, a definition gone, a package that one of them lacks."""
    changed = {
        "data/parser.py": [("self.set_attr(tag", "self.set_attribute(tag")],
        "data/data_utils.py": [("def split_dataset(", "def split(")],
    }
    old, new = upstream.copy_with(tmp_path / "old", {}), upstream.copy_with(tmp_path / "new" / "src", changed)
    assert upstream.moved(old, old) == {}
    diffs = upstream.moved(old, new.parent)
    assert set(diffs) == {"llamafactory/data/parser.py:DatasetAttr", "llamafactory/data/data_utils.py:split_dataset"}
    assert "+                self.set_attribute(tag" in diffs["llamafactory/data/parser.py:DatasetAttr"]
    assert upstream.users_of("llamafactory/data/data_utils.py:split_dataset") == [
        "llamafactory_ext.toolbox.session.framework:validation_rows"
    ]
    assert upstream.main(["--diff", str(old), str(new.parent)]) == 1
    assert "2 watched places moved" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="have none of"):
        upstream.moved(old, tmp_path)


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
