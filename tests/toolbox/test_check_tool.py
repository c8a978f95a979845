"""`llamafactory-ext check` as a user runs it: a process of its own, its output, its files, its exit status."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Gdsh, annotation, answer

from llamafactory_ext.toolbox.cli import check as cli


def check(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "120"}
    command = [sys.executable, "-m", "llamafactory_ext", "check", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert "Traceback" not in done.stderr
    return done


Here = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """Runs it in this process, a second instead of ten; returns exit status and both outputs."""
    monkeypatch.setattr(cli, "hush", lambda: None)  # its variables would silence the processes of later tests
    monkeypatch.setenv("COLUMNS", "120")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["check", *map(str, arguments)])
        capsys.readouterr()
        status = cli.main()
        return status, *capsys.readouterr()

    return call


def test_demo_from_end_to_end(demo: Path, tmp_path: Path) -> None:
    given = ["gdsh_demo", "--dataset-dir", demo / "data", "--model", demo / "model", f"cache_dir={tmp_path}/cache"]
    written = ["--plot", tmp_path / "pictures", "--plot-records", 20, "--report", tmp_path / "report.json"]
    done = check(*given, *written, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == ""
    assert "FAULT contradiction: 7 records contradict one another" in done.stdout
    assert "cutoff_len 4096: all fit" in done.stdout
    assert "20 of 23 records drawn" in done.stdout
    found = json.loads((tmp_path / "report.json").read_text())
    assert (found["records"], found["usable"], found["over_cutoff_len"]) == (23, 23, 0)
    assert found["types"]["点异常"] == 9
    assert found["tokens"]["whole"]["max"] == max(one["tokens"]["whole"] for one in found["each_record"])
    (contradiction,) = [one for one in found["findings"] if one["kind"] == "contradiction"]
    assert [one["row"] for one in contradiction["records"]] == [6, 7, 8, 9, 10, 17, 18]
    assert found["plot"] == {"folder": str(tmp_path / "pictures"), "records": 20}
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["index.html"]
    assert not (tmp_path / "saves").exists()


def test_no_faults(gdsh: Gdsh, tmp_path: Path, demo: Path) -> None:
    gdsh.records(annotation(reply=answer((3, 5))))
    done = check(
        *("a", "--dataset-dir", gdsh.folder, "--model", demo / "missing", "--show", 0, f"cache_dir={tmp_path}/cache"),
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "record 0 (a.jpg)" in done.stdout
    assert answer((3, 5)) in done.stdout
    assert "not tokenised: no tokenizer for" in done.stdout
    assert "0 faults, 2 notices" in done.stdout


def test_a_file_that_can_not_be_read(gdsh: Gdsh, tmp_path: Path, here: Here) -> None:
    gdsh.records(annotation())
    (gdsh.folder / "json" / "a.json").write_text('[{"image": ')
    status, out, err = here("a", "--dataset-dir", gdsh.folder, f"cache_dir={tmp_path}/cache")
    assert (status, out) == (1, "")
    assert err.startswith("error: training would stop: ")
    assert "json/a.json" in err


WRONG = {
    "unknown data set": (["b", "--dataset-dir", "data"], "no data set b in data/dataset_info.json; there are: a."),
    "unknown key": (["a", "cutoff_length=5"], "unknown key cutoff_length"),
    "no recipe": (["a", "--recipe", "yaml/none.yaml"], "yaml/none.yaml: no such recipe"),
    "no file": (["none.jsonl"], "none.jsonl: no such file"),
    "no such record": (["a", "--dataset-dir", "data", "--show", "9"], "there is no record 9; expected 0 to 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_usage(name: str, gdsh: Gdsh, tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    gdsh.records(annotation())
    monkeypatch.chdir(gdsh.folder.parent)
    arguments, said = WRONG[name]
    status, out, err = here(*arguments, f"cache_dir={tmp_path}/cache")
    assert (status, out) == (2, "")
    assert said in err


def test_without_llamafactory_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that fails to import stands for an environment with `.[tools]` alone."""
    (tmp_path / "omegaconf.py").write_text("raise ModuleNotFoundError('No module named omegaconf', name='omegaconf')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = check("gdsh", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no module omegaconf; ")
    assert "pip install '.[train]'" in done.stderr
