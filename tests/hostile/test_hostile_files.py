"""CSV and JSON files of strangers: read, or refused in words; never a crash, a hang or memory without end."""

import gzip
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafactory_ext.data.normalise import arrow_may_read
from llamafactory_ext.gdsh import (
    GdshError,
    dialects,
    layout,
    parse_answer,
    read_annotations,
    read_anomalies,
    read_series,
    records,
    tables,
    text_table,
    textfiles,
)
from llamafactory_ext.gdsh.readings import UNREADABLE, read_answer
from llamafactory_ext.series import SeriesError, as_series, encode, scale
from llamafactory_ext.toolbox.evaluate.predictions import EvaluateError, read_predictions


DEEP = "[" * 10_000 + "]" * 10_000
DIGITS = "9" * 10_000
KEYS = {"messages": "conversations", "images": "image", "role_tag": "from", "content_tag": "value", "system": None}


def written(folder: Path, content: str | bytes, name: str = "x.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode(errors="surrogatepass"))
    return path


class TestCsv:
    @pytest.mark.parametrize(
        ("cells", "expected"),
        [
            (["1", "=cmd|' /C calc'!A0", "3"], None),
            (['"=HYPERLINK(""http://x"")"', "2", "@SUM(A:B)"], [2, 2, 2]),
            (["1", "1e400", "-1e400", "4"], None),
            (["NaN", "2", "-inf"], [2, 2, 2]),
            (["1", "9" * 5000, "3"], None),  # beyond float64
            (["1", "٣,٤", "(((1)))"], None),
            (["1", "1" + " 000" * 20_000], None),
            (["1", "(" * 20_000], [1, 1]),
            (["1e308", "-1e308"], [1e308, -1e308]),
            (["١", "2"], [1, 2]),  # a digit to Python's float
        ],
    )
    def test_cells(self, tmp_path: Path, cells: list[str], expected: list[float] | None) -> None:
        text = "a,value\n" + "".join(f"0,{cell}\n" for cell in cells)
        if expected is None:
            with pytest.raises(GdshError, match=r"line \d: the cell .* can't be read|has 3 fields"):
                read_series(written(tmp_path, text))
            return
        assert read_series(written(tmp_path, text)).values.tolist() == expected

    @settings(deadline=None)  # files, on a machine that may be busy
    @given(cells=st.lists(st.text(st.characters(codec="utf-8"), max_size=6), min_size=1, max_size=8))
    def test_any_text(self, tmp_path_factory: pytest.TempPathFactory, cells: list[str]) -> None:
        path = written(tmp_path_factory.mktemp("c"), "a,value\n" + "".join(f"0,{cell}\n" for cell in cells))
        try:
            assert np.isfinite(read_series(path).values).all()
        except GdshError as err:
            assert "x.csv" in str(err)

    @settings(deadline=None)  # files, on a machine that may be busy
    @given(data=st.binary(max_size=60))
    def test_any_bytes(self, tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
        path = written(tmp_path_factory.mktemp("c"), b"value\n1\n" + data)
        try:
            assert np.isfinite(read_series(path).values).all()
        except GdshError as err:
            assert "x.csv" in str(err)

    def test_compressed_files_are_not_unpacked(self, tmp_path: Path) -> None:
        packed = written(tmp_path, gzip.compress(b"value\n" + b"1\n" * 1000))
        archive = tmp_path / "z.csv"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("x.csv", "value\n1\n" * 1000)
        for path in (packed, archive, written(tmp_path, b"\xfd7zXZ\0\0\x04", "xz.csv")):
            with pytest.raises(GdshError, match=r"neither UTF-8 nor GB18030|holds NUL"):
                read_series(path)

    @pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b"\xef\xbb\xbf\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"+/v8"])
    def test_byte_order_marks(self, tmp_path: Path, mark: bytes) -> None:
        path = written(tmp_path, mark + b"value\n1\n2\n")
        if mark[0] in b"\xef+":
            series = read_series(path)
            assert series.values.tolist() == [1, 2]
            assert [kind for kind, _ in series.remarks] == ["column"] * (len(mark) != 3)  # another name than `value`
        else:
            with pytest.raises(GdshError):
                read_series(path)

    @pytest.mark.parametrize("header", ["value", '"value"'])
    def test_limits(self, tmp_path: Path, header: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """With and without quotes: the quick way and the slow one."""
        monkeypatch.setattr(textfiles, "MAX_TABLE", 20_000)
        monkeypatch.setattr(tables, "MAX_ROWS", 500)
        monkeypatch.setattr(layout, "MAX_COLUMNS", 50)
        monkeypatch.setattr(text_table, "_LONGEST_ROW", 5_000)
        fits = f"{header}\n" + "1\n" * 500
        assert len(read_series(written(tmp_path, fits)).values) == 500
        wide = header + "".join(f",c{number}" for number in range(49)) + "\n1" + "," * 49 + "\n"
        assert read_series(written(tmp_path, wide)).values.tolist() == [1]
        for text, said in [
            (fits + "1\n", "has 501 lines|has 502 lines; at most 500 rows"),
            (header + "\r" + "1\r" * 501, "lines; at most 500 rows"),
            (header + ",x" * 50 + "\n1\n", "51 columns; at most 50 are read: leave out all but 'value'"),
            (header + "\n" + "1," * 4000, "a row of more than 5,000 characters"),
            (header + '\n"' + "1\n" * 400 + "2" * 5000, "a row of more than 5,000 characters"),
            (header + "\n" + "1" * 20_000, "has more than 20,000 bytes, which are read at most; split it"),
        ]:
            with pytest.raises(GdshError, match=said):
                read_series(written(tmp_path, text))

    @pytest.mark.parametrize("values", [[1e308, 1e308], [1.7e308, -1.7e308], [5e-324, 0], [1e300, -1e300, 0], [-0.0]])
    def test_huge_numbers_never_reach_the_model_as_infinity(self, values: list[float]) -> None:
        try:
            scale(as_series(values))
        except SeriesError as err:
            assert "overflows" in str(err)
        else:
            assert np.isfinite(encode([values])).all()

    @settings(deadline=None)  # files, on a machine that may be busy
    @given(values=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
    def test_any_finite_series_is_finite_to_the_model(self, values: list[float]) -> None:
        try:
            scale(as_series(values))
        except SeriesError:
            return
        assert np.isfinite(encode([values])).all()
        assert np.abs(encode([values])).max() <= 3.002


ANNOTATION = '{"image": "a.jpg", "conversations": [{"from": "user", "value": %s}]}'
FILES = {
    "deep record": (f"[{DEEP}]", "nested too deeply"),
    "deep value": ("[" + ANNOTATION % DEEP + "]", "nested too deeply"),
    "objects": ("[" + '{"a":' * 10_000 + "1" + "}" * 10_000 + "]", "nested too deeply"),
    "digits": (f'[{{"image": {DIGITS}}}]', "from line 1 on .*digits"),
    "digits in a line": (f'{{"a": 1}}\n{{"image": {DIGITS}}}', "from line 2 on .*digits"),
    "key twice": (
        '[{"image": "a.jpg"},\n\n{"image": "a.jpg", "image": "b.jpg"}]',
        "from line 3 on .a key occurs twice",
    ),
    "key twice in a line": ('{"image": "a", "image": "b"}', "from line 1 on .a key occurs twice"),
    "no list": ("5", None),
    "text": ('"a"', None),
    "gzip": (gzip.compress(b"[]"), "neither UTF-8 nor GB18030"),
    "NUL": ("[\0]", "is not valid JSON at line 1, column 2"),
}


def rows(path: Path) -> list[Any]:
    return list(read_annotations(path, **KEYS))  # type: ignore[arg-type]


class TestAnnotations:
    @pytest.mark.parametrize("name", FILES)
    def test_a_file_is_refused_with_its_line(self, name: str, tmp_path: Path) -> None:
        content, said = FILES[name]
        path = written(tmp_path, content, "a.json")
        if said is None:
            assert "expected an object" in rows(path)[0].fault
            return
        with pytest.raises(GdshError, match=said):
            rows(path)

    @pytest.mark.parametrize("literal", ["NaN", "Infinity", "1e400", "-1e400", "true", "null", '"\\ud800"', "{}"])
    def test_values_that_are_no_text(self, literal: str, tmp_path: Path) -> None:
        (row,) = rows(written(tmp_path, "[" + ANNOTATION % literal + "]", "a.json"))
        assert "message 0" in row.fault

    @pytest.mark.parametrize("place", ['{"image": %s}', '{"image": "a", "conversations": %s}', "%s"])
    def test_just_not_too_deep_for_json(self, place: str, tmp_path: Path) -> None:
        """What JSON's reader has just managed may be too deep for what follows, which stands deeper in the stack."""
        for depth in range(850, 1000):
            path = written(tmp_path, "[" + place % ("[" * depth + "]" * depth) + "]", "a.json")
            try:
                (row,) = rows(path)
            except GdshError as err:
                assert "nested too deeply" in str(err)
            else:
                assert row.fault

    def test_limits(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert records.MAX_RECORD == 67_108_864, "as the documents say"
        monkeypatch.setattr(records, "MAX_RECORD", 3000)
        monkeypatch.setattr(records, "_CHUNK", 1000)
        good = ANNOTATION % '"x"'
        assert len(rows(written(tmp_path, f"[{','.join([good] * 500)}]", "a.json"))) == 500
        assert (
            len(rows(written(tmp_path, " " * 20_000 + "[" + " " * 20_000 + good + "\n" * 20_000 + "]", "a.json"))) == 1
        )
        long = ANNOTATION % f'"{"x" * 20_000}'
        for text in (f"[{good},\n{long}", f"{good}\n{long}", "[" + "1" * 20_000, "[" + "[1," * 20_000):
            with pytest.raises(GdshError, match=r"a record of more than|nested too deeply"):
                rows(written(tmp_path, text, "a.json"))

    @settings(deadline=None)  # files, on a machine that may be busy
    @given(text=st.text(alphabet='[]{}",:\\ua10 \n-eE.tf\ud800', max_size=60))
    def test_any_text(self, text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
        path = written(tmp_path_factory.mktemp("j"), text, "a.json")
        try:
            assert all(row.fault for row in rows(path))
        except GdshError as err:
            assert "a.json" in str(err)


ANSWERS = {
    "minus": "[" + "-" * 100_000 + "1]",
    "sums": "[" + "1+" * 50_000 + "1]",
    "calls": "[a" + "()" * 50_000 + "]",
    "lambdas": "[" + "lambda:" * 50_000 + "0]",
    "brackets": "['a'," + "[" * 10_000 + "]" * 10_001,
    "digits": f'{{"interval": [1, {DIGITS}], "type": "a"}}',
    "digits in Python": f"{{'interval': [1, {DIGITS}], 'type': 'a'}}",
    "a call": "[__import__('os').system('touch executed')]",
    "an attribute": "[().__class__]",
    "a power": "[9**9**9]",
    "a repetition": "['a' * 10**10]",
    "a format": "[f'{print(1)}']",
    "infinity": '{"interval": [1e400, 2], "type": "a"}',
    "NaN": '{"interval": [1, 2], "score": NaN}',
    "bytes": "{'interval': [1, 2], 'type': b'a'}",
    "complex": "{'interval': [1+2j, 2], 'type': 'a'}",
    "a set": "[{1, 2}]",
    "a list as key": "{[1]: 2}",
    "key twice": "{'type': 'a', 'type': 'b'}",
    "quotes": "x" + '\\"' * 100_000,  # quadratic once: minutes
    "quotes of both kinds": "\"'" * 100_001,
    "open strings": '["a' * 50_000,
    "backslashes": "['" + "\\" * 200_001,
    "broken off, nested": '[{"a":[' * 20_000,  # quadratic once, too
    "long": "[" + "1," * (dialects.MAX_ANSWER // 2) + "1]",
    "NUL": "{'interval': [1, 2], 'type': '\0'}",
}


class TestAnswers:
    """Of records and of models alike: read as JSON and Python literals, never executed."""

    @pytest.mark.parametrize("name", ANSWERS)
    def test_refused(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(GdshError):
            parse_answer(ANSWERS[name])
        assert read_answer(ANSWERS[name], salvage=True).form == UNREADABLE
        assert not list(tmp_path.iterdir())

    def test_just_not_too_deep_for_json(self) -> None:
        for depth in range(850, 1000):
            inner = "[" * depth + "]" * depth
            for text in (inner, f'{{"interval": [1, 2], "type": "a", "x": {inner}}},{{"type": "b"}}'):
                try:
                    read_anomalies(parse_answer(text).text)
                except GdshError as err:
                    assert "nested too deeply" in str(err) or "JSON has no form" in str(err)

    @settings(deadline=None)  # files, on a machine that may be busy
    @given(text=st.text(alphabet="[]{}\"':,\\1-+.eE()a \ud800", max_size=80), salvage=st.booleans())
    def test_any_text(self, text: str, salvage: bool) -> None:
        read_answer(text, salvage)


LINE = {"prompt": "[offset=0|scaling=1|length=%s|max=1|min=1|left=1|right=1]", "predict": "[]", "label": "[]"}


class TestPredictions:
    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (DEEP, "line 1 is no JSON"),
            (f'{{"prompt": {DIGITS}}}', "line 1 is no JSON: Exceeds the limit"),
            ('{"prompt": "a", "prompt": "b"}', "line 1 is no JSON: a key occurs twice"),
            (json.dumps(LINE).replace("%s", "1" + "0" * 12), "line 1: its prompt tells of a series of over 4,194,304"),
            (json.dumps(LINE).replace("%s", DIGITS), "line 1: its prompt tells no length of a series"),
            (json.dumps({**LINE, "prompt": "[offset=" * 200_000}), "line 1: its prompt tells no length"),
            (b"\xff", "can't be read"),
            ("5", "holds int, no object"),
            ("\0", "line 1 is no JSON"),
        ],
    )
    def test_refused(self, text: str | bytes, said: str, tmp_path: Path) -> None:
        with pytest.raises(EvaluateError, match=said):
            read_predictions(written(tmp_path, text, "p.jsonl"))

    def test_a_long_line(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("llamafactory_ext.toolbox.evaluate.predictions.MAX_LINE", 1000)
        good = json.dumps(LINE).replace("%s", "8")
        with pytest.raises(EvaluateError, match="line 2 has more than 1,000 characters"):
            read_predictions(written(tmp_path, f"{good}\n{good[:-2]}{'x' * 2000}", "p.jsonl"))

    def test_half_characters_and_escapes_are_shown_as_such(self, tmp_path: Path) -> None:
        """By the tool itself: what a stranger's model says is drawn and printed, and neither fails nor commands."""
        said = {**LINE, "prompt": LINE["prompt"].replace("%s", "50")}
        said["label"] = json.dumps([{"interval": [1, 5], "type": "\x1b[2J\ud800<script>"}])
        path = written(tmp_path, json.dumps(said | {"predict": "\ud800\x1b]0;x\x07"}), "p.jsonl")
        command = [sys.executable, "-m", "llamafactory_ext", "evaluate", str(path), "--out", str(tmp_path / "out")]
        done = subprocess.run(command, capture_output=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr.decode()[-3000:]
        assert b"\x1b" not in done.stdout + done.stderr
        page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
        assert page.count("<script") == 1  # the page's own
        assert json.loads((tmp_path / "out" / "scores.json").read_text(encoding="utf-8"))


NOT_FINITE = "record 1: series 0: found 1 values that are not finite"
GOOD = '{"input": "<ts><ts/>", "output": "yes", "timeseries": [[1.0]]}'
CHATTS = {
    # name: (what stands in the second record's place, what is said)
    "key twice": (GOOD[:-1] + ', "input": "<ts><ts/>!"}', "a key occurs twice"),
    "deep": (GOOD.replace("1.0", "[" * 30_000 + "]" * 30_000), "from line 2 on .nested too deeply"),
    "deep beside": (GOOD[:-1] + ', "x": ' + '{"a":' * 30_000 + "1" + "}" * 30_001, "nested too deeply"),
    "rather deep": (GOOD.replace("1.0", "[" * 100 + "]" * 100), "record 1: found .* for series"),
    "digits": (GOOD.replace("1.0", DIGITS), NOT_FINITE),
    "whole digits": (GOOD.replace("1.0", f"2.5, 1{'0' * 400}"), NOT_FINITE),
    "1e400": (GOOD.replace("1.0", "1e400"), NOT_FINITE),
    "NaN": (GOOD.replace("1.0", "NaN"), NOT_FINITE),
    "half a character": (GOOD.replace("yes", "\\ud800"), "record 1: found half a character"),
    "text for a series": (GOOD.replace("[[1.0]]", '"abc"'), "record 1: found 'abc' for series"),
    "an object for a series": (GOOD.replace("[[1.0]]", '{"a": 1}'), "record 1: found .* for series"),
    "a number for a text": (GOOD.replace('"yes"', "5"), "record 1: found 5 in 'output'; expected text"),
    "no object": ("5", "record 1: found 5; expected a JSON object"),
    "NUL": (GOOD.replace("yes", "\0"), "is no JSON text"),
}


def chatts(folder: Path, content: bytes, name: str = "a.jsonl") -> Path:
    written(folder, content, name)
    (folder / "dataset_info.json").write_text(json.dumps({"a": {"file_name": name, "formatting": "chatts"}}))
    return folder


class TestChatTS:
    @pytest.mark.parametrize("name", CHATTS)
    @pytest.mark.parametrize("form", ["lines", "list"])
    def test_refused_by_name(self, name: str, form: str, tmp_path: Path, tokenise: Callable[..., Any]) -> None:
        record, said = CHATTS[name]
        text = f"{GOOD}\n{record}\n" if form == "lines" else f"[{GOOD},\n{record}]"
        if form == "list" and name in ("digits", "NUL"):
            said = "cannot be read as JSON|is not valid JSON"
        with pytest.raises(ValueError, match=said):
            tokenise(chatts(tmp_path, text.encode(), "a.jsonl" if form == "lines" else "a.json"))

    def test_nothing_is_unpacked(self, tmp_path: Path, tokenise: Callable[..., Any]) -> None:
        """datasets unpacks a file by its content, whatever it is called: 1 MB may become 1 GB on the disk."""
        with pytest.raises(ValueError, match=r"a\.jsonl is no JSON text; expected one JSON object a line: unpack"):
            tokenise(chatts(tmp_path, gzip.compress(f"{GOOD}\n".encode() * 100)))

    def test_other_columns_do_not_matter(self, tmp_path: Path, tokenise: Callable[..., Any]) -> None:
        mixed = [GOOD.replace('"yes"', f'"yes", "id": {number}') for number in ("1", '"x"', "[1]", "{}")]
        assert len(tokenise(chatts(tmp_path, f"[{','.join(mixed)}]".encode(), "a.json"))["train_dataset"]) == 4

    def test_many_brackets_in_a_text_are_no_fault(self, tmp_path: Path, tokenise: Callable[..., Any]) -> None:
        brackets = "[" * 5000
        folder = chatts(tmp_path, f"{GOOD}\n{GOOD.replace('yes', brackets)}\n".encode())
        assert not arrow_may_read(folder / "a.jsonl")
        run = tokenise(folder, cutoff_len=20_000)
        assert brackets in run["tokenizer"].decode(run["train_dataset"][1]["input_ids"])

    @pytest.mark.parametrize("entry", [DEEP, "{", "5", '{"a": 5}', '{"a": {"file_name": 5, "formatting": "chatts"}}'])
    def test_dataset_info(self, entry: str, tmp_path: Path, tokenise: Callable[..., Any]) -> None:
        written(tmp_path, entry, "dataset_info.json")
        with pytest.raises((ValueError, TypeError)):
            tokenise(tmp_path)
