"""Makes everything a first run needs, without a download: a small ChatTS model and GDSH-like data."""

import argparse
from pathlib import Path

from llamafactory_ext.toolbox.cli import terminal


DESCRIPTION = """\
Writes DIR/mini, a small ChatTS that reads series, and DIR/plant, GDSH files of a made-up plant that counts as
anomalies less than mini does: values that freeze and bursts of noise, but no spikes. With --tiny DIR/model, a tiny
checkpoint with random weights, and DIR/data, a few records with every habit of GDSH's files: for trying out what
needs no answers.

A folder is replaced if an earlier call made it; any other is left alone and named.
"""

EPILOG = """\
examples:
  in an empty folder, from nothing to an adapter that knows the plant:
    llamafactory-ext init
    llamafactory-ext demo
    llamafactory-ext prepare demo/plant --out demo/plant.jsonl --merge-points --compact-answers --split 0.12 \\
        --register demo/dataset_info.json
    llamafactory-cli train yaml/2080ti_qlora.yaml model_name_or_path=demo/mini dataset_dir=demo dataset=plant \\
        output_dir=saves/demo_adapter fp16=false per_device_train_batch_size=16 gradient_accumulation_steps=1 \\
        lora_rank=16 lora_alpha=32 lora_target=all learning_rate=3e-3 num_train_epochs=8

exit status: 0 written, 1 a folder in the way, 2 wrong usage, 130 interrupted
"""


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        prog="llamafactory-ext demo",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("dir", nargs="?", type=Path, metavar="DIR", default=Path("demo"), help="default: demo")
    add("--seed", type=int, default=0, help="another one, another plant (or weights); default: 0")
    add("--tiny", action="store_true", help="random weights, and records with every habit of GDSH's files")
    add(
        "--family",
        choices=("qwen2", "qwen3"),
        default="qwen2",
        help="with --tiny the model's make: qwen2 as ChatTS-14B, qwen3 as ChatTS-8B; default: qwen2",
    )
    return parser


@terminal.stops_in_one_line()
def main() -> int:
    given = make_parser().parse_args()
    model, data = ("model", "data") if given.tiny else ("mini", "plant")
    from llamafactory_ext.toolbox.demo import writing

    if given.tiny:
        writing.write_tiny_demo(given.dir, given.seed, given.family)
    else:
        writing.write_demo(given.dir, given.seed)
    terminal.say(f"Wrote {given.dir / model} and {given.dir / data}.")
    return terminal.DONE
