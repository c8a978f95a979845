"""Annotation files: every record becomes a row, a bad one with its fault."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafactory_ext.gdsh import GdshError, Row, parse_answer, read_annotations


def record(
    picture: object = "/home/a/X.PV.jpg", prompt: object = "<image>\n分析", answer: object = "{}"
) -> dict[str, Any]:
    turns = [{"from": "user", "value": prompt}, {"from": "assistant", "value": answer}]
    return {"image": picture, "conversations": turns}


def read(path: Path, system: str | None = None) -> list[Row]:
    keys = {"messages": "conversations", "images": "image", "role_tag": "from", "content_tag": "value"}
    return list(read_annotations(path, **keys, system=system))


def read_text(folder: Path, text: str | bytes, system: str | None = None) -> list[Row]:
    path = folder / "gdsh.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read(path, system)


def fault_of(folder: Path, bad: object, system: str | None = None) -> str:
    rows = read_text(folder, json.dumps([record(), bad]), system)
    assert [row.index for row in rows] == [0, 1]
    assert rows[0].fault is None
    assert rows[1].turns == ()
    assert rows[1].as_dict("from", "value")["fault"] == rows[1].fault
    return rows[1].fault or ""


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@given(
    prompts=st.lists(texts, min_size=1, max_size=4),
    lines=st.booleans(),
    ascii_only=st.booleans(),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "gb18030"]),
)
def test_list_and_lines_in_every_encoding(
    tmp_path_factory: pytest.TempPathFactory, prompts: list[str], lines: bool, ascii_only: bool, encoding: str
) -> None:
    records = [record(prompt="数据" + prompt) for prompt in prompts]
    written = [json.dumps(item, ensure_ascii=ascii_only) for item in records]
    text = "\r\n".join(["", *written, ""]) if lines else f"[{', '.join(written)}]"
    path = tmp_path_factory.mktemp("a") / "gdsh.json"
    path.write_bytes(text.encode(encoding))
    try:  # some GB18030 bytes are valid UTF-8 as well, and UTF-8 is tried first
        if encoding == "gb18030" and text.encode(encoding).decode() != text:
            return
    except UnicodeDecodeError:
        pass
    assert read(path) == [
        Row(index, ("/home/a/X.PV.jpg",), (("user", "数据" + prompt), ("assistant", "{}")))
        for index, prompt in enumerate(prompts)
    ]


def test_a_row_in_plain_types(tmp_path: Path) -> None:
    item = record(picture=["C:\\图\\a.jpg", "b.jpg"], answer="不变") | {"rule": "简洁"}
    [row] = read_text(tmp_path, json.dumps([item]), system="rule")
    plain = row.as_dict("from", "value")
    assert plain == {
        "record": 0,
        "pictures": ["C:\\图\\a.jpg", "b.jpg"],
        "messages": item["conversations"],
        "system": "简洁",
        "fault": "",
        "rewritten": 0,
        "without_interval": 0,
        "duplicates": 0,
        "normal": 0,
        "renamed": 0,
    }
    assert json.loads(json.dumps(plain)) == plain


def test_white_space_before_the_list(tmp_path: Path) -> None:
    assert [row.fault for row in read_text(tmp_path, f"\n {json.dumps([record()], indent=2)}\n")] == [None]


def test_a_line_ends_only_at_a_line_feed(tmp_path: Path) -> None:
    [row] = read_text(tmp_path, json.dumps(record(prompt="a\u2028b\x85c"), ensure_ascii=False))
    assert row.turns[0] == ("user", "a\u2028b\x85c")


def test_the_system_prompt_is_optional(tmp_path: Path) -> None:
    rows = read_text(tmp_path, json.dumps([record(), record() | {"rule": None}, record() | {"rule": "r"}]), "rule")
    assert [row.system for row in rows] == ["", "", "r"]
    assert [row.system for row in read_text(tmp_path, json.dumps([record() | {"rule": 5}]))] == [""]


def test_answers_that_are_no_text_become_text(tmp_path: Path) -> None:
    spikes = [{"type": "x", "interval": [4, 5]}, {"interval": [1, 1]}, {"type": "全局属性"}, {"interval": [1, 1]}]
    [row] = read_text(tmp_path, json.dumps([record(answer=spikes)]))
    assert row.turns[1] == ("assistant", parse_answer(spikes).text)
    assert (row.rewritten, row.without_interval, row.duplicates, row.fault) == (1, 1, 1, None)
    assert parse_answer(row.turns[1][1]).intervals == ((1, 1), (4, 5))
    assert not parse_answer(row.turns[1][1]).rewritten


def test_the_assistants_role_has_the_name_that_is_given(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"p": "x.jpg", "m": [{"r": "gpt", "c": []}]}]')
    keys = {"messages": "m", "images": "p", "role_tag": "r", "content_tag": "c", "system": None}
    [row] = read_annotations(path, **keys, assistant_tag="gpt")  # type: ignore[arg-type]
    assert row.fault is None
    [row] = read_annotations(path, **keys)  # type: ignore[arg-type]
    assert "'c' of message 0 (gpt) is []" in str(row.fault)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (["x"], "the record is ['x']; expected an object"),
        ({}, "the record has no 'image', only []; add it, or name the key that it has"),
        ({"img": "x"}, "the record has no 'image', only ['img']"),
        (record(picture=[]), "'image' is an empty list; expected the path of a picture"),
        (record(picture=None), "a picture of 'image' is None; expected text"),
        (record(picture=["a.jpg", 3]), "a picture of 'image' is 3; expected text"),
        ({"image": "x.jpg"}, "the record has no 'conversations', only ['image']"),
        ({"image": "x.jpg", "conversations": []}, "'conversations' is []; expected a list of messages"),
        ({"image": "x.jpg", "conversations": "hi"}, "'conversations' is 'hi'; expected a list of messages"),
        ({"image": "x.jpg", "conversations": ["hi"]}, "message 0 is 'hi'; expected an object"),
        ({"image": "x.jpg", "conversations": [{"role": "user"}]}, "message 0 has no 'from', only ['role']"),
        ({"image": "x.jpg", "conversations": [{"from": "user"}]}, "message 0 has no 'value', only ['from']"),
        ({"image": "x.jpg", "conversations": [{"from": 1, "value": ""}]}, "'from' of message 0 is 1; expected text"),
        (record(prompt=["a"]), "'value' of message 0 (user) is ['a']; expected text"),
        (record(prompt=None), "'value' of message 0 (user) is None; expected text"),
        (record(answer=None), "'value' of message 1 (assistant) is None; expected text"),
        (record(answer=[5]), "5 is no anomaly"),
        (record(answer={"interval": [1, float("nan")]}), "interval is [1, nan], expected [start, end]"),
        (record(prompt="a\ud800"), "'value' of message 0 (user) holds half a character at 1: 'a\\ud800'"),
        (record() | {"rule": 3}, "'rule' is 3; expected text"),
    ],
)
def test_a_bad_record_is_told_in_its_row(tmp_path: Path, bad: object, said: str) -> None:
    assert said in fault_of(tmp_path, bad, system="rule")


def test_a_bad_record_still_names_its_picture(tmp_path: Path) -> None:
    [row] = read_text(tmp_path, json.dumps([record(prompt=3)]))
    assert row.pictures == ("/home/a/X.PV.jpg",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty; expected a JSON list of records"),
        ("\ufeff\n", "is empty"),
        ('[{"image": "x"},\n {"image": }]', "not valid JSON at line 2, column 12 (Expecting value): "),
        ('{"image": "x"}\n\n{"image": }\n', "not valid JSON at line 3, column 11 (Expecting value): "),
        ("[1] [2]", "not valid JSON at line 1, column 5 (Extra data)"),
        ('{"image":\n "x"', "not valid JSON at line 2, column 5"),
        ('{"image":\n "x"}\n{"image": "y"}', "not valid JSON at line 3, column 1 (Extra data)"),
        ("[" * 100_000, "cannot be read as JSON from line 1 on (nested too deeply)"),
        ("[" + "9" * 5000 + "]", "cannot be read as JSON from line 1 on (Exceeds the limit"),
        (b"[\xff\xff]", "is neither UTF-8 nor GB18030 text"),
    ],
)
def test_a_file_that_is_no_json_is_an_error(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(GdshError) as fault:
        read_text(tmp_path, text)
    assert said in str(fault.value)
    assert "gdsh.json" in str(fault.value)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(GdshError, match="No such file"):
        read(tmp_path / "none.json")
