"""Makes a ChatTS checkpoint of a plain Qwen."""

import argparse
from pathlib import Path

from llamafactory_ext.errors import FaultError
from llamafactory_ext.toolbox.cli import terminal


SIZES = {"patch_size": 8, "layers": 5, "embedding_dim": 16, "max_length": 32768}

DESCRIPTION = """\
Makes a ChatTS of QWEN, the folder of a Qwen2, Qwen2.5 or Qwen3 in safetensors: adds the tokens <ts> and <ts/>, the
`ts` section of config.json and an encoder for series, in the published layout. No weight of QWEN is changed: it
answers texts without series as before. The encoder is random, or another ChatTS's: train it on series before use.
"""

EPILOG = """\
examples:
  an encoder of random weights:
    llamafactory-ext graft Qwen2.5-0.5B-Instruct --out chatts-0.5b
  the encoder of another ChatTS, made to fit this model's width:
    llamafactory-ext graft Qwen3-1.7B --out chatts-1.7b --encoder-from ChatTS-8B

exit status: 0 written, 1 it can't be made or written, 2 wrong usage, 130 interrupted
"""


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        prog="llamafactory-ext graft",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("qwen", type=Path, metavar="QWEN", help="folder of the language model")
    add("--out", type=Path, required=True, metavar="DIR", help="a new or empty folder for the ChatTS")
    add("--encoder-from", type=Path, metavar="DIR", help="folder of a ChatTS whose encoder, and its sizes, are taken")
    number = terminal.positive
    add("--patch-size", type=number, metavar="N", help=f"points a patch; default: {SIZES['patch_size']}")
    add("--layers", type=number, metavar="N", help=f"of the encoder; default: {SIZES['layers']}")
    add("--embedding-dim", type=number, metavar="N", help=f"of a position; default: {SIZES['embedding_dim']}")
    add("--max-length", type=number, metavar="N", help=f"points of a series; default: {SIZES['max_length']}")
    add("--seed", type=int, default=0, help="another one, other random weights; default: 0")
    return parser


@terminal.stops_in_one_line()
def main() -> int:
    parser = make_parser()
    given = parser.parse_args()
    chosen = {name: value for name in SIZES if (value := getattr(given, name)) is not None}
    if given.encoder_from and chosen:
        option = f"--{next(iter(chosen)).replace('_', '-')}"
        parser.error(f"{option} can't be chosen with --encoder-from: an encoder comes with its sizes")
    from llamafactory_ext.toolbox.grafting.writing import graft, make_section

    try:
        done = graft(given.qwen, given.out, make_section(**{**SIZES, **chosen}), given.seed, given.encoder_from)
    except ValueError as error:  # of transformers', some in several lines
        raise FaultError(" ".join(str(error).split())) from error
    start, end = done.ids
    rows = (
        f"{done.added_rows} rows added to embedding and head" if done.added_rows else "in free rows of the embedding"
    )
    terminal.say(f"Wrote {given.out}: ChatTS over {done.family.capitalize()}; <ts> is {start}, <ts/> {end}, {rows}.")
    width, count = done.section["hidden_size"], f"{done.encoder_weights:,} weights"
    if done.taken_dtype not in (None, done.dtype):
        count += f" (cast from {done.taken_dtype} to {done.dtype})".replace("torch.", "")
    if done.taken_width is None:
        terminal.say(f"Encoder: {count}, random (Xavier, seed {given.seed}): train it on series before use.")
    elif done.difference is None:
        terminal.say(
            f"Encoder: {count} of {given.encoder_from}, width {width} in both; train it for this language model."
        )
    else:
        kept = "all units kept" if width > done.taken_width else f"the {width} largest units a layer kept"
        terminal.say(
            f"Encoder: {count}, of {given.encoder_from}, fitted from width {done.taken_width} to {width}: {kept}, "
            f"the last layer projected at random (seed {given.seed}). On random walks its outputs differ from the "
            f"projected ones of the original by {done.difference:.1%} of their size; train it for this language model."
        )
    return terminal.DONE
