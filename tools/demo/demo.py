"""Makes everything a first training run needs, without a download: a tiny ChatTS model and GDSH-like data.

Two commands from nothing to a trained model:

    python tools/demo/demo.py
    llamafactory-cli train yaml/cpu_demo.yaml
"""

import argparse
import sys
from pathlib import Path

from demo_data import write_data
from demo_folder import refuse_foreign, write_and_tell
from demo_model import Family, write_model


def write_demo(path: Path, seed: int = 0, family: Family = "qwen2") -> None:
    """Write `path`/data and `path`/model; raise ForeignFolderError if one of them is somebody else's."""
    for part in ("data", "model"):
        refuse_foreign(path / part)
    write_model(path / "model", seed, family)
    write_data(path / "data", seed)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python tools/demo/demo.py",
        description=(
            "Write DIR/model, a tiny ChatTS checkpoint with random weights, and DIR/data, a made-up data set "
            "that looks like GDSH's: annotations in data/json, one CSV a sensor in data/timeseries. "
            "Both are replaced if an earlier run made them, and left alone otherwise."
        ),
        epilog="Then train on it: llamafactory-cli train yaml/cpu_demo.yaml",
    )
    parser.add_argument("dir", nargs="?", type=Path, default=Path("demo"), metavar="DIR", help="default: demo")
    parser.add_argument("--seed", type=int, default=0, help="another one, other series and weights; default: 0")
    parser.add_argument(
        "--family",
        choices=("qwen2", "qwen3"),
        default="qwen2",
        help="the model's make: qwen2 as ChatTS-14B, qwen3 as ChatTS-8B; default: qwen2",
    )
    arguments = parser.parse_args()
    status = write_and_tell(lambda: write_demo(arguments.dir, arguments.seed, arguments.family), arguments.dir)
    if status:
        return status
    if arguments.dir == Path("demo"):
        print("Train on it: llamafactory-cli train yaml/cpu_demo.yaml")
    else:
        print(
            "Train on it: llamafactory-cli train yaml/cpu_demo.yaml "
            f"model_name_or_path={arguments.dir / 'model'} dataset_dir={arguments.dir / 'data'}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
