"""Cards, what fits them, what to change; and what else would stop a run."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafactory_ext.toolbox.plan.cards import CARDS, Card, UnknownCardError, named, of_recipe
from llamafactory_ext.toolbox.plan.memory import Load
from llamafactory_ext.toolbox.plan.preflight import check, checkpoints_kept
from llamafactory_ext.toolbox.plan.recipe import Recipe
from llamafactory_ext.toolbox.plan.shape import KNOWN
from llamafactory_ext.toolbox.plan.steps import seconds
from llamafactory_ext.toolbox.plan.verdict import faster, judge, recommend, total


SHAPE = KNOWN["chatts-14b"]
RECORD = Load(tokens=2400, labels=200, patches=625)  # so long that a step takes more than loading
Make = Callable[..., Recipe]


@pytest.fixture(autouse=True, scope="module")
def no_network() -> Iterator[None]:
    """As where no config.json can be reached, and the disk has room for what would be downloaded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llamafactory_ext.toolbox.plan.recipe._config_of", lambda *_: None)
        patch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000 * GIB))
        yield


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A recipe for ChatTS-14B, as plain as it gets; takes keys."""

    def recipe(**keys: Any) -> Recipe:
        values = {"model_name_or_path": "none/ChatTS-14B", "fp16": True, "quantization_bit": 4}
        values |= {"per_device_train_batch_size": 1, "lora_target": "q_proj,k_proj,v_proj"}
        return Recipe(Path("mine.yaml"), values | {"output_dir": str(tmp_path / "out")} | keys)

    return recipe


def needed(recipe: Recipe, load: Load = RECORD) -> float:
    return total(SHAPE, recipe.settings("cuda", 1), load)


@pytest.mark.parametrize(
    ("config", "expected"),
    [({"dtype": "float32"}, "float32"), ({"torch_dtype": "torch.float32"}, "float32"), ({}, "float16")],
)
def test_weights_are_in_the_type_that_the_config_states(
    config: dict[str, Any], expected: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the newer name or the older one."""
    monkeypatch.setattr("llamafactory_ext.toolbox.plan.recipe._config_of", lambda *_: config | {"ts": {}})
    assert make(fp16=False).settings("cuda", 1).weight_dtype == expected


# Cards


def test_cards_by_name_and_by_size() -> None:
    assert named("cpu").device == "cpu" and named("CPU").found
    assert named("2080Ti") is CARDS["2080ti"] and named("RTX 3060") is CARDS["3060"]
    assert (
        named("1").gib == 1
        and named("10.5").gib == 10.5
        and named("24GB").gib == 24
        and named("24GB").capability is None
    )
    assert of_recipe("2080ti_qlora_safe") is CARDS["2080ti"] and of_recipe("cpu_demo") is None


@pytest.mark.parametrize("name", ["titan", "", "-3", "0", "nan", "inf", "1e9"])
def test_unknown_card(name: str) -> None:
    with pytest.raises(UnknownCardError, match=r"known are 2080ti, .*h200, cpu, or give its memory in GiB"):
        named(name)


# Verdict


def test_fits_as_it_is(make: Make) -> None:
    recipe = make()
    verdict = judge(recipe, SHAPE, RECORD, Card("card", needed(recipe)), 1)
    assert verdict.fits is True and verdict.text == "fits" and not verdict.changes


def test_fits_with_the_cheapest_change(make: Make) -> None:
    recipe = make()
    verdict = judge(recipe, SHAPE, RECORD, Card("card", needed(recipe) - 0.1), 1)
    assert verdict.fits is False
    assert verdict.text == "fits with embedding_on_cpu=true"


def test_changes_add_up_until_it_fits(make: Make) -> None:
    every = needed(make(embedding_on_cpu=True, offload_checkpoints=True))
    verdict = judge(make(), SHAPE, RECORD, Card("card", every), 1)
    assert [change.text for change in verdict.changes] == ["embedding_on_cpu=true", "offload_checkpoints=true"]
    already = judge(make(embedding_on_cpu=True), SHAPE, RECORD, Card("card", every), 1)
    assert [change.text for change in already.changes] == ["offload_checkpoints=true"]


