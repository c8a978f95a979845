"""Makes what the full demo needs, without a download: a small ChatTS with random weights, and many thousand series.

python tools/demo/demo_full.py
llamafactory-cli train yaml/cpu_demo_full.yaml
"""

import argparse
import sys
from pathlib import Path

from demo_folder import refuse_foreign, write_and_tell
from demo_full_data import LENGTH, make_corpus, write_data
from demo_model import Size, write_model


# As large as two CPU cores teach in less than half an hour. Weights that keep the size of what passes through them:
# with the published 0.02 the encoder of this width would start with next to nothing at its end.
SIZE = Size(width=128, layers=4, heads=4, key_value_heads=2, max_length=2 * LENGTH, deviation=0.08)


def write_demo(path: Path, seed: int = 0, training: int = 60_000, validation: int = 500) -> None:
    """Write `path`/data and `path`/model; raise ForeignFolderError if one of them is somebody else's."""
    for part in ("data", "model"):
        refuse_foreign(path / part)
    write_model(path / "model", seed, size=SIZE, corpus=make_corpus(seed))
    write_data(path / "data", seed, training, validation)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python tools/demo/demo_full.py",
        description=(
            "Write DIR/model, a small ChatTS checkpoint with random weights, and DIR/data, made-up series with their "
            "anomalies: train.jsonl, validation.jsonl of other points, and exchanged.jsonl, the control. "
            "Both are replaced if an earlier run made them, and left alone otherwise."
        ),
        epilog="Then train on it: llamafactory-cli train yaml/cpu_demo_full.yaml",
    )
    parser.add_argument(
        "dir", nargs="?", type=Path, default=Path("demo/full"), metavar="DIR", help="default: demo/full"
    )
    parser.add_argument("--seed", type=int, default=0, help="another one, other series and weights; default: 0")
    parser.add_argument("--training", type=int, default=60_000, metavar="N", help="series to train on; default: 60000")
    parser.add_argument("--validation", type=int, default=500, metavar="N", help="held-out series; default: 500")
    arguments = parser.parse_args()
    return write_and_tell(
        lambda: write_demo(arguments.dir, arguments.seed, arguments.training, arguments.validation), arguments.dir
    )


if __name__ == "__main__":
    sys.exit(main())
