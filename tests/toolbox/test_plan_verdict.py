"""Cards, what fits them, and what to change."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from helpers_plan import Make, alone, maker
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafactory_ext.toolbox.plan.cards import CARDS, Card, UnknownCardError, named, of_recipe
from llamafactory_ext.toolbox.plan.memory import Load
from llamafactory_ext.toolbox.plan.recipe import Recipe
from llamafactory_ext.toolbox.plan.shape import KNOWN
from llamafactory_ext.toolbox.plan.verdict import faster, judge, recommend, total


SHAPE = KNOWN["chatts-14b"]
RECORD = Load(tokens=2400, labels=200, patches=625)  # so long that a step takes more than loading


@pytest.fixture(autouse=True, scope="module")
def no_network() -> Iterator[None]:
    with alone():
        yield


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return maker(tmp_path / "out")


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
