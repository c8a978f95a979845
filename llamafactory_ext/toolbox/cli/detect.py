"""Finds anomalies in a folder of series with a trained model: intervals at their own rows and times.

llamafactory-ext detect plant/today --model ChatTS-14B --adapter saves/chatts-14b/2080ti_qlora --out night
llamafactory-ext detect plant/today --model merged --out night --window 1024 --stride 512 --mask

Series are cut, thinned and asked about as the adapter was trained (its folder's detect.json, which prepare and
training write); options override. What is finished stays: the same command resumes after a kill, asks about new and
changed series alone, and writes its tables anew.
"""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

from llamafactory_ext.errors import UsageError
from llamafactory_ext.files import refuse_foreign
from llamafactory_ext.series import MARKER
from llamafactory_ext.toolbox.cli.terminal import (
    DONE,
    FAULTS,
    USAGE,
    complain,
    positive,
    print_table,
    say,
    track,
)
from llamafactory_ext.toolbox.detect.engines import ENGINES, Settings, open_engine
from llamafactory_ext.toolbox.detect.manner import Manner, find_manner, with_options
from llamafactory_ext.toolbox.detect.outputs import GENERATOR, PAGE, write_outputs, write_page
from llamafactory_ext.toolbox.detect.pipeline import Options, Report, detect
from llamafactory_ext.toolbox.importing.sources import Reading


_NAMED = 10


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        prog="llamafactory-ext detect",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="exit status: 0 every series answered, 1 some were not (failed.csv names them), 2 wrong usage.",
    )
    parser.add_argument(
        "sources", nargs="+", type=Path, metavar="SOURCE", help="files or folders, as import reads them"
    )
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="a ChatTS checkpoint: the one that was trained on"
    )
    parser.add_argument("--adapter", default="", metavar="DIR", help="the adapter that training wrote")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the answers, of this run alone"
    )
    add = parser.add_argument_group("how series become questions").add_argument
    add("--window", type=int, metavar="N", help="rows of a window; 0: whole series")
    add("--stride", type=int, metavar="M", help="rows from one window's start to the next")
    add("--max-points", type=int, metavar="N", help="thin longer series, or windows, to N points; 0: never")
    add("--prompt", type=Path, metavar="FILE", help=f"the question; its series stands at {MARKER}, or in front")
    add = parser.add_argument_group("how series are read").add_argument
    add("--value-column", default="", metavar="NAME")
    add("--time-column", default="", metavar="NAME")
    add("--tag-column", default="", metavar="NAME", help="of a long table")
    add("--names", default="", choices=("file",), help="series are called after their file and column")
    add = parser.add_argument_group("answers").add_argument
    add("--free", action="store_true", help="do not keep answers to JSON with intervals inside of the series")
    add("--votes", type=positive, default=0, metavar="K", help="confidence from K sampled answers, not probabilities")
    add("--max-new-tokens", type=positive, default=1024, metavar="N", help="of an answer; default: 1024")
    add("--again", action="store_true", help="ask about all series, those answered before, too")
    add("--mask", action="store_true", help="write mask/SERIES.csv as well: 0 or 1 for each row")
    add = parser.add_argument_group("the engine").add_argument
    add("--engine", default="transformers", choices=sorted(ENGINES), help="default: transformers")
    add("--batch", type=positive, default=16, metavar="N", help="questions at a time; default: 16")
    add("--dtype", default="auto", choices=("auto", "float32", "float16", "bfloat16"))
    add("--quantization-bit", type=int, choices=(4, 8), help="load the model in 4 or 8 bit, as it was trained")
    add(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="this share of the series alone, I from 1; shares of one --out add up",
    )
    return parser


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r}: expected I/N, such as 1/4, with I from 1 to N")
    return int(found[1]), int(found[2])


def main() -> int:
    given = make_parser().parse_args()
    try:
        refuse_foreign(given.out / PAGE, GENERATOR, "--out")
        manner, file = find_manner([one for one in (given.adapter, given.model) if one])
        manner = with_options(
            manner,
            window=given.window,
            stride=given.stride,
            max_points=given.max_points,
            prompt=_prompt(given.prompt) if given.prompt else None,
        )
        options = _options(given, manner)
        say(
            f"asked {f'as {file} says' if file else 'in the default manner: there is no detect.json'}: {manner.said()}"
        )
        report = detect(options, lambda: open_engine(options.engine, options.settings), track)
        if options.shard:
            _show(report, f"{given.out}: when all shards are done, the same command without --shard writes the tables")
            return FAULTS if report.failures else DONE
        write_outputs(given.out, report.entries, report.failures, given.mask)
        write_page(given.out, report.entries, report.failures, options.reading, _facts(options, manner))
    except UsageError as err:
        complain(f"error: {err}")
        return USAGE
    except OSError as err:
        complain(f"error: {err.filename or given.out} can't be written: {err.strerror or err}")
        return FAULTS
    _show(report, f"{given.out}: detections.csv, detections.jsonl, failed.csv, {PAGE}")
    return FAULTS if report.failures else DONE


def _options(given: argparse.Namespace, manner: Manner) -> Options:
    settings = Settings(
        model=given.model,
        adapter=given.adapter,
        max_new_tokens=given.max_new_tokens,
        constrained=not given.free,
        dtype=given.dtype,
        quantization_bit=given.quantization_bit,
        batch=given.batch,
    )
    reading = Reading(given.value_column, given.time_column, tag_column=given.tag_column, names=given.names)
    return Options(
        tuple(given.sources),
        given.out,
        settings,
        manner,
        given.engine,
        reading,
        given.votes,
        given.again,
        given.shard,
    )


def _prompt(path: Path) -> str:
    try:
        text = path.read_text("utf-8").strip("\n")
    except (OSError, UnicodeDecodeError) as err:
        raise UsageError(f"--prompt {path} can't be read: {err}") from err
    text = text.replace("<image>", MARKER)
    return text if MARKER in text else f"{MARKER}\n{text}"


def _facts(options: Options, manner: Manner) -> Mapping[str, object]:
    return {
        "model": options.settings.model,
        "adapter": options.settings.adapter or "none",
        "series cut": manner.said(),
        "confidence": f"share of {options.votes} sampled answers that overlap" if options.votes
        else "probability of an interval's own numbers and type, a geometric mean",
    }  # fmt: skip


def _show(report: Report, written: str) -> None:
    rows = [
        ("files", report.files),
        ("series answered now", report.answered),
        ("series answered before, unchanged", report.known),
        ("intervals", sum(len(one.detections) for one in report.entries)),
        ("series with an anomaly", sum(bool(one.detections) for one in report.entries)),
        ("rows without a value, interpolated", sum(one.filled for one in report.entries)),
        ("not answered, or not wholly", len(report.failures)),
    ]
    print_table("Detect", ("", "number"), [row for row in rows if row[1] or row[0] in ("files", "intervals")])
    for one in report.failures[:_NAMED]:
        complain(f"{one.series or one.file}: {one.reason}")
    if len(report.failures) > _NAMED:
        complain(f"... and {len(report.failures) - _NAMED} more, in failed.csv")
    say(written)
