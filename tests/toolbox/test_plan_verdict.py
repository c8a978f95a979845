"""Cards, what fits them, and what to change."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from conftest import ROOT
from helpers_plan import GIB, Make
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafactory_ext.toolbox.plan.cards import CARDS, Card, UnknownCardError, named, of_recipe, present
from llamafactory_ext.toolbox.plan.memory import Load, on_device, while_loading
from llamafactory_ext.toolbox.plan.planning import choose_card
from llamafactory_ext.toolbox.plan.recipe import Recipe
from llamafactory_ext.toolbox.plan.shape import KNOWN
from llamafactory_ext.toolbox.plan.verdict import Change, _candidates, faster, judge, recommend, total


SHAPE = KNOWN["chatts-14b"]
RECORD = Load(tokens=2400, labels=200, patches=625)  # so long that a step takes more than loading


pytestmark = pytest.mark.usefixtures("no_network")


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


@pytest.mark.parametrize(
    ("name", "label", "box", "capability"),
    [
        # GB as they are printed on the box; compute capabilities by developer.nvidia.com/cuda-gpus.
        ("2080ti", "RTX 2080Ti", 11, (7, 5)),
        ("2080ti-22g", "RTX 2080Ti, 22 GB", 22, (7, 5)),
        ("2080", "RTX 2080, 8 GB", 8, (7, 5)),
        ("3070", "RTX 3070, 8 GB", 8, (8, 6)),
        ("4060", "RTX 4060, 8 GB", 8, (8, 9)),
        ("3060", "RTX 3060, 12 GB", 12, (8, 6)),
        ("3090", "RTX 3090", 24, (8, 6)),
        ("4090", "RTX 4090", 24, (8, 9)),
        ("t4", "T4", 16, (7, 5)),
        ("v100", "V100, 16 GB", 16, (7, 0)),
        ("v100-32g", "V100, 32 GB", 32, (7, 0)),
        ("a10", "A10", 24, (8, 6)),
        ("l4", "L4", 24, (8, 9)),
        ("a100", "A100, 40 GB", 40, (8, 0)),
        ("a100-80g", "A100, 80 GB", 80, (8, 0)),
        ("h100", "H100", 80, (9, 0)),
        ("h200", "H200", 141, (9, 0)),
    ],
)
def test_cards_are_those_of_their_makers(name: str, label: str, box: int, capability: tuple[int, int]) -> None:
    """CUDA reports a little less than what is printed on the box."""
    card = named(name)
    assert card == Card(label, card.gib, capability, found=False, device="cuda")
    assert 0.9 * box < card.gib < box
    assert len(CARDS) == 17, "each has a row here"


def test_cards_by_name_and_by_size() -> None:
    machine = Card("CPU", psutil.virtual_memory().total / 1024**3, None, found=True, device="cpu")
    assert named("cpu") == named("CPU") == machine
    assert named("2080Ti") is CARDS["2080ti"] and named("RTX 3060") is CARDS["3060"]
    for name, gib in {"1": 1, "0.5": 0.5, "10.5": 10.5, "24GB": 24, "24 gib": 24, "9999": 9999}.items():
        assert named(name) == Card(f"card of {gib} GiB", gib, None, found=False, device="cuda")
    assert of_recipe("2080ti_qlora_safe") is CARDS["2080ti"] and of_recipe("cpu_demo") is None


@pytest.mark.parametrize("name", ["titan", "", "-3", "0", "nan", "inf", "1e9", "10000"])
def test_unknown_card(name: str) -> None:
    with pytest.raises(UnknownCardError, match=r"known are 2080ti, .*h200, cpu, or give its memory in GiB"):
        named(name)


def test_cards_in_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for torch's answers about a card each: there may be none here."""
    two = [SimpleNamespace(name=name, major=8, minor=6, total_memory=gib * GIB) for name, gib in (("A", 8), ("B", 24))]
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(two))
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda number: two[number])
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    small, large = Card("A", 8.0, (8, 6), found=True), Card("B", 24.0, (8, 6), found=True)
    assert present() == [small, large]
    assert choose_card(None, "3060_qlora") == small, "what fits it fits the other one"
    assert choose_card("3090", "3060_qlora") is CARDS["3090"]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert present() == []
    assert choose_card(None, "3060_qlora") is CARDS["3060"] and choose_card(None, "mine") == named("cpu")


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


def test_the_peak_is_that_of_a_step_or_of_loading(make: Make) -> None:
    settings = make().settings("cuda", 1)
    step = sum(on_device(SHAPE, settings, RECORD).values())
    assert total(SHAPE, settings, RECORD) == step / 1024**3
    settings, least = replace(settings, stream_layers=24), Load(tokens=1, labels=1, patches=1)
    assert total(SHAPE, settings, least) == sum(while_loading(SHAPE, settings).values()) / 1024**3


