"""Where annotations and folders of strangers lead: to a CSV file of the data folder, or to a named fault."""

import contextlib
import json
import os
import re
import shutil
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
from llamafactory_ext.data.normalise import write_lines
from llamafactory_ext.files import Drafts, private_folder
from llamafactory_ext.gdsh import GdshError, SeriesIndex, index_series, read_series, show_pictures
from llamafactory_ext.model import read_config
from llamafactory_ext.model.published import copy_published_files
from llamafactory_ext.training.resuming import choose_checkpoint, rewind_log
from llamafactory_ext.training.whole_checkpoints import first_fault


ATTR = SimpleNamespace(**FORMATS["gdsh"].columns, **FORMATS["gdsh"].tags, system=None, normal_types=(), table=None)


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
        for name in (b"\xff_X.csv", b"\xff_Y.csv", b"\xff_Z.csv"):  # a prefix that all files share is a data set's
            (folder / os.fsdecode(name)).write_text("value\n1\n")
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    for line in lines(folder, *(annotation(f"{name}.jpg") for name in "XYZ")):
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


# Links and temporary files: what is copied, written over or trusted is what it seems to be


@pytest.fixture
def published(demo: Path, tmp_path: Path) -> Path:
    """A checkpoint with Python files of its own, and a secret beside it."""
    model = Path(shutil.copytree(demo / "model", tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "own.C"}}))
    (model / "own.py").write_text("")
    (tmp_path / "secret").write_text("hunter2")
    (tmp_path / "out").mkdir()
    return model


@pytest.mark.parametrize("name", ["processor_config.json", "own.py"])
def test_a_link_in_a_checkpoint_is_not_copied(name: str, published: Path, tmp_path: Path, caplog: Any) -> None:
    (published / name).unlink(missing_ok=True)
    (published / name).symlink_to(tmp_path / "secret")
    copy_published_files(read_config(str(published)), tmp_path / "out")
    assert not (tmp_path / "out" / name).exists()
    assert "leads elsewhere; it is not copied" in caplog.text


def test_a_link_in_the_target_is_replaced(published: Path, tmp_path: Path) -> None:
    (published / "processor_config.json").write_text("{}")
    (tmp_path / "out" / "processor_config.json").symlink_to(tmp_path / "secret")
    assert "processor_config.json" in copy_published_files(read_config(str(published)), tmp_path / "out")
    assert (tmp_path / "secret").read_text() == "hunter2"
    assert (tmp_path / "out" / "processor_config.json").read_text() == "{}"
    assert not (tmp_path / "out" / "processor_config.json").is_symlink()


def test_a_hubs_files_are_links_to_its_blobs(published: Path, tmp_path: Path) -> None:
    place = tmp_path / "hub" / "models--a--b"
    (place / "blobs").mkdir(parents=True)
    (place / "snapshots" / "x").mkdir(parents=True)
    for file in published.iterdir():
        file.rename(place / "blobs" / f"blob of {file.name}")
        (place / "snapshots" / "x" / file.name).symlink_to(place / "blobs" / f"blob of {file.name}")
    assert copy_published_files(read_config(str(place / "snapshots" / "x")), tmp_path / "out") == ["own.py"]


def test_the_log_is_rewound_under_a_name_that_nobody_knows(tmp_path: Path) -> None:
    log = tmp_path / "trainer_log.jsonl"
    log.write_text('{"current_steps": 1, "loss": 1}\n{"current_steps": 9, "loss": 1}\n')
    (tmp_path / "secret").write_text("hunter2")
    (tmp_path / ".trainer_log.jsonl.part").symlink_to(tmp_path / "secret")
    rewind_log(log, 1)
    assert log.read_text() == '{"current_steps": 1, "loss": 1}\n'
    assert (tmp_path / "secret").read_text() == "hunter2"


@pytest.mark.parametrize("planted", ["file", "link", "folder"])
def test_a_planted_file_in_the_cache_is_not_trusted(planted: str, tmp_path: Path) -> None:
    target = write_lines(['{"a": 1}'], tmp_path / "cache", "x")
    known = target.stat().st_mtime_ns
    assert write_lines(['{"a": 1}'], tmp_path / "cache", "x").stat().st_mtime_ns == known  # datasets caches by it
    target.unlink()
    (tmp_path / "other").write_text('{"a": "evil"}\n')
    if planted == "file":
        target.write_text('{"a": "evil"}\n')
    elif planted == "link":
        target.symlink_to(tmp_path / "other")
    else:
        target.mkdir()
    if planted == "folder":
        with pytest.raises(OSError, match=re.escape(target.name)):
            write_lines(['{"a": 1}'], tmp_path / "cache", "x")
        return
    assert write_lines(['{"a": 1}'], tmp_path / "cache", "x").read_text() == '{"a": 1}\n'
    assert (tmp_path / "other").read_text() == '{"a": "evil"}\n'


def test_the_cache_is_ones_own(tmp_path: Path) -> None:
    """Of a folder that others may write to, nothing can be said; another user has a folder of another name."""
    folder = private_folder(tmp_path / "a" / "b")
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    with pytest.raises(PermissionError, match="others may write to it"):
        private_folder(folder)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(PermissionError, match="is a link"):
        private_folder(tmp_path / "link")


def test_a_draft_has_its_mode_when_it_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What replaces a file of its owner alone is nobody else's to open, not even for a moment."""
    target = tmp_path / "out.jsonl"
    target.write_text("")
    target.chmod(0o600)
    seen: list[int] = []
    monkeypatch.setattr(os, "fchmod", lambda file, mode: seen.append(os.fstat(file).st_mode & 0o777))
    mask = os.umask(0)
    try:
        with Drafts() as drafts:
            drafts.open(target)
    finally:
        os.umask(mask)
    assert seen == [0o600]


STATE = '{"global_step": %s, "max_steps": 1, "log_history": %s}'
STATES = ["", "[]", "5", '{"x": 1}', "[" * 100_000, '"a"', '{"stateful_callbacks": 5}']
STATES += [STATE % one for one in (('"x"', "[]"), (-1, "[]"), (1, "[5]"), (1, 5))]


@pytest.mark.parametrize("text", STATES)
def test_hostile_states_of_a_run(text: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-5"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text(text)
    assert re.search("trainer_state.json is (cut off|not what a Trainer writes)", first_fault(checkpoint) or "")
    with pytest.raises(ValueError, match=r"`resume_from_checkpoint`: ") as caught:
        choose_checkpoint(str(tmp_path), str(checkpoint))
    assert "\n" not in str(caught.value)


INDEXES = ["[]", "5", '{"weight_map": 5}', '{"weight_map": {"a": 5}}', '{"weight_map": {"a": [1]}}', "[" * 100_000]


@pytest.mark.parametrize("text", [*INDEXES, '{"weight_map": {"a": "../w"}}', '{"weight_map": {"a": "/dev/zero"}}'])
def test_hostile_indexes_of_a_run(text: str, tmp_path: Path) -> None:
    from transformers import TrainerState

    checkpoint = tmp_path / "checkpoint-5"
    checkpoint.mkdir()
    TrainerState().save_to_json(str(checkpoint / "trainer_state.json"))
    assert first_fault(checkpoint) is None
    (checkpoint / "model.safetensors.index.json").write_text(text)
    assert re.search("index.json is (cut off|no index of files)", first_fault(checkpoint) or "")
