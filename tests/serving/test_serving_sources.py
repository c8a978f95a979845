"""Where a request's series comes from: what is read, what is refused, and that nothing else is touched."""

import base64
import json
import os
import re
import tracemalloc
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafactory_ext.serving import sources
from llamafactory_ext.serving.sources import MAX_BYTES, SourceError, parse_numbers, read_source


VALUES = [0.5, -2.0, 3.25, 1e6]
CSV = "date,value\n" + "\n".join(f"2025-01-01,{value}" for value in VALUES) + "\n"
FLOATS = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The allowed folder, with links that lead out of it, beside files that must not be read."""
    folder = tmp_path / "open"
    (folder / "gdsh").mkdir(parents=True)
    (folder / "gdsh" / "数据集X.PV.csv").write_text(CSV, "utf-8")
    for outside in (tmp_path / "secret.csv", tmp_path / "open_too.csv"):
        outside.write_text(CSV, "utf-8")
    (tmp_path / "open_too").mkdir()
    (tmp_path / "open_too" / "secret.csv").write_text(CSV, "utf-8")
    (folder / "link.csv").symlink_to(tmp_path / "secret.csv")
    (folder / "up").symlink_to(tmp_path)
    (folder / "inside.csv").symlink_to(folder / "gdsh" / "数据集X.PV.csv")
    (folder / "loop.csv").symlink_to(folder / "loop.csv")
    return folder


def base64_of(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    "source",
    [
        f"data:text/csv;base64,{base64_of(CSV)}",
        f"DATA:Text/CSV;charset=utf-8;base64,{base64_of(CSV)}",
        f"data:text/csv,{quote(CSV)}",
        f"data:application/json,{json.dumps(VALUES)}",
        f"data:application/json;base64,{base64_of(json.dumps(VALUES))}",
        "gdsh/数据集X.PV.csv",
        "./gdsh//数据集X.PV.csv",
        "inside.csv",
    ],
)
def test_same_series_every_way(source: str, folder: Path) -> None:
    assert read_source(source, folder).values.tolist() == VALUES
    if source[:5].lower() != "data:":
        assert read_source(str(folder / source), folder).values.tolist() == VALUES


@given(FLOATS)
def test_numbers_arrive_to_the_last_digit(values: list[float]) -> None:
    assert read_source(f"data:application/json,{json.dumps(values)}", None).values.tolist() == values


def test_cells_that_are_no_number_are_counted() -> None:
    series = read_source("data:text/csv,value%0A1%0A?%0A3%0A", None)
    assert (series.values.tolist(), series.filled) == ([1.0, 2.0, 3.0], 1)


@pytest.mark.parametrize(
    ("source", "status", "reason"),
    [
        ("../secret.csv", 403, "leads out of the folder"),
        ("gdsh/../../secret.csv", 403, "leads out of the folder"),
        ("gdsh/../inside.csv", 403, "leads out of the folder"),
        ("up/secret.csv", 403, "leads out of the folder"),
        ("link.csv", 403, "leads out of the folder"),
        ("/etc/passwd", 403, "leads out of the folder"),
        ("/there/is/no/such/file", 403, "leads out of the folder"),
        ("{parent}/secret.csv", 403, "leads out of the folder"),
        ("{parent}/open_too.csv", 403, "leads out of the folder"),  # upstream compares the beginning of the names
        ("{parent}/open_too/secret.csv", 403, "leads out of the folder"),
        ("~/secret.csv", 404, "is not there"),
        ("gdsh/nope.csv", 404, "is not there"),
        ("inside.csv/x", 404, "is not there"),
        ("", 400, "is not a regular file"),
        (".", 400, "is not a regular file"),
        ("gdsh", 400, "is not a regular file"),
        ("secret.txt", 403, "is no .csv file"),
        ("text.csv", 403, "is no .csv file"),  # a link to another file of the folder
        (".hidden.csv", 403, "which is hidden"),
        (".git/config.csv", 403, "which is hidden"),
        ("shown.csv", 403, "which is hidden"),  # a link to one
        ("pipe.csv", 400, "is not a regular file"),
        ("loop.csv", 400, "loop.csv'"),
        ("x" * 256, 400, "255 bytes in each part"),
        ("数" * 86, 400, "255 bytes in each part"),
        ("x/" * 300_000, 400, "found a path of 600,000 characters"),
        ("a\0b.csv", 400, "is no path"),
        ("\ud800.csv", 400, "is no path"),
        ("x" * 5000, 400, "found a path of 5,000 characters"),
        ("x/" * 5000, 400, "found a path of 10,000 characters"),
        ("large.csv", 413, "at most 4,194,304 are read"),
        ("words.csv", 400, "'words.csv': no column 'value' in the header …"),
        ("cells.csv", 400, "'cells.csv': line 2: the cell …"),
        ("http://127.0.0.1:9/a.csv", 400, "nothing is fetched"),
        ("HTTPS://example.org/a.csv", 400, "nothing is fetched"),
        ("file:///etc/passwd", 400, "nothing is fetched"),
        ("file:/etc/passwd", 404, "is not there"),
        ("data:", 400, "found a data URI of ''"),
        ("data:text/csv;base64", 400, "found a data URI"),
        ("data:audio/wav;base64,AAAA", 400, "found a data URI of 'audio/wav;base64'"),
        ("data:text/csv;base64,%%%", 400, "is not base64"),
        ("data:text/csv;base64,dmFsdWUK*", 400, "is not base64"),
        ("data:text/csv,", 400, "the CSV is empty"),
        ("data:text/csv,value%0Ax%0A", 400, "no finite number in 1 rows"),
        ("data:text/csv,a%00b", 400, "holds NUL characters"),
        ("data:application/json,", 400, "are not JSON"),
        ("data:application/json,[1, 2", 400, "are not JSON"),
        ("data:application/json,[]", 400, "without points"),
        ("data:application/json,[1, null]", 400, "not finite numbers, the first at index 1"),
        ("data:application/json,[NaN]", 400, "not finite numbers"),
        ("data:application/json,[1e999]", 400, "not finite numbers"),
        ("data:application/json,[[1, 2]]", 400, "of shape [1, 2]"),
        ("data:application/json,7", 400, "of shape []"),
        ('data:application/json,{"value": [1]}', 400, "not a list of numbers"),
        ('data:application/json,["x"]', 400, "not a list of numbers"),
        ("data:application/json,[" + "9" * 5000 + "]", 400, "are not JSON"),
        ("data:application/json," + "[" * 100_000, 400, "are not JSON"),
        ("data:application/json,[" + "1," * MAX_BYTES + "1]", 413, "at most 4,194,304 are read"),
        ("data:text/csv," + "%" * (8 << 20), 413, "at most 4,194,304 are read"),
        ("data:text/csv," + "%41" * (MAX_BYTES + 1), 413, "at most 4,194,304 are read"),
        ("data:text/csv;base64," + "%41" * (MAX_BYTES * 4 // 3 + 4), 413, "at most 4,194,304 are read"),
        ("data:text/csv;base64," + "A" * (MAX_BYTES * 4 // 3 + 4), 413, "at most 4,194,304 are read"),
        ("data:" + ";" * (8 << 20) + ",1", 400, "found a data URI"),
    ],
)  # fmt: skip
def test_refused_with_a_reason(source: str, status: int, reason: str, folder: Path) -> None:
    (folder / "words.csv").write_text("password,hunter2\n1,2\n")
    (folder / "cells.csv").write_text("value\nhunter2\n")
    for name in ("secret.txt", ".hidden.csv", ".git/config.csv"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("password,hunter2\n1,2\n")
    (folder / "text.csv").symlink_to("secret.txt")
    (folder / "shown.csv").symlink_to(".hidden.csv")
    with (folder / "large.csv").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    os.mkfifo(folder / "pipe.csv")  # opened, it would wait for somebody to write
    with pytest.raises(SourceError) as caught:
        read_source(source.replace("{parent}", str(folder.parent)), folder)
    assert caught.value.status == status
    assert reason in str(caught.value)
    assert str(folder) not in str(caught.value) or "{parent}" in source
    assert not {"hunter2", "password"} & set(re.findall(r"\w+", str(caught.value)))
    assert len(str(caught.value)) < 600


def test_a_link_that_comes_between_check_and_opening(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was resolved as a file, or as a folder, is a link when it is opened."""
    outside = folder.parent / "open_too"
    (folder / "sub").mkdir()
    for name in ("secret.csv", "sub/secret.csv"):
        (folder / name).write_text(CSV, "utf-8")
    resolved = sources._place

    def exchanged(name: str, root: Path, setting: str) -> Any:
        place = resolved(name, root, setting)
        first = root / place.parts[0]
        first.rename(root / "gone")
        first.symlink_to(outside if len(place.parts) > 1 else outside / "secret.csv")
        return place

    monkeypatch.setattr(sources, "_place", exchanged)
    for name in ("secret.csv", "sub/secret.csv"):
        with pytest.raises(SourceError) as caught:
            read_source(name, folder)
        assert caught.value.status in (400, 403, 404)
        (folder / "gone").rename(folder / f"was {name[:3]}")