def test_batch_is_split_and_the_step_stays(make: Make) -> None:
    recipe = make(per_device_train_batch_size=8, gradient_accumulation_steps=2, embedding_on_cpu=True)
    load = Load(tokens=9600, labels=1600, patches=5000, rows=8)
    single = needed(make(embedding_on_cpu=True, offload_checkpoints=True, optim="paged_adamw_8bit"))
    verdict = judge(recipe, SHAPE, load, Card("card", single), 1)
    assert verdict.changes[-1].text == "per_device_train_batch_size=1 gradient_accumulation_steps=16"


def test_shorter_series_are_the_last_resort(make: Make) -> None:
    levers = {"embedding_on_cpu": True, "offload_checkpoints": True, "optim": "paged_adamw_8bit"}
    levers |= {"stream_head": True, "stream_layers": 24}
    longest = Load(tokens=32_600, labels=200, patches=600)
    card = Card("card", needed(make(**levers), Load(tokens=32_100, labels=200, patches=100)))
    verdict = judge(make(), SHAPE, longest, card, 1)
    assert verdict.changes[-1].text == "(series thinned: llamafactory-ext prepare --max-points 768)"
    assert sum("max-points" in change.text for change in verdict.changes) == 1


def test_head_and_layers_come_from_cpu_memory_before_data_are_thinned(make: Make) -> None:
    levers = {"embedding_on_cpu": True, "offload_checkpoints": True, "optim": "paged_adamw_8bit"}
    for more in ({"stream_head": True}, {"stream_head": True, "stream_layers": 8}):
        verdict = judge(make(), SHAPE, RECORD, Card("card", needed(make(**levers, **more))), 1)
        assert dict(verdict.changes[-1].keys) == dict([list(more.items())[-1]])
    kept = make(layers_without_checkpoints=2, embedding_on_cpu=True)
    small = judge(kept, SHAPE, RECORD, Card("card", needed(make(**levers, **more))), 1)
    assert small.changes[-1].keys["stream_layers"] == 8


def test_nothing_helps(make: Make) -> None:
    verdict = judge(make(), SHAPE, RECORD, Card("card", 6.0), 1)
    assert verdict.fits is False and verdict.text == "does not fit" and not verdict.changes


@given(gib=st.floats(5, 30), tokens=st.integers(700, 6000))
@settings(deadline=None)
def test_what_it_says_fits_does(gib: float, tokens: int) -> None:
    values = {"model_name_or_path": "none/ChatTS-14B", "fp16": True, "quantization_bit": 4}
    recipe = Recipe(Path("mine.yaml"), values | {"per_device_train_batch_size": 1})
    load, card = Load(tokens=tokens, labels=60, patches=625), Card("card", gib)
    verdict = judge(recipe, SHAPE, load, card, 1)
    changed = recipe
    for change in verdict.changes:
        changed, load = changed.with_overrides(change.keys), change.load or load
    fits = total(SHAPE, changed.settings("cuda", 1), load) <= gib
    assert fits == (verdict.fits or bool(verdict.changes))


@pytest.mark.parametrize("keys", [{}, {"offload_checkpoints": True}, {"layers_without_checkpoints": 2}])
@pytest.mark.parametrize("layers", [6, 30])
def test_room_to_spare_is_for_a_faster_run(make: Make, keys: dict[str, Any], layers: int) -> None:
    room = needed(make(layers_without_checkpoints=layers))
    change = faster(make(**keys), SHAPE, RECORD, Card("card", room / 0.92 + 1e-6), 1)
    assert change is not None and change.keys["layers_without_checkpoints"] == layers
    changed = make(**keys).with_overrides(change.keys)
    assert needed(changed) == room and f"peak {room:.2f} GiB" in change.price
    assert needed(changed.with_overrides({"layers_without_checkpoints": layers + 1})) > room
    assert faster(changed, SHAPE, RECORD, Card("card", room / 0.92 + 1e-6), 1) is None
    assert not changed.get("offload_checkpoints", False)