EMBEDDING = ("embedding_on_cpu=true", "a copy of a few MB a step")
OFFLOAD = ("offload_checkpoints=true", "checkpoints cross the bus twice a step")
MOMENTS = ("optim=paged_adamw_8bit", "moments rounded to 8 bit")
HEAD = ("stream_head=true", "the head crosses the bus once a record")
FOUR_BIT = ("quantization_bit=4", "weights rounded to 4 bit")


def streamed(layers: int, more: str = "") -> tuple[str, str]:
    return f"stream_layers={layers}{more}", f"{layers} layers cross the bus twice a record, beside computing"


@pytest.mark.parametrize(
    ("keys", "device", "expected"),
    [
        ({}, "cuda", [EMBEDDING, OFFLOAD, MOMENTS, HEAD, streamed(8), streamed(24)]),
        ({}, "cpu", [OFFLOAD, MOMENTS]),
        ({"quantization_bit": None}, "cuda", [EMBEDDING, OFFLOAD, MOMENTS, HEAD, FOUR_BIT]),
        ({"quantization_bit": 8, "stream_layers": 1}, "cuda", [EMBEDDING, OFFLOAD, MOMENTS, HEAD]),
        ({"stream_layers": 7}, "cuda", [EMBEDDING, OFFLOAD, MOMENTS, HEAD, streamed(8), streamed(24)]),
        ({"stream_layers": 8}, "cuda", [EMBEDDING, OFFLOAD, MOMENTS, HEAD, streamed(24)]),
        ({"stream_layers": 24}, "cuda", [EMBEDDING, OFFLOAD, MOMENTS, HEAD]),
        ({"finetuning_type": "full", "quantization_bit": None}, "cuda", [OFFLOAD, MOMENTS]),
        ({"deepspeed": {"zero_optimization": {}}, "quantization_bit": None}, "cuda", [OFFLOAD, MOMENTS]),
        (
            {"disable_gradient_checkpointing": True},
            "cuda",
            [
                EMBEDDING, ("disable_gradient_checkpointing=false", "each layer is computed twice"), MOMENTS, HEAD,
                streamed(8, " disable_gradient_checkpointing=false"),
                streamed(24, " disable_gradient_checkpointing=false"),
            ],
        ),
        (
            {"layers_without_checkpoints": 3},
            "cuda",
            [
                EMBEDDING,
                ("layers_without_checkpoints=0", "these layers are computed twice"),
                (f"{OFFLOAD[0]} layers_without_checkpoints=0", OFFLOAD[1]),
                MOMENTS, HEAD,
                streamed(8, " layers_without_checkpoints=0"), streamed(24, " layers_without_checkpoints=0"),
            ],
        ),
        (
            {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3},
            "cpu",
            [
                OFFLOAD, MOMENTS,
                ("per_device_train_batch_size=1 gradient_accumulation_steps=12", "the same step in more passes"),
            ],
        ),
        (
            {"per_device_train_batch_size": 2},
            "cpu",
            [
                OFFLOAD, MOMENTS,
                ("per_device_train_batch_size=1 gradient_accumulation_steps=2", "the same step in more passes"),
            ],
        ),
    ],
)  # fmt: skip
def test_what_can_be_changed_cheapest_first(
    make: Make, keys: dict[str, Any], device: str, expected: list[tuple[str, str]]
) -> None:
    short = Load(tokens=2400, labels=200, patches=1)
    assert [(one.text, one.price) for one in _candidates(make(**keys), SHAPE, short, device)] == expected


def test_a_head_that_is_the_embedding_is_not_moved(make: Make) -> None:
    found = _candidates(make(), replace(SHAPE, tied=True), Load(2400, 200, 1), "cuda")
    assert [(one.text, one.price) for one in found] == [OFFLOAD, MOMENTS, streamed(8), streamed(24)]
    few = _candidates(make(), replace(SHAPE, layers=6), Load(2400, 200, 1), "cuda")
    assert [(one.text, one.price) for one in few][-2:] == [streamed(1), streamed(3)]


