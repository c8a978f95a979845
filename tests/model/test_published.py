"""What goes along with a saved checkpoint, and what its config then says; what is never copied."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers_model import config_dict, tokenizer, ts_section
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from llamafactory_ext.model import ChatTSProcessor, Qwen2TSConfig, read_config
from llamafactory_ext.model.config import name_as_before
from llamafactory_ext.model.published import copy_files, copy_published_files, copy_published_tokenizer


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config_dict("qwen2")))
    tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (path := tmp_path / "target").mkdir()
    return path


@pytest.mark.parametrize(
    ("auto_map", "copied"),
    [
        (
            {"A": "one.C", "B": ["repo--two.sub.C", None], "C": "three/x.C"},
            ["one.py", "two.py", "processor_config.json"],
        ),
        ({}, []), (None, []), ({"A": [None]}, []),
    ],
)  # fmt: skip
def test_python_files_by_their_names(auto_map: Any, copied: list[str], source: Path, target: Path) -> None:
    for name in ("one.py", "two.py", "three.py", "four.py", "processor_config.json"):
        (source / name).write_text(name)
    config = SimpleNamespace(published={"auto_map": auto_map}, name_or_path=str(source))
    assert copy_published_files(config, target) == copied
    assert sorted(path.name for path in target.iterdir()) == sorted(copied)
    assert copy_published_files(SimpleNamespace(published=None, name_or_path=str(source)), target) == []


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Ours: huggingface_hub says that it is offline."""
    return [one.getMessage() for one in caplog.records if one.name.startswith("llamafactory_ext")]


def test_what_is_missing_is_said(source: Path, target: Path, caplog: pytest.LogCaptureFixture) -> None:
    (source / "one.py").touch()
    config = SimpleNamespace(published={"auto_map": {"A": "one.C", "B": "gone.C"}}, name_or_path=str(source))
    assert copy_published_files(config, target) == ["one.py"]
    assert messages(caplog) == [f"gone.py was not found beside {source} and is not in {target}."]


def test_files_that_lead_elsewhere(source: Path, target: Path, caplog: pytest.LogCaptureFixture) -> None:
    (source / "link").symlink_to(Path("../secret"))
    (source.parent / "secret").touch()
    (source / "beside").symlink_to("config.json")
    (source / "fifo").mkdir()
    assert copy_files(str(source), ["link", "beside", "none"], target) == ["beside"]
    assert messages(caplog) == [
        f"{source / 'link'} is no file of this checkpoint, but leads elsewhere; it is not copied."
    ]
    assert (target / "beside").read_bytes() == (source / "config.json").read_bytes()
    assert copy_files(str(source), ["config.json"], source) == []
    blobs, snapshot = source / "blobs", source / "snapshots" / "abc"
    blobs.mkdir(), snapshot.mkdir(parents=True)
    (blobs / "1").write_text("x")
    (snapshot / "a.py").symlink_to("../../blobs/1")
    assert copy_files(str(snapshot), ["a.py"], target) == ["a.py"]


def test_a_tokenizer_that_has_changed(source: Path, target: Path) -> None:
    """Its files are copied as they are published, but not where it has other tokens, or ends otherwise."""
    (source / "tokenizer_config.json").write_text((source / "tokenizer_config.json").read_text() + "\n\n")
    published = AutoTokenizer.from_pretrained(source)
    files = {path.name for path in source.iterdir()} - {"config.json"}  # by what this transformers writes
    assert "tokenizer.json" in files and set(copy_published_tokenizer(str(source), published, target)) == files
    assert (target / "tokenizer_config.json").read_text().endswith("\n\n")
    published.eos_token = "<pad>"
    assert copy_published_tokenizer(str(source), published, target) == []
    more = AutoTokenizer.from_pretrained(source)
    more.add_tokens(["<more>"])
    assert copy_published_tokenizer(str(source), more, target) == []
    assert copy_published_tokenizer(str(target / "none"), published, target) == []


@pytest.mark.parametrize(
    ("found", "added"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}, {"rope_theta": 5.0}),
        ({"rope_parameters": {"rope_theta": 5.0}, "rope_theta": 6.0}, {}),
        ({"rope_parameters": None}, {}),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 5.0}},
            {"rope_theta": 5.0, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        ),
        ({"rope_parameters": {"rope_type": "yarn"}, "rope_scaling": {"a": 1}}, {}),
        ({"rope_parameters": {"rope_type": "default"}}, {}),
        ({"dtype": "float16"}, {"torch_dtype": "float16"}),
        ({"dtype": "float16", "torch_dtype": "bfloat16"}, {}),
        ({"dtype": None}, {}),
    ],
)
def test_keys_of_older_loaders(found: dict[str, Any], added: dict[str, Any]) -> None:
    name_as_before(config := dict(found))
    assert config == {**found, **added}


@pytest.mark.parametrize("published", [True, False, None])
def test_the_published_use_of_a_cache_is_saved(published: bool | None, target: Path) -> None:
    keys = config_dict("qwen2", use_cache=published)
    if published is None:
        del keys["use_cache"]
    config, rest = Qwen2TSConfig.from_dict(keys, return_unused_kwargs=True, another=1)
    assert rest == {"another": 1} and config.published["model_type"] == "qwen2"
    config.use_cache = not published
    config.save_pretrained(target)
    assert json.loads((target / "config.json").read_text())["use_cache"] is (True if published is None else published)
    assert config.use_cache is not published
    assert {"auto_map", "model_type"} <= keys.keys(), "what was given is left as it is"


def test_configs_that_are_read(source: Path, tmp_path: Path) -> None:
    before = transformers_logging.get_verbosity()
    config = read_config(str(source), revision="main", token=None, another=1)
    assert (type(config), config.name_or_path) == (Qwen2TSConfig, str(source))
    assert read_config(str(tmp_path / "none")) is None
    assert transformers_logging.get_verbosity() == before
    (source / "config.json").write_text(json.dumps(config_dict("qwen2", ts=ts_section(num_features=3))))
    with pytest.raises(ValueError, match=rf"^{source}/config\.json can't be used: ts\.num_features is 3"):
        read_config(str(source))


def test_a_processors_inputs_are_those_that_a_model_takes(source: Path, target: Path) -> None:
    processor = ChatTSProcessor.from_pretrained(str(source))
    assert set(processor("a <ts><ts/>", [[1.0, 2.0]])) == {"input_ids", "attention_mask", "timeseries"}
    assert set(processor("a", return_token_type_ids=True)) >= {"token_type_ids"}
    with_code = AutoTokenizer.from_pretrained(source)
    with_code.init_kwargs["auto_map"] = {"AutoTokenizer": "evil.T"}
    processor.tokenizer = with_code
    assert "auto_map" not in with_code.init_kwargs and processor.tokenizer is with_code
    with_code.add_tokens(["<more>"])
    processor.save_pretrained(target)
    assert "<more>" in AutoTokenizer.from_pretrained(target).get_vocab()
    processor.tokenizer = None


def test_a_word_of_meta_is_kept_back_for_a_while(caplog: pytest.LogCaptureFixture) -> None:
    from llamafactory_ext.model.placement import _without_a_word_of_meta

    logger = logging.getLogger("accelerate.big_modeling")
    said = ("some are on the meta device", "another")
    with _without_a_word_of_meta():
        [logger.warning(one) for one in said]
    [logger.warning(one) for one in said]
    assert [one.getMessage() for one in caplog.records] == ["another", *said]