@pytest.mark.parametrize("keys", [{}, {"offload_checkpoints": True}, {"layers_without_checkpoints": 2}])
def test_room_for_a_run_without_checkpoints(make: Make, keys: dict[str, Any]) -> None:
    room = needed(make(disable_gradient_checkpointing=True))
    change = faster(make(**keys), SHAPE, RECORD, Card("card", room / 0.92 + 1e-6), 1)
    assert change is not None and change.text.startswith("disable_gradient_checkpointing=true")
    changed = make(**keys).with_overrides(change.keys)
    assert needed(changed) == room and not changed.get("layers_without_checkpoints", 0)
    assert faster(changed, SHAPE, RECORD, Card("card", 1000.0), 1) is None
    assert faster(make(**keys), SHAPE, RECORD, Card("card", needed(make())), 1) is None, "too little to gain"


def test_layers_get_their_checkpoints_back_first(make: Make) -> None:
    keys = {"embedding_on_cpu": True, "layers_without_checkpoints": 4}
    verdict = judge(make(**keys), SHAPE, RECORD, Card("card", needed(make(embedding_on_cpu=True))), 1)
    assert verdict.text == "fits with layers_without_checkpoints=0"


@pytest.mark.parametrize("layers", [1, 2, 20])
def test_what_is_offloaded_is_not_kept_as_well(make: Make, layers: int) -> None:
    """A single layer can cost nothing at the peak, and is then no change of its own."""
    offloaded = needed(make(embedding_on_cpu=True, offload_checkpoints=True))
    keys = {"embedding_on_cpu": True, "layers_without_checkpoints": layers}
    verdict = judge(make(**keys), SHAPE, RECORD, Card("card", offloaded), 1)
    assert verdict.changes[-1].keys == {"offload_checkpoints": True, "layers_without_checkpoints": 0}


def test_nothing_is_faster_with_deepspeed(make: Make) -> None:
    recipe = make(deepspeed=str(ROOT / "yaml" / "deepspeed" / "zero3_offload.json"), quantization_bit=None)
    assert faster(recipe, SHAPE, RECORD, Card("card", 1000.0), 1) is None


def test_recipe_for_a_card(make: Make) -> None:
    recipes = []
    for path in sorted((ROOT / "yaml").glob("*.yaml")):
        from llamafactory_ext.toolbox.session.recipe import read_recipe

        values = read_recipe(path)
        if values.get("do_train"):
            recipes.append(Recipe(path, {**values, "model_name_or_path": "none/ChatTS-14B"}))
    usual = Load(tokens=1241, labels=120, patches=625)
    table = {
        line.split("`")[1]: line.split("|")[3]
        for line in (ROOT / "README.md").read_text("utf-8").splitlines()
        if line.startswith("| `") and ".yaml`" in line
    }
    for card in CARDS.values():
        found = recommend(recipes, SHAPE, usual, card)
        assert found is not None and found.why
        row = table[found.recipe.path.name]
        if card.gib < 8:
            assert "8 GB" in row
            continue
        assert "RTX 2080Ti, 11 GB" in row if card.capability < (8, 0) else "and newer" in row, card
    assert recommend(recipes, SHAPE, usual, CARDS["2080ti"]).recipe.path.stem == "2080ti_qlora"
    for name in ("2080", "3070", "4060"):
        assert recommend(recipes, SHAPE, usual, CARDS[name]).recipe.path.stem == "8gb_qlora"
    longer = recommend(recipes, SHAPE, Load(tokens=3000, labels=120, patches=625), CARDS["2080ti"])
    assert longer.recipe.path.stem == "2080ti_qlora_safe" and "smaller" in longer.why
    assert recommend(recipes, SHAPE, RECORD, Card("card", 6.0, (7, 5))) is None


# Files and time


@pytest.mark.parametrize(
    ("keys", "steps", "kept"),
    [({}, 81, 1), ({"save_steps": 50}, 81, 2), ({"save_steps": 10, "save_total_limit": 3}, 81, 4)],
)
def test_checkpoints_on_disk(make: Make, keys: dict[str, Any], steps: int, kept: int) -> None:
    assert checkpoints_kept(make(**keys), steps) == kept


GIB = 2**30


