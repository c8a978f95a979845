"""Records read one by one, as if the file had been read whole."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafactory_ext.gdsh import GdshError, records
from llamafactory_ext.gdsh.records import read_records


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def read(path: Path, text: str, chunk: int, encoding: str = "utf-8") -> list[object]:
    path.write_bytes(text.encode(encoding))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "_CHUNK", chunk)
        return list(records.read_records(path))


@given(
    items=st.lists(json_values, max_size=6),
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 0, 2]),
    chunk=st.integers(1, 40),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "gb18030"]),
    line_end=st.sampled_from(["\n", "\r\n"]),
)
def test_a_list_wherever_the_window_ends(
    tmp_path_factory: pytest.TempPathFactory,
    items: list[object],
    ascii_only: bool,
    indent: int | None,
    chunk: int,
    encoding: str,
    line_end: str,
) -> None:
    text = json.dumps(items, ensure_ascii=ascii_only or encoding == "gb18030", indent=indent)
    path = tmp_path_factory.getbasetemp() / "list.json"
    assert read(path, f" \n{text}\n".replace("\n", line_end), chunk, encoding) == items


def whole_fault(text: str) -> tuple[int, int, str] | None:
    """Line, column and message as the standard library gives them for the whole text."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.lineno, error.colno, error.msg
    return None


@given(data=st.data(), chunk=st.integers(1, 40))
def test_a_fault_is_placed_as_in_the_whole_text(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, chunk: int
) -> None:
    items = data.draw(st.lists(json_values, min_size=1, max_size=4))
    text = json.dumps(items, indent=data.draw(st.sampled_from([None, 1])))
    place = data.draw(st.integers(1, len(text) - 1))
    text = text[:place] + data.draw(st.sampled_from(["", "}", "]", "x", '"', ",", "\n"])) + text[place + 1 :]
    path = tmp_path_factory.getbasetemp() / "fault.json"
    expected = whole_fault(text)
    if expected is None:
        assert read(path, text, chunk) == json.loads(text)
        return
    with pytest.raises(GdshError) as fault:
        read(path, text, chunk)
    line, column, message = expected
    if "delimiter" in message or "Expecting value" in message:  # between records the wording is ours
        assert f"line {line}, column " in str(fault.value)
    else:
        assert f"line {line}, column {column} ({message})" in str(fault.value)


def test_one_record_a_line(tmp_path: Path) -> None:
    assert read(tmp_path / "a.jsonl", '\n{"a": "x\u2028y"}\r\n\n2\n', chunk=1) == [{"a": "x\u2028y"}, 2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2", "line 1, column 6 (the list is not closed): "),
        ("[1,\n2,]", "line 2, column 3 (a comma with no record behind it): "),
        ("[1 2]", "line 1, column 4 (Expecting ',' delimiter): "),
        ("[1]\n[2]", "line 2, column 1 (Extra data): "),
        ('[1,\n {"a": "b}]', "line 2, column 8 (Unterminated string starting at): "),
    ],
)
@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_faults_of_the_list(tmp_path: Path, text: str, said: str, chunk: int) -> None:
    with pytest.raises(GdshError) as fault:
        read(tmp_path / "a.json", text, chunk)
    assert said in str(fault.value)


def test_records_before_a_fault_are_given_and_the_rest_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"a": 1}, {"b" 2}, ' + ",".join(["0"] * 3_000_000))
    found = records.read_records(path)
    assert next(found) == {"a": 1}
    with pytest.raises(GdshError, match="line 1, column 17"):
        next(found)


def test_the_window_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    widest = 0
    grow = records._Window.grow

    def noted(window: records._Window) -> bool:
        nonlocal widest
        more = grow(window)
        widest = max(widest, len(window.text))
        return more

    monkeypatch.setattr(records._Window, "grow", noted)
    monkeypatch.setattr(records, "_CHUNK", 1000)
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"a": "x" * 100, "n": number} for number in range(5000)]))
    assert sum(1 for _ in records.read_records(path)) == 5000
    assert widest < 5000
    assert list(itertools.islice(records.read_records(path), 1)) == [{"a": "x" * 100, "n": 0}]


@pytest.mark.parametrize("indent", [None, 1, "\t"])
def test_a_single_record_is_a_list_of_one(tmp_path: Path, indent: Any) -> None:
    path = tmp_path / "one.json"
    record = {"image": "a.jpg", "conversations": [{"from": "user", "value": "{[\n"}]}
    path.write_text(f"\n{json.dumps(record, indent=indent)}\n")
    assert list(read_records(path)) == [record]


@pytest.mark.parametrize("form", ["list", "single", "line"])
@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"filename": "a.csv", "overall_attribute": {}, "annotations": []}, "is an annotator's own file (filename"),
        ({"id": 1, "annotations": [{"result": []}], "data": {"csv": "/x.csv"}}, "is an export of Label Studio"),
    ],
)
def test_a_file_of_another_program_is_named(record: Any, said: str, form: str, tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps([record] if form == "list" else record, indent=None if form == "line" else 2))
    with pytest.raises(GdshError) as fault:
        list(read_records(path))
    assert said in str(fault.value)
    assert str(fault.value).endswith("convert it with `llamafactory-ext import`")
