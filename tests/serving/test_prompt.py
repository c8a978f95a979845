"""What a request may hold, each limit from both sides; without a server and without weights."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamafactory_ext.serving.prompt import SeriesRequest, prepare
from llamafactory_ext.serving.sources import SourceError


PLACED = 6000
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}


@pytest.fixture(scope="module")
def engine(demo: Path) -> Any:
    """What a prompt is made with: tokenizer, template and processor of the demo's model, and its config."""
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.hparams import get_infer_args
    from llamafactory.model import load_tokenizer

    model_args, data_args, _, _ = get_infer_args({"model_name_or_path": str(demo / "model"), "template": "chatts"})
    module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=PLACED))
    return SimpleNamespace(model=model, template=template, **module)


def turns(*said: tuple[str, Any], **settings: Any) -> SeriesRequest:
    messages = [{"role": role, "content": content} for role, content in said]
    return SeriesRequest.model_validate({"model": "x", "messages": messages, **settings})


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def series(*values: float) -> dict[str, Any]:
    return {"type": "audio_url", "audio_url": {"url": f"data:application/json,{list(values)}"}}


def refused(engine: Any, request: Any, folder: Path | None = None) -> str:
    with pytest.raises(SourceError) as caught:
        prepare(request, engine, folder)
    return str(caught.value)


# Turns


@pytest.mark.parametrize(
    "roles",
    ["user", "system user", "tool", "user assistant user", "user function tool", "system tool assistant user"],
)
def test_turns_that_fit(roles: str, engine: Any) -> None:
    names = {"name": "f", "arguments": {}}
    said = [(role, json.dumps(names) if role == "function" else role) for role in roles.split()]
    assert prepare(turns(*said), engine, None).tokens


@pytest.mark.parametrize(
    "roles",
    [
        "", "system", "assistant", "function", "user user", "user assistant", "user user user", "system system user",
        "assistant user assistant", "user assistant system", "user assistant user assistant user assistant user user",
    ],
)  # fmt: skip
def test_turns_that_do_not_fit(roles: str, engine: Any) -> None:
    found = ", ".join(roles.split()) or "nobody"
    assert refused(engine, turns(*[(role, "a") for role in roles.split()])) == (
        f"messages: found them by {found}; expected one by system if any, then user and assistant in turns, the last "
        "by user"
    )


def test_eight_roles_are_named(engine: Any) -> None:
    assert f"by {', '.join(['user'] * 8)}; expected" in refused(engine, turns(*[("user", "a")] * 9))


