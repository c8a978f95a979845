"""What is no question about series is refused in words, and no code of a checkpoint is run."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_vllm import chat, checkpoints, open_llm  # noqa: F401
from vllm.exceptions import VLLMClientError


TEXT = "what is <ts><ts/>?"
ONE = [np.arange(30.0)]


@pytest.fixture(scope="module")
def published(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as it is published: named as a plain Qwen2, with Python files beside it, which fail when run."""
    folder = tmp_path_factory.mktemp("published") / "model"
    shutil.copytree(checkpoints["qwen2"], folder)
    code = "raise SystemExit('the code of the checkpoint was run')\n"
    for name in ("configuration", "modeling", "processing"):
        (folder / f"{name}_ts.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "qwen2"}
    config["auto_map"] = {
        "AutoConfig": "configuration_ts.Qwen2TSConfig",
        "AutoModelForCausalLM": "modeling_ts.Qwen2TSForCausalLM",
        "AutoProcessor": "processing_ts.Qwen2TSProcessor",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def llm(published: Path) -> Any:
    return open_llm(published)


def ask(llm: Any, text: str = TEXT, series: Any = None, **more: Any) -> str:
    from vllm import SamplingParams

    data = {} if series is None else {"multi_modal_data": {"audio": series}}
    (output,) = llm.generate(
        {"prompt": chat(text), **data, **more}, SamplingParams(temperature=0, max_tokens=4), use_tqdm=False
    )
    return str(output.outputs[0].token_ids)


def test_code_of_a_checkpoint_is_not_run(llm: Any) -> None:
    assert ask(llm, series=ONE)


def test_forms_of_series(llm: Any) -> None:
    one = ask(llm, series=ONE)
    objects = np.empty(1, dtype=object)
    objects[0] = ONE[0]
    for form in (ONE[0], list(ONE[0]), [list(ONE[0])], np.stack(ONE), objects, tuple(ONE), [ONE[0].astype(int)]):
        assert ask(llm, series=form) == one


@pytest.mark.parametrize(
    ("text", "series", "reason"),
    [
        (TEXT, [[1.0, float("nan")]], "series 0: found 1 values that are not finite numbers, the first at index 1"),
        (TEXT, [[]], "without points"),
        (TEXT, [[[1.0], [2.0]]], "found a series of shape"),
        (TEXT, ["abc"], "not a list of numbers"),
        (TEXT, [None], "found a series of shape []"),
        (TEXT, [[1.7e308, 1.7e308, -1.7e308]], "overflows"),
        (TEXT, [np.zeros(8193)], "found a series of 8193 points; the encoder of this checkpoint places 8192"),
        (TEXT, [*ONE, *ONE], "found 1 markers (<ts><ts/>) and 2 series"),
        ("<ts><ts/><ts><ts/>", ONE, "found 2 markers (<ts><ts/>) and 1 series"),
        ("<ts><ts/><ts/>", ONE, "found a single <ts> or <ts/>"),
        ("nothing", ONE, "found 0 markers (<ts><ts/>) and 1 series"),
        (TEXT, None, "found <ts><ts/> and no series"),
        ("a <ts> alone", None, "found <ts><ts/> and no series"),
    ],
)
def test_refused(llm: Any, text: str, series: Any, reason: str) -> None:
    with pytest.raises(VLLMClientError) as caught:  # which its server answers with 400
        ask(llm, text, series)
    assert reason in str(caught.value)


def test_what_a_client_calls_its_data_is_not_believed(llm: Any) -> None:
    first = ask(llm, series=ONE, multi_modal_uuids={"audio": ["same"]})
    other = [np.sin(np.arange(100.0))]
    assert ask(llm, series=other, multi_modal_uuids={"audio": ["same"]}) == ask(llm, series=other) != first


def test_adapter_on_the_encoder(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    from test_agreement import write_adapter
    from vllm.lora.lora_model import LoRAModel

    write_adapter(tmp_path, checkpoints["qwen2"], "ts_encoder.mlp.0")
    with pytest.raises(ValueError, match=r"merge it first: llamafactory-cli export yaml/export\.yaml .* MERGED"):
        LoRAModel.from_local_checkpoint(str(tmp_path), set(), None)


def test_adapters_need_a_slot_to_spare(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    from types import SimpleNamespace

    from test_agreement import write_adapter
    from vllm.lora.lora_model import LoRAModel

    from llamafactory_ext.vllm.adapters import check_lora

    with pytest.raises(ValueError, match=r"found 1 slots for 1 adapters; .* --max-loras 2 or more"):
        check_lora(SimpleNamespace(max_loras=1))
    check_lora(SimpleNamespace(max_loras=2))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_adapter(tmp_path / name, checkpoints["qwen2"])
    with pytest.raises(AttributeError, match="modules_to_save"):  # it got through to upstream, which is not told here
        LoRAModel.from_local_checkpoint(str(tmp_path / "one"), set(), None)
    with pytest.raises(ValueError, match=r"found 2 slots for 2 adapters; .* --max-loras 3 or more"):
        LoRAModel.from_local_checkpoint(str(tmp_path / "two"), set(), None)
    check_lora(None)