def disk(recipe: Recipe, monkeypatch: pytest.MonkeyPatch, free: dict[str, float]) -> dict[str, str]:
    """What is said of the disk where a folder whose path holds a word has so many GiB."""
    room = lambda folder: SimpleNamespace(free=int(GIB * next(v for k, v in free.items() if k in str(folder))))  # noqa: E731
    monkeypatch.setattr("shutil.disk_usage", room)
    return {text: level for text, level in said(recipe).items() if text.startswith("disk: ")}


def test_the_folder_that_is_too_small_is_named(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").mkdir()
    recipe = make(cache_dir=str(tmp_path / "cache"))
    download = 2 * SHAPE.parameters / GIB
    assert disk(recipe, monkeypatch, {"": 1000}) == {}
    (text,) = disk(recipe, monkeypatch, {"cache": 5, "": 1000})
    assert text == (
        f"disk: the download takes {download:.1f} GiB, {tmp_path / 'cache'} has 5.0: set HF_HOME or cache_dir to more"
    )
    (text,) = disk(recipe, monkeypatch, {"": download + 0.1})  # one disk for both
    assert "beside the download's 27.7" in text and text.endswith("lower save_total_limit, or name another output_dir")
    snapshot = tmp_path / "cache" / "models--none--ChatTS-14B"
    (snapshot / "snapshots" / "abc").mkdir(parents=True)
    (snapshot / "refs").mkdir()
    (snapshot / "refs" / "main").write_text("abc")
    (snapshot / "snapshots" / "abc" / "model.safetensors.index.json").write_text("{}")
    assert disk(recipe, monkeypatch, {"cache": 5, "": 1000}) == {}, "it has been downloaded"


def test_time_only_where_it_was_measured(tmp_path: Path) -> None:
    assert seconds("RTX 2080Ti", SHAPE, 4, 1e6) is None
    row = {"card": "RTX 2080Ti", "layers": 48, "hidden_size": 5120, "quantization_bit": 4, "tokens_per_second": 100}
    (tmp_path / "rates.json").write_text(json.dumps([row]))
    assert seconds("RTX 2080Ti", SHAPE, 4, 1e6, tmp_path / "rates.json") == 10_000
    assert seconds("RTX 2080Ti", SHAPE, None, 1e6, tmp_path / "rates.json") is None


# Pre-flight


def said(recipe: Recipe, card: Card = CARDS["2080ti"]) -> dict[str, str]:
    return {one.text: one.level for one in check(recipe, card)}


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"bf16": True, "fp16": False}, "RTX 2080Ti (sm_75) has no bfloat16: fp16=true bf16=false"),
        ({"pure_bf16": True, "fp16": False}, "RTX 2080Ti (sm_75) has no bfloat16: fp16=true pure_bf16=false"),
        ({"flash_attn": "fa2"}, "RTX 2080Ti (sm_75) has no FlashAttention-2: flash_attn=sdpa"),
        ({"bf16": True}, "fp16 and bf16 are both set: remove one"),
    ],
)
def test_keys_that_a_card_lacks(make: Make, keys: dict[str, Any], text: str) -> None:
    assert said(make(**keys))[text] == "fault"
    assert "fault" not in said(make(upcast_layernorm=True)).values()


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"disable_gradient_checkpointing": True}, "disable_gradient_checkpointing are both set: remove one"),
        ({"stream_layers": 1}, "stream_layers needs gradient checkpoints in all layers"),
        ({"stream_layers": 49}, "stream_layers is 49, the model has 48 layers: stream_layers=48"),
        ({"layers_without_checkpoints": 48}, "is 48, the model has 48 layers: disable_gradient_checkpointing=true"),
    ],
)
def test_layers_without_checkpoints(make: Make, keys: dict[str, Any], text: str) -> None:
    found = said(make(**{"layers_without_checkpoints": 47, **keys}))
    assert [level for line, level in found.items() if text in line] == ["fault"]
    assert "fault" not in said(make(layers_without_checkpoints=47)).values()


def test_float16_where_there_is_better_or_nothing(make: Make) -> None:
    assert (
        said(make(), CARDS["3060"])[
            "RTX 3060, 12 GB (sm_86) has bfloat16, which does not overflow: fp16=false bf16=true"
        ]
        == "warning"
    )
    cpu = Card("CPU", 24.0, found=True, device="cpu")
    assert said(make(), cpu)["transformers refuses fp16 on a CPU: fp16=false"] == "fault"
    slow = "the checkpoint is float16, which a CPU computes in slowly: bf16=true use_cpu=true"
    assert said(make(fp16=False), cpu)[slow] == "warning" and slow not in said(make(fp16=False, bf16=True), cpu)