@pytest.mark.parametrize(
    ("patches", "points"),
    [
        (513, (4096, 3072, 2048, 1536, 1024, 768, 512, 256)),
        (512, (3072, 2048, 1536, 1024, 768, 512, 256)),  # 8 points a patch
        (33, (256,)),
        (32, ()),
    ],
)
def test_series_are_thinned_to_fewer_points_than_they_have(make: Make, patches: int, points: tuple[int, ...]) -> None:
    """A batch is split first; patches that go are tokens that go."""
    batch = Load(tokens=4 * 2400, labels=4 * 200 - 1, patches=4 * patches - 3, rows=4)
    for keys, load, rows in (({}, Load(2400, 200, patches), 1), ({"per_device_train_batch_size": 4}, batch, 1)):
        thinned = [one for one in _candidates(make(**keys), SHAPE, load, "cuda") if one.data]
        assert [one.data.split()[-1] for one in thinned] == [f"{count})" for count in points]
        assert [one.load for one in thinned] == [
            Load(2400 - patches + count // 8, 200, count // 8, rows) for count in points
        ]
        assert all(one.price == "fewer points a series" and not one.keys for one in thinned)


def test_a_split_batch_stays_among_the_changes_when_series_are_thinned(make: Make) -> None:
    """On a CPU, where nothing can be tried between the two."""
    recipe = make(per_device_train_batch_size=4, fp16=False)
    load, thinned = Load(16_000, 400, 12_000, rows=4), Load(1000 + 384, 100, 384)
    single = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    levers = make(optim="paged_adamw_8bit", fp16=False, **single)
    card = Card("CPU", total(SHAPE, levers.settings("cpu", 1), thinned), found=True, device="cpu")
    assert [change.text.split("--")[-1] for change in judge(recipe, SHAPE, load, card, 1).changes] == [
        "optim=paged_adamw_8bit",
        "per_device_train_batch_size=1 gradient_accumulation_steps=4",
        "max-points 3072)",
    ]


def test_what_does_not_help_is_not_named(make: Make) -> None:
    """Plain SGD has no moments to round."""
    every = needed(make(embedding_on_cpu=True, offload_checkpoints=True, stream_head=True, optim="sgd"))
    verdict = judge(make(optim="sgd"), SHAPE, RECORD, Card("card", every), 1)
    assert verdict.text == "fits with embedding_on_cpu=true offload_checkpoints=true stream_head=true"


@pytest.mark.parametrize(("layers", "worth"), [(1, False), (2, True)])
def test_less_than_a_tenth_of_the_layers_is_not_worth_a_key(make: Make, layers: int, worth: bool) -> None:
    shape = replace(SHAPE, layers=20)
    room = total(shape, make(layers_without_checkpoints=layers).settings("cuda", 1), RECORD)
    change = faster(make(), shape, RECORD, Card("card", room / 0.92 + 1e-6), 1)
    price = f"2 of 20 layers are computed once a step, not twice; peak {room:.2f} GiB"
    assert change == (Change(price, {"layers_without_checkpoints": 2}) if worth else None)
    one_more = faster(make(layers_without_checkpoints=layers - 1), shape, RECORD, Card("card", room / 0.92 + 1e-6), 1)
    assert (one_more is not None) == worth, "of more than a tenth each counts"
    assert faster(make(stream_layers=1), shape, RECORD, Card("card", 1000.0), 1) is None


def test_what_is_set_back_for_a_faster_run(make: Make) -> None:
    """Only what is set: the rest of the recipe's keys stay as they are."""
    for keys, more in (
        ({}, {}),
        ({"layers_without_checkpoints": 1}, {"layers_without_checkpoints": 0}),
        ({"offload_checkpoints": True}, {"offload_checkpoints": False}),
    ):
        change = faster(make(**keys), SHAPE, RECORD, Card("card", 1000.0), 1)
        assert change is not None and change.keys == {"disable_gradient_checkpointing": True, **more}


def test_the_next_smaller_recipe_where_one_does_not_fit(make: Make) -> None:
    """Each to its last byte; of a batch of two the heavier load counts. A recipe that is not there is passed over."""
    values = {
        "2080ti_qlora": {"per_device_train_batch_size": 2},
        "3060_qlora": {"embedding_on_cpu": True, "per_device_train_batch_size": 2},
        "2080ti_qlora_safe": {"embedding_on_cpu": True, "offload_checkpoints": True},
        "8gb_qlora": {"embedding_on_cpu": True, "offload_checkpoints": True, "stream_head": True},
    }
    recipes = [replace(make(**keys), path=Path(f"{name}.yaml")) for name, keys in values.items()]
    pair = Load(tokens=4800, labels=400, patches=1250, rows=2)
    for capability, first in ((None, "2080ti_qlora"), ((7, 5), "2080ti_qlora"), ((8, 0), "3060_qlora")):
        order = [recipe for recipe in recipes if recipe.path.stem in (first, "2080ti_qlora_safe", "8gb_qlora")]
        for recipe, below in zip(order, [*order[1:], None], strict=True):
            least = needed(recipe, pair if recipe is order[0] else RECORD)
            found = recommend(recipes, SHAPE, RECORD, Card("card", least, capability))
            assert found is not None and found.recipe is recipe
            smaller = recommend(recipes, SHAPE, RECORD, Card("card", least - 1e-6, capability))
            assert (smaller and smaller.recipe) == below
        alone = recommend(order[2:], SHAPE, RECORD, Card("card", 1000.0, capability))
        assert alone is not None and alone.recipe is order[2]
    assert recommend(recipes, SHAPE, RECORD, Card("CPU", 1000.0, found=True, device="cpu")) is None


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