def test_what_a_turn_becomes(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Roles by LLaMA-Factory's names; calls of an assistant are its content, as JSON."""
    seen: list[Any] = []
    encode = engine.template.encode_oneturn
    monkeypatch.setattr(
        engine.template, "encode_oneturn", lambda *given: (seen.append(given[1:]), encode(*given))[1], raising=False
    )
    messages = [{"role": "system", "content": "be short"}, {"role": "user", "content": "a"}]
    messages += [{"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "b"}]  # type: ignore[dict-item]
    request = SeriesRequest.model_validate({"model": "x", "messages": messages, "tools": [TOOL]})
    prompt = prepare(request, engine, None)
    ((found, system, tools),) = seen
    assert [turn["role"] for turn in found] == ["user", "function", "observation", "assistant"]
    assert [turn["content"] for turn in found][::2] == ["a", "b"] and found[-1]["content"] == ""
    assert json.loads(found[1]["content"]) == [{"name": "f", "arguments": "{}"}]
    assert system == "be short" and json.loads(tools) == [TOOL["function"]]
    assert prompt.tokens == encode(engine.tokenizer, *seen[0])[0]
    prepare(turns(("user", "a")), engine, None)
    assert seen[1][1:] == (None, None)
    assert seen[1][0] == [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]


# Settings

RANGES: list[tuple[str, float, float, str]] = [
    ("n", 1, 128, "1 to 128 answers"),
    ("max_tokens", 1, 1_048_576, "at least 1"),
    ("max_completion_tokens", 1, 1_048_576, "at least 1"),
    ("top_p", 0, 1, "0 to 1"),
    ("presence_penalty", 0.01, 100, "0.01 to 100, where 1 is none: LLaMA-Factory takes it as repetition_penalty"),
    ("temperature", 0.01, 100, "0, which takes the likeliest, or 0.01 to 100"),
]


@pytest.mark.parametrize(("name", "low", "high", "expected"), RANGES)
def test_settings_within_their_range(name: str, low: float, high: float, expected: str, engine: Any) -> None:
    free = SimpleNamespace(**{**vars(engine), "model": None})  # an engine that does not say how much it places
    step = 1 if isinstance(low, int) and name != "top_p" else 0.001
    for value in (low, high, *([0] if name == "temperature" else [])):
        prepare(turns(("user", "a"), **{name: value}), free, None)
    for value in (high + step, -1.0 if name == "temperature" else low - step):
        assert refused(free, turns(("user", "a"), **{name: value})) == f"{name}: found {value}; expected {expected}"
    if name in ("temperature", "top_p"):
        assert f"{name}: found nan; expected" in refused(free, turns(("user", "a"), **{name: float("nan")}))


def test_streams_of_one_answer_without_tools(engine: Any) -> None:
    prepare(turns(("user", "a"), stream=True, n=1), engine, None)
    told = "stream: found it with several answers (n) or with tools; leave it out, or leave those out"
    assert refused(engine, turns(("user", "a"), stream=True, n=2)) == told
    assert refused(engine, turns(("user", "a"), stream=True, tools=[TOOL])) == told
    prepare(turns(("user", "a"), n=2, tools=[TOOL]), engine, None)
    bare = {"type": "function"}
    told = "tools: found one without its function; expected a name, a description and parameters"
    assert refused(engine, turns(("user", "a"), tools=[TOOL, bare])) == told


def test_what_json_can_not_hold(engine: Any) -> None:
    deep: dict[str, Any] = {}
    for _ in range(2000):
        deep = {"a": deep}
    nested = {"type": "function", "function": {**TOOL["function"], "parameters": deep}}  # type: ignore[dict-item]
    assert refused(engine, turns(("user", "a"), tools=[nested])).startswith("found what is nested too deeply")
    half = turns(("user", "a"))
    half.messages[0].content = "\ud800"
    assert refused(engine, half).startswith("found half of a surrogate pair (\\ud800 to \\udfff) in a text")


def test_the_newer_name_goes_first(engine: Any) -> None:
    for keys, expected in (({}, None), ({"max_tokens": 5}, 5), ({"max_tokens": 5, "max_completion_tokens": 7}, 7)):
        assert prepare(turns(("user", "a"), **keys), engine, None).request.max_tokens == expected


# Lengths


@pytest.mark.parametrize(("placed", "most"), [(10, 160), (None, 16 * 65_536)])
def test_characters_are_counted_wherever_they_stand(placed: int | None, most: int, engine: Any) -> None:
    """Sixteen for each token that is placed: beyond, nothing is tokenised."""
    small = SimpleNamespace(**vars(engine))
    small.model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=placed)) if placed else None
    call = {**CALL, "function": {"name": "look", "arguments": "{}    "}}  # 4 + 6 characters
    messages = [{"role": "user", "content": [text("x" * 40), series(1.0), text("y" * 30)]}]
    messages += [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "x" * (most - 80)}]  # type: ignore[dict-item]
    request = SeriesRequest.model_validate({"model": "x", "messages": messages})
    request.messages[2].content += "x"
    assert refused(small, request).startswith(
        f"found texts of {most + 1:,} characters; expected at most {most:,}, 16 for each token"
    )
    request.messages[2].content = request.messages[2].content[1:]
    if placed:
        assert refused(small, request).startswith("found a prompt of ")


def test_a_prompt_and_its_answer_fit_what_is_placed(engine: Any) -> None:
    tokens = len(prepare(turns(("user", "a b c")), engine, None).tokens)
    for keys, wanted in (({}, 1), ({"max_tokens": 7}, 7)):
        engine.model.config.max_position_embeddings = tokens + wanted
        try:
            prepare(turns(("user", "a b c"), **keys), engine, None)
            engine.model.config.max_position_embeddings -= 1
            assert refused(engine, turns(("user", "a b c"), **keys)) == (
                f"found a prompt of {tokens:,} tokens, and room for {wanted} more asked for; the model places "
                f"{tokens + wanted - 1:,} (max_position_embeddings): lower max_tokens, or send shorter or fewer series"
            )
        finally:
            engine.model.config.max_position_embeddings = PLACED


def test_patches_alone_may_be_too_many(engine: Any) -> None:
    """Known before anything is tokenised: a token for 8 points."""
    ask = turns(("user", [series(*[1.0] * 80), series(*[2.0] * 81)]))  # 10 and 11
    for placed, told in ((20, "a prompt of 21 tokens"), (21, "a prompt of ")):
        engine.model.config.max_position_embeddings = placed
        try:
            assert (said := refused(engine, ask)).startswith(f"found {told}")
            assert ("of 21 tokens" in said) == (placed == 20)
        finally:
            engine.model.config.max_position_embeddings = PLACED