def test_deepspeed_that_can_not_be_read(make: Make, tmp_path: Path) -> None:
    (text,) = [text for text, level in said(make(deepspeed=str(tmp_path / "no.json"))).items() if level == "fault"]
    assert "no.json can't be read" in text and "expected a JSON file" in text


@pytest.mark.parametrize(
    ("prints", "visible", "level", "text"),
    [
        ("470.82.01, GeForce RTX 2080 Ti, 11", "0", "fault", "RTX 2080 Ti, driver 470.82.01: torch "),
        ("470.82.01, GeForce RTX 2080 Ti, 11", "", "ok", "RTX 2080 Ti, driver 470.82.01"),
        ("580.95, GeForce RTX 2080 Ti, 2048", "", "warning", "2.0 GiB are in use"),
        ("", "", None, ", driver "),
    ],
)
def test_driver(
    make: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prints: str,
    visible: str,
    level: str | None,
    text: str,
) -> None:
    """A stand-in for nvidia-smi, which is not where there is no card."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho '{prints}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = [level for line, level in said(make()).items() if ", driver " in line and text in line]
    assert found == ([level] if level else [])
    program.write_text("#!/bin/sh\nexit 9\n")
    assert said(make())[next(line for line in said(make()) if "nvidia-smi finds no card" in line)] == "warning"


def test_output_folder(make: Make, tmp_path: Path) -> None:
    recipe, out = make(), tmp_path / "out"

    def level(text: str) -> str:
        found = [level for line, level in said(recipe).items() if text in line and "output_dir" in line]
        assert len(found) == 1, said(recipe)
        return found[0]

    assert level("new") == "ok"
    (out / "checkpoint-50").mkdir(parents=True)
    (out / "checkpoint-50" / "trainer_state.json").write_text('{"global_step": 50}')
    assert level("the run resumes from step 50") == "warning"
    record = {"data": {"dataset": {"gdsh": {}}, "cutoff_len": 4096}, "method": {"learning_rate": 1e-4, "fp16": True}}
    (out / "chatts_run.json").write_text(json.dumps(record))
    recipe = make(dataset="gdsh", cutoff_len=4096, learning_rate="1.0e-4", fp16=True)
    assert level("the run resumes from step 50") == "warning"
    (out / "trainer_state.json").write_text('{"global_step": 50}')
    assert level("the run resumes from step 50") == "warning", "its final model was not written"
    (out / "adapter_model.safetensors").touch()
    assert level("the run has ended at step 50, no step is left: raise num_train_epochs or max_steps") == "fault"
    assert "the run resumes from step 50" in str([one.text for one in check(recipe, CARDS["2080ti"], 51)])
    (out / "adapter_model.safetensors").unlink(), (out / "trainer_state.json").unlink()
    recipe = make(dataset="a,b", cutoff_len=512, learning_rate=2e-4, fp16=True)
    said_of = "dataset gdsh (here a, b), cutoff_len 4096 (here 512), learning_rate 0.0001 (here 0.0002)"
    assert level(f"holds a run with {said_of}: name another") == "fault"
    recipe = make()
    (out / "chatts_run.json").unlink()
    adapter = out / "checkpoint-50" / "adapter_config.json"
    adapter.write_text('{"base_model_name_or_path": "other/model"}')
    assert level("is a run of other/model, this is one of none/ChatTS-14B") == "fault"
    recipe = make(overwrite_output_dir=True)
    assert level("will be overwritten") == "warning"
    recipe = make()
    adapter.unlink(), (out / "checkpoint-50" / "trainer_state.json").unlink(), (out / "checkpoint-50").rmdir()
    (out / "trainer_state.json").write_text("{}")
    assert level("holds files and no checkpoint") == "fault"
    recipe = make(output_dir=str(out / "trainer_state.json" / "deeper"))
    assert level("can't be written") == "fault"
