"""What stops a command is one line on standard error, with an exit status; no file and no folder shows a traceback."""

import os
import sys
from importlib import import_module
from pathlib import Path

import pytest

from llamafactory_ext.errors import FaultError, GdshError, UsageError
from llamafactory_ext.files import WriteError
from llamafactory_ext.toolbox.cli.terminal import FAULTS, USAGE, stops_in_one_line


def ends(words: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Runs a command of ``llamafactory-ext`` in this process; returns its exit status."""
    command = words.split()[0]
    monkeypatch.setattr(sys, "argv", words.split())
    module = import_module(f"llamafactory_ext.toolbox.cli.{'import_' if command == 'import' else command}")
    status: int = module.main()
    return status


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder to work in: a series, a file that is no text, one that is no YAML, and what import makes of it."""
    monkeypatch.chdir(tmp_path)
    tmp_path.joinpath("a.csv").write_text("date,value\n2025-01-01 00:00:00,1\n2025-01-01 00:01:00,2\n")
    tmp_path.joinpath("no_text").write_bytes(b"\xff\xfe")
    tmp_path.joinpath("no_yaml").write_text("{")
    assert ends("import a.csv --labels none --out data", monkeypatch) == 0
    return tmp_path


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("import a.csv --out b --prompt gone", USAGE, "--prompt gone: No such file or directory"),
        ("import a.csv --out b --prompt no_text", USAGE, "--prompt no_text is no text in UTF-8: invalid start byte"),
        ("import a.csv --out b --type-map no_yaml", USAGE, "--type-map no_yaml is no YAML: while parsing a flow node"),
        ("import a.csv --labels none --out a.csv/b", FAULTS, "a.csv/b can't be written: File exists"),
        ("labels data --to annotator --out a.csv", FAULTS, "a.csv.json can't be written: File exists"),
        ("labels data --to gdsh --out b --detections gone", FAULTS, "gone can't be read: No such file or directory"),
        ("labels data --to gdsh --out b --detections no_text", FAULTS, "no_text can't be read: 'utf-8' codec can't"),
        ("detect a.csv --model m --out b --prompt gone", USAGE, "--prompt gone: No such file or directory"),
        ("detect a.csv --model m --out a.csv/b", FAULTS, "a.csv/b/detect_run.json can't be written: Not a directory"),
        ("demo --tiny a.csv", FAULTS, "a.csv/model can't be written: File exists"),
        ("init a.csv", FAULTS, "can't be written: Not a directory"),
    ],
)
def test_files_that_are_not_as_they_should_be(
    words: str, status: int, said: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(here.rglob("*"))
    capsys.readouterr()
    assert ends(words, monkeypatch) == status
    told = " ".join(capsys.readouterr().err.split())
    assert told.startswith("error: ") and said in told
    assert sorted(here.rglob("*")) == before, "nothing is left behind"


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (UsageError("a"), USAGE, "error: a\n"),
        (FaultError("b"), FAULTS, "error: b\n"),
        (GdshError("c"), FAULTS, "error: c\n"),
        (WriteError(28, os.strerror(28), "x"), 7, "error: x can't be written: No space left on device\n"),
        (FileNotFoundError(2, os.strerror(2), "y"), FAULTS, "error: y: No such file or directory\n"),
        (OSError("not\n  a file"), FAULTS, "error: not a file\n"),
        (
            ModuleNotFoundError("", name="torch"),
            USAGE,
            "error: no module torch; install what this command needs: pip install '.[train]'\n",
        ),
    ],
)
def test_each_kind_of_error(
    raised: Exception, status: int, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @stops_in_one_line(unwritable=7)
    def command() -> int:
        raise raised

    assert (command(), capsys.readouterr().err) == (status, said)
    with pytest.raises(ZeroDivisionError):  # a fault of this program keeps its traceback
        stops_in_one_line()(lambda: 1 // 0)()


def test_each_command_does_so() -> None:
    from llamafactory_ext.__main__ import COMMANDS

    for name in COMMANDS:
        module = import_module(f"llamafactory_ext.toolbox.cli.{'import_' if name == 'import' else name}")
        assert hasattr(module.main, "__wrapped__"), name