@given(st.text(alphabet="%4aF,1\n é") | st.text())
def test_percent_signs_are_decoded_as_the_library_does(text: str) -> None:
    data = text.encode(errors="surrogatepass")
    assert sources._unquote(data) == unquote_to_bytes(data)


def test_memory_of_percent_signs() -> None:
    tracemalloc.start()
    with pytest.raises(SourceError):
        read_source("data:text/csv," + "%" * (8 << 20), None)
    assert tracemalloc.get_traced_memory()[1] < 100 << 20
    tracemalloc.stop()


def test_no_folder_no_path(folder: Path) -> None:
    with pytest.raises(SourceError, match="opens no folder") as caught:
        read_source(str(folder / "inside.csv"), None)
    assert caught.value.status == 403


@given(st.text() | st.text().map("data:text/csv;base64,".__add__) | st.text().map("data:application/json,".__add__))
def test_any_text_is_a_series_or_refused(text: str) -> None:
    try:
        assert np.isfinite(read_source(text, Path(__file__).parent).values).all()
    except SourceError as err:
        assert 400 <= err.status < 500


@given(st.binary())
def test_any_csv_is_a_series_or_refused(data: bytes) -> None:
    try:
        read_source("data:text/csv;base64," + base64.b64encode(data).decode(), None)
    except SourceError as err:
        assert "/tmp" not in str(err)


def test_numbers_alone() -> None:
    assert parse_numbers(" [1, 2.5] ").tolist() == [1, 2.5]