# Series and their markers


def test_series_stand_where_their_items_or_markers_stand(engine: Any, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("value\n1\nx\n3\n")
    file = {"type": "audio_url", "audio_url": {"url": "a.csv"}}
    for content, written in (
        ([text("a "), series(1, 2), text(" b "), file], "a <audio> b <audio>"),
        ([series(1, 2), file, text("<ts><ts/>?<image>!")], "<audio>?<audio>!"),
        ([series(1, 2), file, text("<audio>?<ts><ts/>!")], "<audio>?<audio>!"),
    ):
        prompt = prepare(turns(("user", content)), engine, tmp_path)
        assert prompt.request.messages[0].content == written
        assert [one.tolist() for one in prompt.series] == [[1, 2], [1, 2, 3]] and prompt.filled == 1
    assert prepare(turns(("user", "plain")), engine, None).filled == 0


def test_interpolated_values_are_logged(engine: Any, tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.csv").write_text("value\n1\nx\n3\n")
    prepare(turns(("user", [series(1.0), {"type": "audio_url", "audio_url": {"url": "a.csv"}}])), engine, tmp_path)
    assert [one.message for one in log.records] == [
        "messages[0].content[1]: 1 cells that hold no value are interpolated."
    ]


MARKERS = "expected a marker (<ts><ts/>) for each, or none: a series then stands where its item stands"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ([("user", [text("<audio>"), series(1), series(2)])], f"found 1 markers in its text and 2 series; {MARKERS}"),
        ([("user", [text("<audio><image>"), series(1)])], f"found 2 markers in its text and 1 series; {MARKERS}"),
        ([("user", None)], "found none; expected a text or a list of items"),
        (
            [("user", "a"), ("assistant", [series(1)]), ("user", "b")],
            "found a series in a message by assistant; expected it by user",
        ),
        ([("user", [text("a"), {"type": "text"}])], 'found text without its field; expected {"type": "text", "text"'),
        ([("user", [{"type": "audio_url"}])], "found audio_url without its field; expected {"),
        (
            [("user", [{"type": "image_url", "image_url": {"url": "x"}}])],
            "found image_url; expected text, or audio_url with a series",
        ),
        ([("user", [series(*[])])], "found a series without points"),
    ],
)
def test_items_that_are_refused(said: Any, told: str, engine: Any) -> None:
    found = refused(engine, turns(*said))
    number = next(place for place, (_, content) in enumerate(said) if not isinstance(content, str))
    assert found.startswith(f"messages[{number}].content") and told in found


def test_pictures_are_markers_in_prompts_only(engine: Any) -> None:
    """An answer may speak of them."""
    said = turns(("user", "a"), ("assistant", "<image>?"), ("tool", "b"))
    assert prepare(said, engine, None).request.messages[1].content == "<image>?"
    assert refused(engine, turns(("tool", "<image>"))).startswith("found 1 markers")


def test_at_most_64_series(engine: Any) -> None:
    first = prepare(turns(("user", [series(1)] * 64)), engine, None)
    assert len(first.series) == 64
    assert refused(engine, turns(("user", [series(1)] * 60), ("assistant", "a"), ("user", [series(1)] * 5))) == (
        "messages[2].content[4]: found more than 64 series; ask about fewer at once"
    )


@pytest.mark.parametrize("token", ["<ts>", "<ts/>"])
def test_series_come_by_user_only(token: str, engine: Any) -> None:
    told = "found <ts> in a message by system or in a tool; expected <ts><ts/> in messages by user only"
    assert refused(engine, turns(("system", f"a {token}"), ("user", "b"))) == told
    tool = {"type": "function", "function": {**TOOL["function"], "description": token}}  # type: ignore[dict-item]
    assert refused(engine, turns(("user", "b"), tools=[tool])) == told


def test_control_tokens_and_calls_that_are_none(engine: Any) -> None:
    assert "<|im_end|>" in refused(engine, turns(("system", "a <|im_end|>"), ("user", "b")))
    assert "<|im_end|>" in refused(engine, turns(("user", "b <|im_end|>")))
    assert refused(engine, turns(("user", "a"), ("function", "no JSON"), ("user", "b"))).startswith(
        "messages: the template can't write them ("
    )
