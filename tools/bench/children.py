"""Processes in which the ways of computing are measured, each in one of its own; `bench.py` starts them."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from llamafactory_ext.toolbox.cli.terminal import complain


class Child:
    """One way, in a process that has just been started.

    Arguments:
        row, way: names.
        options: further ones of `one_step.py`.
    """

    def __init__(self, row: str, way: str, options: Sequence[str]) -> None:
        complain(f"{row}: {way} …")
        self.row, self.way = row, way
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - read at the end
        command = [sys.executable, str(Path(__file__).with_name("one_step.py")), row, way, *options]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self._said = ""

    def wait(self) -> None:
        """Waits until it is its turn, or it has ended."""
        assert self._process.stdout is not None
        self._said = self._process.stdout.readline()

    def go_on(self) -> None:
        """Lets it take a step."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has failed, which `found` tells
            self._process.stdin.write("\n")
            self._process.stdin.flush()

    def found(self) -> dict[str, Any]:
        """Returns what `one_step.measure` found, or what went wrong under "error"."""
        said = self._said + self._process.communicate()[0]
        self._errors.seek(0)
        errors = self._errors.read().strip().splitlines()
        self._errors.close()
        if self._process.returncode:
            told = f"exit status {self._process.returncode}: {(errors or ['no word'])[-1]}"
            complain(f"{self.row}, {self.way}: {told}")
            return {"row": self.row, "way": self.way, "error": told}
        found: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
        return found


def run_in_turn(row: str, ways: Sequence[str], steps: int) -> dict[str, dict[str, Any]]:
    """Measures the ways with their timed steps in turn: what else a machine does hits all alike.

    Memory comes first, so that each has it done before the next one starts.
    """
    children = []
    for way in ways:
        children.append(Child(row, way, ["--steps", str(steps), "--in-turn"]))
        children[-1].wait()
    for _ in range(steps):
        for child in children:
            child.go_on()
            child.wait()
    return {child.way: child.found() for child in children}


def run_one_by_one(row: str, options: dict[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
    """Measures the ways, each with its options, one after the other: a card has room for one."""
    return {way: Child(row, way, own).found() for way, own in options.items()}
