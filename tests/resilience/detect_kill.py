"""Kills the real `llamafactory-ext detect` again and again over a plant's folder; the end must be the same bytes.

    python tests/resilience/detect_kill.py [FOLDER] [--model DIR] [--files 300] [--kills 10]

Without --model the demo's random model answers: its answers break off, which is all the same to what is tested here.
Needs some minutes on two cores. Exit status 1: bytes differ, or a series is neither answered nor named.
"""

import argparse
import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers_detect import results, write_series


def make_plant(folder: Path, files: int) -> set[str]:
    """Writes files of every kind; returns the series that can be read."""
    rng, readable = np.random.default_rng(0), set()
    times = pd.date_range("2025-03-01", periods=60, freq="min")
    for number in range(files):
        path, kind = folder / f"{number % 7}" / f"f{number:03}.csv", number % 10
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == 7:  # a column a sensor
            names = [f"w{number:03}_{column}" for column in range(3)]
            pd.DataFrame({"time": times, **{name: rng.random(60).round(3) for name in names}}).to_csv(
                path, index=False
            )
        elif kind == 8:  # long
            names = [f"l{number:03}_{tag}" for tag in range(2)]
            parts = [pd.DataFrame({"time": times, "tag": tag, "value": rng.random(60).round(3)}) for tag in names]
            pd.concat(parts).to_csv(path, index=False)
        elif kind == 9:
            names = []
            bad = ("", "a,b\nx,y\n", "time,value\n2025-01-01,1\n2025-01-03,2\n2025-01-02,3\n", "time,value\n\x00\x01")
            path.write_text(bad[number // 10 % len(bad)])
        else:
            names = [write_series(path, int(rng.integers(20, 150)), number).stem]
        readable |= set(names)
    return readable


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--files", type=int, default=300)
    parser.add_argument("--kills", type=int, default=10)
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="detect-kill-"))
    readable = make_plant(folder / "plant", given.files)
    model = given.model
    if model is None:
        subprocess.run([sys.executable, "-m", "llamafactory_ext", "demo", str(folder / "demo")], check=True)
        model = folder / "demo" / "model"
    command = [sys.executable, "-m", "llamafactory_ext", "detect", str(folder / "plant"), "--model", str(model)]
    command += ["--window", "64", "--stride", "48", "--max-new-tokens", "48", "--mask", "--out"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    start = time.monotonic()
    subprocess.run([*command, str(folder / "whole")], env=environment, capture_output=True, check=False)
    print(f"undisturbed: {time.monotonic() - start:.0f} s")
    journal, kills, rng = folder / "killed" / "journal.jsonl", 0, random.Random(0)
    while True:
        process = subprocess.Popen(
            [*command, str(folder / "killed")], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        before = journal.stat().st_size if journal.exists() else 0
        while process.poll() is None and kills < given.kills:
            if journal.exists() and journal.stat().st_size > before:
                time.sleep(rng.random() * 0.2)
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        if process.wait() != -signal.SIGKILL:
            break
        kills += 1
        print(f"killed {kills} times, {journal.stat().st_size:,} bytes in the journal")
    same = results(folder / "whole") == results(folder / "killed")
    known = {row["series"] for row in _rows(folder / "whole" / "detections.csv")}
    failed = _rows(folder / "whole" / "failed.csv")
    lost = readable - known - {row["series"] for row in failed}
    broken = {row["file"] for row in failed if not row["series"]}
    print(f"{kills} kills, bytes {'equal' if same else 'DIFFER'}; {len(readable)} series, {len(lost)} lost; ", end="")
    print(f"{len(broken)} files named as unreadable")
    if same and not lost and given.folder is None:
        shutil.rmtree(folder)
    return 0 if same and not lost and kills == given.kills else 1


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    sys.exit(main())
