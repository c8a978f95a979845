"""Puts random faults into the core, one at a time, and says which of them the tests do not notice.

python tests/resilience/faults.py --count 100 --seed 1 --out faults.json

Drawn alike from all places of the core where one of these can be done: a comparison turned round or off by its limit,
`and` for `or`, a `not` left out, a whole number off by one, `+` for `-`, a statement dropped (a call, a raise, an
addition, an `if` without `else`). Docstrings, messages and annotations are no such places. The tests are those of the
module's own part, those that bear its name first, then those of the parts that use it; the first red one ends the
search. Works on a copy of the checkout; what stands in --out already is not done again. --share 1/2 and, with another
--out, 2/2 do a half each, side by side.
"""

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "llamafactory_ext"
PREPARE = [f"tests/toolbox/{path.name}" for path in sorted((ROOT / "tests/toolbox").glob("test_prepare_*.py"))]
TESTS = {
    "gdsh": ["tests/gdsh", *PREPARE, "tests/data", "tests/hostile"],
    "series.py": ["tests/gdsh", "tests/data", "tests/model"],
    "data": ["tests/data", "tests/toolbox/test_check_tool.py", "tests/training/test_options.py", "tests/hostile"],
    "model": ["tests/model", "tests/hostile/test_hostile_checkpoints.py", "tests/training"],
    "training": ["tests/training", "tests/model"],
    "serving/prompt.py": ["tests/serving"],
    "toolbox/prepare": PREPARE,
    "toolbox/plan": [f"tests/toolbox/{path.name}" for path in sorted((ROOT / "tests/toolbox").glob("test_plan_*.py"))],
    "toolbox/evaluate": [
        f"tests/toolbox/{path.name}"
        for pattern in ("test_evaluate_*.py", "test_compare.py")
        for path in sorted((ROOT / "tests/toolbox").glob(pattern))
    ],
}
SWAPS = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==", ast.In: "not in",
    ast.NotIn: "in", ast.Is: "is not", ast.IsNot: "is",
}  # fmt: skip
LIMIT = 1200
"""Seconds of tests after which a fault counts as noticed: it made something endless."""


@dataclass(frozen=True)
class Fault:
    """One change of the text of a file."""

    file: str
    line: int
    what: str
    start: int
    end: int
    text: str


def faults_of(path: Path, file: str) -> Iterator[Fault]:
    """Yields every fault that can be put into a file."""
    source = path.read_text("utf-8")
    data = source.encode()
    starts = [0]
    for line in data.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def place(line: int, column: int) -> int:
        return starts[line - 1] + column

    def begin(node: ast.expr | ast.stmt) -> int:
        return place(node.lineno, node.col_offset)

    def finish(node: ast.expr | ast.stmt) -> int:
        return place(node.end_lineno or node.lineno, node.end_col_offset or 0)

    def between(left: ast.expr, right: ast.expr, text: str, what: str) -> Iterator[Fault]:
        low, high = finish(left), begin(right)
        old = data[low:high].decode()
        if old.count(what) == 1 and "#" not in old:
            at = low + len(old[: old.index(what)].encode())
            yield Fault(file, left.lineno, f"{what} -> {text}", at, at + len(what.encode()), text)

    for node in _code(ast.parse(source)):
        match node:
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                names = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}
                names |= {ast.In: "in", ast.NotIn: "not in", ast.Is: "is", ast.IsNot: "is not"}
                yield from between(left, right, SWAPS[type(op)], names[type(op)])
            case ast.BoolOp(op=op, values=[left, right, *_]):
                old, new = ("and", "or") if isinstance(op, ast.And) else ("or", "and")
                yield from between(left, right, new, old)
            case ast.BinOp(left=left, op=ast.Add() | ast.Sub() as op, right=right):
                old, new = ("+", "-") if isinstance(op, ast.Add) else ("-", "+")
                yield from between(left, right, new, old)
            case ast.UnaryOp(op=ast.Not(), operand=inner):
                yield Fault(file, node.lineno, "not left out", begin(node), begin(inner), "")
            case ast.Constant(value=int() as number) if not isinstance(number, bool):
                yield Fault(file, node.lineno, f"{number} -> {number + 1}", begin(node), finish(node), str(number + 1))
            case ast.Expr(value=ast.Call()) | ast.Raise() | ast.AugAssign() | ast.If(orelse=[]):
                kind = type(node).__name__
                yield Fault(file, node.lineno, f"{kind} dropped", begin(node), finish(node), "pass")


def _code(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but annotations, decorators and the texts of messages."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, ast.JoinedStr):
                yield child
                yield from _code(child)


def core() -> list[str]:
    """Returns the files that faults are put into, relative to the package."""
    found = []
    for part in TESTS:
        path = ROOT / PACKAGE / part
        found += [path] if path.is_file() else sorted(path.rglob("*.py"))
    return [path.relative_to(ROOT / PACKAGE).as_posix() for path in found]


def is_noticed(copy: Path, fault: Fault) -> str:
    """Returns the first red test, or nothing."""
    path = copy / PACKAGE / fault.file
    good = path.read_bytes()
    path.write_bytes(good[: fault.start] + fault.text.encode() + good[fault.end :])
    part = next(part for part in TESTS if fault.file.startswith(part))
    named = sorted(path.relative_to(copy) for path in (copy / "tests").rglob(f"test_*{Path(fault.file).stem}*.py"))
    environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header"]
    try:
        done = subprocess.run(
            [*command, *map(str, named), *TESTS[part]],
            cwd=copy, env=environment, capture_output=True, text=True, timeout=LIMIT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "timeout"
    finally:
        path.write_bytes(good)
    if done.returncode == 0:
        return ""
    red = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return red[0][:200] if red else f"exit status {done.returncode}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", default="1/1", metavar="K/N")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    given = parser.parse_args()
    missing = [path for paths in TESTS.values() for path in paths if not (ROOT / path).exists()]
    if missing:
        parser.error(f"no tests {', '.join(missing)}: correct TESTS")
    places = [fault for file in core() for fault in faults_of(ROOT / PACKAGE / file, file)]
    share, shares = map(int, given.share.split("/"))
    drawn = random.Random(given.seed).sample(places, given.count)[share - 1 :: shares]
    done = json.loads(given.out.read_text("utf-8")) if given.out.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv*", "saves", "__pycache__"))
        for fault in drawn[len(done) :]:
            done.append({**asdict(fault), "noticed": is_noticed(copy, fault)})
            given.out.write_text(json.dumps(done, ensure_ascii=False, indent=1), "utf-8")
            print(f"{fault.file}:{fault.line}: {fault.what}: {done[-1]['noticed'] or 'NOT NOTICED'}", flush=True)
    caught = sum(bool(one["noticed"]) for one in done)
    print(f"{caught} of {len(done)} noticed, drawn of {len(places)} places")


if __name__ == "__main__":
    main()
