"""Where annotations and folders of strangers lead: to a CSV file of the data folder, or to a named fault."""

import contextlib
import json
import os
import socket
import unicodedata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import annotation
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafactory_ext.data.formats import FORMATS
from llamafactory_ext.data.formats.gdsh import lines as annotation_lines
from llamafactory_ext.gdsh import GdshError, SeriesIndex, index_series, read_series, show_pictures


ATTR = SimpleNamespace(**FORMATS["gdsh"].columns, **FORMATS["gdsh"].tags, system=None)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of series with everything in it that leads out or is no file, and a secret outside of it."""
    root = tmp_path_factory.mktemp("tree")
    (root / "secret").mkdir()
    for name in ("passwd.csv", "X.csv"):
        (root / "secret" / name).write_text("value\n1\n")
    folder = root / "data" / "timeseries" / "gdsh"
    (folder / "sub").mkdir(parents=True)
    (folder.parent / "whlj").mkdir()
    for name in ("a.csv", "A_b.csv", "sub/c.csv", "..csv", "=cmd|' -C calc'!A0.csv", "\u202egnp.csv", "\x1b[2J.csv"):
        (folder / name).write_text("value\n1\n")
    (folder.parent / "whlj" / "d.csv").write_text("value\n1\n")
    (folder / "passwd.csv").symlink_to(root / "secret" / "passwd.csv")
    (folder / "zero.csv").symlink_to("/dev/zero")
    (folder / "stdin.csv").symlink_to("/dev/stdin")
    (folder / "mem.csv").symlink_to("/proc/self/mem")
    (folder / "up").symlink_to(root / "secret")
    (folder / "loop").symlink_to(folder)
    (folder / "self.csv").symlink_to(folder / "self.csv")
    os.mkfifo(folder / "pipe.csv")
    (folder / "folder.csv").mkdir()
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(folder):  # a socket's path has a limit
        server.bind("socket.csv")
    return root


@pytest.fixture(scope="module")
def index(tree: Path) -> SeriesIndex:
    return index_series(tree / "data" / "timeseries" / "gdsh")


NAMES = (
    "../../etc/passwd", "/etc/passwd", "..\\..\\passwd.csv", "file:///etc/passwd", "passwd", "up/X.csv", "loop/a.csv",
    "zero", "stdin", "mem", "pipe", "socket", "folder", "self", "X", "", ".", "..", "/", "\\", "a/..", "a\0", "\0",
    "C:\\con.csv", "\\\\?\\C:\\a", "a" * 4096, "_" * 4096, "a\n", "~root", "$HOME", "%2e%2e%2fpasswd", "ａ", "\ud800",
)  # fmt: skip
picture = st.text() | st.sampled_from(NAMES) | st.lists(st.sampled_from(NAMES), max_size=4).map("/".join)


def found(index: SeriesIndex, name: str) -> str | None:
    """The file that is found, after checks of where it lies; None for a fault."""
    try:
        file = index.find(name)
    except GdshError as err:
        assert 0 < len(str(err)) < 4000
        return None
    root = Path(index.folder).parent.resolve()
    assert Path(file.path).is_relative_to(root)
    assert os.path.realpath(file.path) == file.path
    assert read_series(file.path).values.tolist() == [1]
    return file.path


@settings(deadline=None)  # files, on a machine that may be busy
@given(name=picture)
def test_any_name_is_a_file_of_the_folder_or_a_fault(index: SeriesIndex, name: str) -> None:
    found(index, name)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("loop/a.csv", "\\\\?\\C:\\a")])
def test_names_that_lead_nowhere(index: SeriesIndex, name: str) -> None:
    assert found(index, name) is None


def test_what_is_there_is_found(index: SeriesIndex) -> None:
    """A path's folders count for nothing, so `loop/a.csv` is `a.csv`, found where it lies."""
    for name, file in (("loop/a.csv", "a.csv"), ("\\\\?\\C:\\a", "a.csv"), ("c.jpg", "c.csv"), ("D:\\d.jpg", "d.csv")):
        assert Path(found(index, name) or "").name == file
    assert Path(found(index, "x/=cmd|' -C calc'!A0.jpg") or "").name.startswith("=cmd")


@settings(deadline=None)  # files, on a machine that may be busy
@given(stem=st.text(min_size=1, max_size=4), form=st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]))
def test_names_that_differ_by_normalisation_only(
    stem: str, form: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """NFC and NFD are one name, as file systems have it; compatibility forms (Ａ and A) are two."""
    other = unicodedata.normalize(form, stem)
    try:
        (folder := tmp_path_factory.mktemp("n") / "s").mkdir()
        (folder / f"{stem}.csv").write_text("value\n1\n")
    except (OSError, ValueError, UnicodeEncodeError):
        return  # no name of a file
    index = index_series(folder)
    if not index.own.files:
        return  # a hidden file
    same = unicodedata.normalize("NFC", stem) == unicodedata.normalize("NFC", other)
    if same and not any(char in stem for char in "/\\\0"):
        assert found(index, f"{other}.jpg") is not None
    else:
        found(index, f"{other}.jpg")


def test_both_forms_of_one_name_are_ambiguous(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    for form in ("NFC", "NFD"):
        (folder / unicodedata.normalize(form, "é.csv")).write_text("value\n1\n")
    if len(list(folder.iterdir())) < 2:
        pytest.skip("this file system takes both for one name")
    with pytest.raises(GdshError, match="belongs to 2 CSV files of the same name"):
        index_series(folder).find("é.jpg")


def lines(folder: Path, *records: Any, raw: bytes | None = None) -> list[dict[str, Any]]:
    source = folder.parent / "a.json"
    source.write_bytes(json.dumps(records).encode() if raw is None else raw)
    return [json.loads(line) for line in annotation_lines(ATTR, source, folder)]


@settings(deadline=None)  # files, on a machine that may be busy
@given(image=picture | st.lists(picture, max_size=3) | st.none() | st.integers() | st.dictionaries(picture, picture))
def test_any_image_of_an_annotation_is_a_record_or_a_fault(tree: Path, image: Any) -> None:
    (line,) = lines(tree / "data" / "timeseries" / "gdsh", annotation(image))
    assert line["record"].isprintable()
    assert line["fault"] or all(one["path"] for one in line["series"])
    root = str((tree / "data" / "timeseries").resolve())
    assert all(one["path"] == "" or one["path"].startswith(root) for one in line["series"])


def test_a_name_that_is_no_utf8_is_a_fault(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    try:
        (folder / os.fsdecode(b"\xff_X.csv")).write_text("value\n1\n")
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    (line,) = lines(folder, annotation("X.jpg"))
    assert "is not UTF-8; rename the file" in line["fault"]


@pytest.mark.parametrize("name", ["\x1b[2J\x1b]0;x\x07.jpg", "a\nrecord 7 (b.jpg): fine", "\u202egpj.a", "\x9b2J"])
def test_names_do_not_command_the_terminal(name: str) -> None:
    assert show_pictures([name]).isprintable()
    assert len(show_pictures(["x" * 100_000])) < 300


def test_the_folder_itself_may_be_a_link(tree: Path, tmp_path: Path) -> None:
    """Who names a folder means it; links inside of it, which came with the data, lead nowhere outside."""
    link = tmp_path / "linked"
    link.symlink_to(tree / "data" / "timeseries" / "gdsh")
    index = index_series(link)
    assert {file.stem for file in index.own.files} >= {"a", "A_b", "c"}
    assert not {"passwd", "X", "zero", "pipe", "socket", "mem", "stdin"} & {file.stem for file in index.own.files}
