"""Hostile files of full size: each is read, or refused in words, in a process of its own whose time and memory count.

    python tests/resilience/hostile.py                    # all of them: about 8 GB of disk, one file at a time
    python tests/resilience/hostile.py --only csv json    # those whose name begins so
    python tests/resilience/hostile.py --scale 0.01       # smaller ones

Prints a row for each: what was tried, how it ended, seconds, peak of memory beyond that of an idle process. Exit
status 1 where a process crashed, hung, raised anything but a named fault, or went beyond its limit of memory.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


GIB = 1 << 30
GOOD = b'{"input": "<ts><ts/>", "output": "yes", "timeseries": [[1.0]]}\n'
ANNOTATION = b'{"image": "a.jpg", "conversations": [{"from": "user", "value": "%s"}]}'
PREDICTION = b'{"prompt": "[offset=0|scaling=1|length=50|max=1|min=1|left=1|right=1]", "predict": %s, "label": "[]"}\n'

READERS = {
    "csv": "from llamafactory_ext.gdsh import read_series; print(len(read_series(path).values), 'points')",
    "json": "from llamafactory_ext.gdsh import read_annotations as read; print(sum(1 for _ in read(path, messages="
    "'conversations', images='image', role_tag='from', content_tag='value', system=None)), 'records')",
    "predictions": "from llamafactory_ext.toolbox.evaluate.predictions import read_predictions as read; "
    "from llamafactory_ext.toolbox.evaluate.scoring import evaluate; print(len(evaluate(read(path), None).records), "
    "'records')",
    "answer": "from llamafactory_ext.gdsh.readings import read_answer; "
    "print(read_answer(path.read_text(), salvage=True).form)",
    "request": "from llamafactory_ext.serving.sources import SourceError, read_source; "
    "print(len(read_source(path.read_text(), path.parent).values), 'points')",
    "adapter": "from llamafactory_ext.model.adapters import check_adapter; check_adapter(str(path.parent)); "
    "print('ok')",
    "weights": "from types import SimpleNamespace as N; from llamafactory_ext.model.weights import check_weights; "
    "check_weights(N(num_hidden_layers=2), path.parent); print('ok')",
    "tokens": "from llamafactory_ext.gdsh import refuse_control_tokens; refuse_control_tokens(path.read_text()); "
    "print('text')",
    "chatts": "from types import SimpleNamespace as N; from llamafactory_ext.data.normalise import *; "
    "a = N(**dict.fromkeys('query history system tools chosen rejected kto_tag images videos audios'.split()), "
    "prompt='input', response='output', timeseries='timeseries'); "
    "print('to Arrow' if arrow_may_read(path) else f'{sum(1 for _ in chatts_lines(a, path))} records')",
}


@dataclass(frozen=True)
class Attack:
    """One file: what it is, how it is written, and what its reading may take at most, in MiB."""

    name: str
    write: Callable[[Path, float], None]
    memory: int
    expected: str = "refused"


def repeated(start: bytes, unit: bytes, end: bytes, size: float) -> Callable[[Path, float], None]:
    """Returns a writer of ``start``, ``unit`` as often as makes ``size`` bytes, and ``end``."""

    def write(path: Path, scale: float) -> None:
        count = max(1, int(size * scale / len(unit)))
        many = max(1, (1 << 24) // len(unit))
        with path.open("wb") as file:
            file.write(start)
            for _ in range(count // many):
                file.write(unit * many)
            file.write(unit * (count % many) + end)

    return write


def sparse(size: float) -> Callable[[Path, float], None]:
    """Returns a writer of a file that has this size and takes no room: NUL from end to end."""

    def write(path: Path, scale: float) -> None:
        path.touch()
        os.truncate(path, int(size * scale))

    return write


def columns(path: Path, scale: float) -> None:
    """A million columns, and ten rows of them."""
    count = int(1e6 * scale)
    header = ",".join(f"c{number}" for number in range(count))
    path.write_text(f"{header},value\n" + f"{'1,' * count}1\n" * 10)


MANY = json.dumps(json.dumps([{"interval": [i % 50, i % 50], "type": "a"} for i in range(20_000)])).encode()
HEAD = b",date,category,value\n"
LORA = b'{"peft_type": "LORA", "target_modules": ["q_proj"]'
NAMES = {"csv": "a.csv", "chatts": "a.jsonl", "predictions": "a.jsonl", "adapter": "adapter_config.json"}
NAMES |= {"weights": "model.safetensors.index.json"}
ATTACKS = (
    Attack("csv: 2 GB, one line", repeated(HEAD + b"0,", b"1", b"\n", 2e9), 400),
    Attack("csv: 2 GB of nothing (sparse)", sparse(2e9), 400),
    Attack("csv: 100 GB of nothing (sparse)", sparse(1e11), 400),
    Attack("csv: 2 GB of good rows", repeated(HEAD, b"0,2025-01-01 00:00:00,PV,1.5\n", b"", 2e9), 400),
    Attack("csv: 60 MB of good rows", repeated(HEAD, b"0,2025-01-01 00:00:00,PV,1.5\n", b"", 6e7), 700, "read"),
    Attack("csv: 60 MB of rows with quotes", repeated(HEAD, b'0,"a, b",PV,1.5\n', b"", 6e7), 1500, "read"),
    Attack("csv: 60 MB with 4-byte signs", repeated(HEAD, "0,😀,异,1.5\n".encode(), b"", 6e7), 1500, "read"),
    Attack("csv: 60 MB, an open quote", repeated(HEAD + b'0,"', b"a\n", b"", 6e7), 700),
    Attack("csv: 60 MB of line ends", repeated(HEAD, b"\n", b"", 6e7), 400),
    Attack("csv: 60 MB of commas", repeated(HEAD, b",", b"", 6e7), 700),
    Attack("csv: a million columns", columns, 400),
    Attack("json: 2 GB, one text", repeated(b'[{"image": "', b"a", b'"}]', 2e9), 1200),
    Attack("json: 2 GB, one text, a record a line", repeated(b'{"image": "', b"a", b'"}\n', 2e9), 1200),
    Attack("json: 2 GB of blanks", repeated(b"[", b" ", b"]", 2e9), 400, "read"),
    Attack("json: 2 GB of brackets", repeated(b"[", b"[", b"]", 2e9), 400),
    Attack("json: 2 GB of numbers in one record", repeated(b'[{"image": [', b"1,", b"1]}]", 2e9), 4000),
    Attack("json: 0.2 GB of records", repeated(b"[", ANNOTATION % b"x" + b",", ANNOTATION + b"]", 2e8), 400, "read"),
    Attack("json: nested 10 million deep", repeated(b"[", b'{"a":', b"1", 5e7), 400),
    Attack("chatts: nested 10 million deep", repeated(GOOD + b'{"input":', b"[", b"\n", 1e7), 400),
    Attack("chatts: 2 GB, one line", repeated(GOOD + b'{"input": "', b"a", b'"}\n', 2e9), 1200),
    Attack("chatts: 2 GB of good records", repeated(b"", GOOD, b"", 2e9), 400, "to Arrow"),
    Attack("chatts: 0.2 GB of good records, a list", repeated(b"[", GOOD[:-1] + b",", GOOD + b"]", 2e8), 400, "read"),
    Attack("predictions: 2 GB, one line", repeated(b'{"prompt": "', b"a", b'"}\n', 2e9), 400),
    Attack("predictions: 20,000 intervals", repeated(b"", PREDICTION % MANY, b"", 3 * len(MANY)), 1500, "read"),
    Attack("answer: a million nested minus signs", repeated(b"[", b"-", b"1]", 1e6), 1500, "unreadable"),
    Attack("answer: a million ones in Python's form", repeated(b"['a',", b"1,", b"1]", 1e6), 1500, "unreadable"),
    Attack("answer: a million open quotes", repeated(b"x", b'\\"', b"", 1e6), 400, "unreadable"),
    Attack("answer: 1 MB that breaks off", repeated(b"[", b'{"a":[', b"", 1e6), 400, "unreadable"),
    Attack("request: a path of 600 KB", repeated(b"", b"x/", b"", 6e5), 100),
    Attack("request: 8 MB of percent signs", repeated(b"data:text/csv,", b"%", b"", 8e6), 150),
    Attack("request: 32 MB of base64", repeated(b"data:text/csv;base64,", b"AAAA", b"", 3.2e7), 150),
    Attack("request: 12 MB of escapes", repeated(b"data:application/json,[", b"%31,", b"1]", 8e6), 400, "read"),
    Attack("adapter: patterns", repeated(LORA + b', "rank_pattern":{', b'"a": 8,', b'"b": 8}}', 8e6), 150, "read"),
    Attack("adapter: 32 MB of a pattern", repeated(LORA + b', "exclude_modules": "', b"(.*)*", b'"}', 3.2e7), 300),
    Attack("adapter: nested 10 million deep", repeated(LORA + b', "x": ', b"[", b"", 1e7), 150),
    Attack("weights: an index of names", repeated(b'{"weight_map": {', b'"a": "../x", ', b'"b": 1}}', 1e7), 300),
    Attack("weights: an index nested 10 million deep", repeated(b'{"weight_map": ', b"[", b"", 1e7), 150),
    Attack("tokens: 20 MB of backslashes", repeated(b"", b"\\", b"u003c", 2e7), 300, "read"),
    Attack("tokens: 20 MB of escapes", repeated(b"", b"\\u003c|im_", b"", 2e7), 600, "read"),
    Attack("answer: 200 MB", repeated(b"[", b"1,", b"1]", 2e8), 1500, "unreadable"),
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", metavar="NAME", help="beginnings of names; default: all")
    parser.add_argument("--scale", type=float, default=1.0, metavar="X", help="of the files' sizes; default: 1")
    parser.add_argument("--timeout", type=int, default=600, metavar="S", help="seconds for one file; default: 600")
    options = parser.parse_args()
    chosen = [one for one in ATTACKS if not options.only or one.name.startswith(tuple(options.only))]
    idle = {kind: _run(READERS[kind].partition("print(")[0] + "pass", Path(), options.timeout)[2] for kind in READERS}
    lost = sum(not _try(attack, options, idle) for attack in chosen)
    print(f"{len(chosen)} tried, {len(chosen) - lost} survived, {lost} lost")
    return 1 if lost else 0


def _try(attack: Attack, options: argparse.Namespace, idle: dict[str, int]) -> bool:
    kind = attack.name.partition(":")[0]
    folder = Path(tempfile.mkdtemp(prefix="hostile-"))
    path = folder / NAMES.get(kind, "a.json")
    try:
        attack.write(path, options.scale)
        status, said, peak, seconds = _run(_reading(kind), path, options.timeout)
    finally:
        shutil.rmtree(folder)
    memory = peak - idle[kind]
    result = "refused" if status == 3 else said.split()[-1] if kind == "answer" and said else "read"
    result = "to Arrow" if "to Arrow" in said else result
    good = status in (0, 3) and memory <= attack.memory and (result == attack.expected or options.scale != 1)
    shown = said.replace(str(path), path.name).replace("|", r"\|")[:150]
    print(f"| {attack.name} | {result}: {shown} | {seconds:.1f} | {memory} | {'ok' if good else 'LOST'} |", flush=True)
    return good


def _reading(kind: str) -> str:
    code = READERS[kind].replace("; ", "\n    ")
    return (
        "import sys\nfrom pathlib import Path\nfrom llamafactory_ext.gdsh import GdshError\n"
        "from llamafactory_ext.toolbox.evaluate.predictions import EvaluateError\n"
        f"path = Path(sys.argv[1])\ntry:\n    {code}\n"
        "except (GdshError, EvaluateError) as err:\n    print(err)\n    sys.exit(3)\n"
        "except ValueError as err:\n    print(err)\n"
        "    sys.exit(3 if str(path) in str(err) or type(err).__name__ == 'SourceError' else 1)\n"
    )


def _run(code: str, path: Path, timeout: int) -> tuple[int, str, int, float]:
    """Returns exit status (below 0: ended by a signal), the last line said, peak of memory in MiB, and seconds."""
    started = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=said, stderr=said, env=environment)
        timer = threading.Timer(timeout, process.kill)
        timer.start()
        _, status, usage = os.wait4(process.pid, 0)  # of this process alone
        timer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        words = said.read().decode(errors="replace").strip().splitlines()
    return process.returncode, words[-1] if words else "", usage.ru_maxrss >> 10, time.monotonic() - started


if __name__ == "__main__":
    sys.exit(main())
