"""Kills the real `llamafactory-ext detect` again and again over a plant's folder; the end must be the same bytes.

    python tests/resilience/detect_kill.py [FOLDER] [--model DIR] [--files 300] [--kills 10]

The demo's model answers, unless another one is named. Most kills come while it asks, the last third while the results
are written. Needs some minutes on two cores. Exit status 1: bytes differ, a file or series is neither answered nor
named, or something is left behind.
"""

import argparse
import csv
import json
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


MINI = Path(__file__).parents[2] / "llamafactory_ext" / "toolbox" / "demo" / "mini"


def make_plant(folder: Path, files: int) -> tuple[set[str], set[str]]:
    """Writes files of every kind; returns the series that can be read, and the names of files that can't."""
    rng, readable, broken = np.random.default_rng(0), set(), set()
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
            broken.add(path.name)
            bad = ("", "a,b\nx,y\n", "time,value\n2025-01-01,1\n2025-01-03,2\n2025-01-02,3\n", "time,value\n\x00\x01")
            path.write_text(bad[number // 10 % len(bad)])
        else:
            names = [write_series(path, int(rng.integers(20, 150)), number).stem]
        readable |= set(names)
    return readable, broken


def kill_until_done(command: list[str], environment: dict[str, str], out: Path, kills: int) -> int:
    """Gives the command again until it ends; kills it so many times, and returns how often that was."""
    journal, killed, rng = out / "journal.jsonl", 0, random.Random(0)
    while True:
        writes = killed >= kills - kills // 3
        before = _size(journal)
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and killed < kills:
            if any(out.glob(".detections.csv-*.tmp")) if writes else _size(journal) > before:
                time.sleep(rng.random() * 0.2)
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        if process.wait() != -signal.SIGKILL:
            return killed
        killed += 1
        left = len(list(out.rglob(".*.tmp")))
        print(f"killed {killed} times, {_size(journal):,} bytes in the journal, {left} drafts left", flush=True)
        if writes:  # a run which goes on begins by removing them, and would be taken for one that writes
            for path in out.glob(".detections.csv-*.tmp"):
                path.rename(path.with_name(path.name.replace("detections.csv", "failed.csv")))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--model", type=Path, default=MINI)
    parser.add_argument("--files", type=int, default=300)
    parser.add_argument("--kills", type=int, default=10)
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="detect-kill-"))
    plant, whole, killed = folder / "plant", folder / "whole", folder / "killed"
    readable, broken = make_plant(plant, given.files)
    command = [sys.executable, "-m", "llamafactory_ext", "detect", str(plant), "--model", str(given.model)]
    command += ["--window", "64", "--stride", "48", "--max-new-tokens", "160", "--mask", "--out"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    start = time.monotonic()
    subprocess.run([*command, str(whole)], env=environment, capture_output=True, check=False)
    print(f"undisturbed: {time.monotonic() - start:.0f} s", flush=True)
    kills = kill_until_done([*command, str(killed)], environment, killed, given.kills)
    same = results(whole) == results(killed)
    left = [str(path) for path in killed.rglob(".*.tmp")]
    answers = [json.loads(line) for line in (whole / "detections.jsonl").read_text("utf-8").splitlines()]
    answered = {one["series"] for one in answers if all(part["text"] for part in one["answers"])}
    parts = sum(bool(one["faults"]) for one in answers)
    failed = _rows(whole / "failed.csv")
    lost = readable - answered
    unnamed = broken - {Path(row["file"]).name for row in failed}
    print(f"{kills} kills, bytes {'equal' if same else 'DIFFER'}, {len(left)} drafts left; {given.files} files: ")
    print(f"{len(answered)} of {len(readable)} readable series answered, {parts} of them with a part that is named;")
    print(f"{len(broken) - len(unnamed)} of {len(broken)} broken files named")
    well = same and not (lost or unnamed or left) and answered <= readable and kills == given.kills
    if well and given.folder is None:
        shutil.rmtree(folder)
    return 0 if well else 1


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    sys.exit(main())
