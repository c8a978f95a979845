"""Finds anomalies in files of series with a trained model: intervals at their own rows and times.

llamafactory-ext detect plant/today --model ChatTS-14B --adapter saves/chatts-14b/2080ti_qlora --out night
llamafactory-ext detect plant/today --model merged --out night --window 1024 --stride 512 --mask

Series are cut, thinned and asked about as the adapter was trained (detect.json, which prepare writes and training
copies); options override. What is answered stays: the same command goes on after a kill, asks about new and changed
files alone, and writes its tables anew.
"""

import argparse
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from llamafactory_ext.errors import FaultError, GdshError, UsageError
from llamafactory_ext.gdsh.prompts import ASKING, place_markers
from llamafactory_ext.toolbox.cli.terminal import (
    DONE,
    FAULTS,
    INTERRUPTED,
    complain,
    positive,
    print_table,
    progress,
    say,
    stops_in_one_line,
    text_of,
)
from llamafactory_ext.toolbox.detect.engines import ENGINES, SYSTEM, Settings, open_engine
from llamafactory_ext.toolbox.detect.identity import claim, contents, refuse_other
from llamafactory_ext.toolbox.detect.journal import Journal
from llamafactory_ext.toolbox.detect.outputs import MASKS, PAGE, Results, write_results
from llamafactory_ext.toolbox.detect.page import write_page
from llamafactory_ext.toolbox.detect.pipeline import Counts, Options, ask_all, find_files, parse_shard
from llamafactory_ext.toolbox.detect.reading import How
from llamafactory_ext.toolbox.importing.columns import Reading
from llamafactory_ext.toolbox.importing.layout import PROMPTS
from llamafactory_ext.toolbox.prepare.asking import Asking, read_asking
from llamafactory_ext.toolbox.prepare.options import SMALLEST
from llamafactory_ext.toolbox.session.silence import hush


SHOWN = 20
WHOLE, STRIDE = 1024, 768
"""Without a word on how to ask: rows of a window, and from one window's start to the next."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="llamafactory-ext detect",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="exit status: 0 every series answered, 1 some were not (failed.csv names them), 2 wrong usage, "
        "130 interrupted: what was answered stays.",
    )
    add = parser.add_argument
    add("sources", nargs="+", type=Path, metavar="SOURCE", help="files and folders, as import reads them")
    add(
        "--model",
        required=True,
        metavar="DIR",
        help="a ChatTS checkpoint: what was trained on, or a merged one",
    )
    add("--adapter", default="", metavar="DIR", help="the adapter that training wrote")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the answers, of this run alone")
    add = parser.add_argument_group("how series become questions").add_argument
    add("--window", type=int, metavar="N", help="rows of a window; 0: whole series")
    add("--stride", type=int, metavar="M", help="rows from one window's start to the next; default: N")
    add("--points", type=int, metavar="N", help="thin longer series, or windows, to N points; 0: never")
    add("--prompt", type=Path, metavar="FILE", help="the question; <image> stands for the series")
    add = parser.add_argument_group("how series are read").add_argument
    for what in ("value", "time", "tag"):
        add(f"--{what}-column", default="", metavar="NAME", help=f"default: the {what} column is found by looking")
    add("--names", choices=("column", "file"), default="column", help="what series of one file are called after")
    add("--dates", choices=("day-first", "month-first"), default="", help="how dates such as 01/02/2025 are meant")
    add("--timezone", metavar="ZONE", help="of times that name none, e.g. Asia/Shanghai")
    add = parser.add_argument_group("answers").add_argument
    add("--free", action="store_true", help="do not keep answers to JSON with intervals inside of the series")
    add("--votes", type=int, default=0, metavar="K", help="confidence from K sampled answers, not probabilities")
    add("--max-new-tokens", type=positive, default=1024, metavar="N", help="of an answer; default: 1024")
    add("--again", action="store_true", help="ask about all series once more")
    add("--mask", action="store_true", help="write masks/SERIES.csv as well: 0 or 1 for each row")
    add("--drawn", type=int, default=100, metavar="N", help="series that the page draws; default: 100")
    add = parser.add_argument_group("engine and machines").add_argument
    add("--engine", default="transformers", choices=sorted(ENGINES), help="default: transformers")
    add("--batch", type=positive, metavar="N", help="questions at a time; default: 16, with vllm and ray 256")
    add("--set", action="append", default=[], metavar="KEY=JSON", help="a setting of vLLM's LLM, or of ray's actors")
    add("--dtype", default="auto", choices=("auto", "float32", "float16", "bfloat16"))
    add("--quantization-bit", type=int, choices=(4, 8), help="load the model in 4 or 8 bit")
    add("--shard", default="1/1", metavar="I/N", help="the I-th of N shares; without it all are brought together")
    add("--join", nargs="+", type=Path, default=[], metavar="DIR", help="further folders of this run's shares")
    given = parser.parse_args(arguments)
    given.batch = given.batch or (16 if given.engine == "transformers" else 256)
    return given


@stops_in_one_line()
def main() -> int:
    given = parse()
    try:
        hush()
        return _run(given)
    except FloatingPointError as err:
        raise FaultError(str(err)) from err
    except KeyboardInterrupt:
        complain(f"interrupted: what was answered stays in {given.out}; the same command goes on")
        return INTERRUPTED


def _run(given: argparse.Namespace) -> int:
    if given.votes < 0 or given.votes == 1:
        raise UsageError(f"--votes {given.votes}: expected 2 or more, a share of one answer says nothing")
    if given.set and given.engine == "transformers":
        raise UsageError("--set is for engines vllm and ray")
    asking, said = how_to_ask(given)
    settings = _settings(given, asking)
    options = _options(given, asking)
    files = find_files(options)
    run = _describe(given, asking, settings)
    claim(given.out, run)
    for folder in given.join:
        refuse_other(folder, run)
    say(said)
    journal = Journal(given.out, options.shard_name, given.join, given.again)
    try:
        with progress() as bar:
            task = bar.add_task("detecting", total=len(files))
            counts = ask_all(
                options,
                journal,
                cache(lambda: open_engine(given.engine, settings)),
                lambda done, total: bar.update(task, completed=done, total=total),
            )
        if options.shard_name:
            return _show_shard(given, options, counts)
        found = write_results(given.out, counts.files, journal, given.mask, given.drawn)
        write_page(given.out, found, journal, options.how, f"Detections in {', '.join(map(str, given.sources))}")
    finally:
        journal.close()
    _show(counts, found)
    masks = f", {MASKS}/" if (given.out / MASKS).is_dir() else ""
    say(f"{given.out}: detections.csv, detections.jsonl, failed.csv, {PAGE}{masks}")
    return FAULTS if found.failed else DONE


def how_to_ask(given: argparse.Namespace) -> tuple[Asking, str]:
    """Returns how to ask, and a line that says where that comes from.

    Raises:
        UsageError: the file or the options can't be used.
    """
    path = _asking_file(given)
    try:
        asking = Asking(PROMPTS["zh"].replace("<image>", "<ts><ts/>")) if path is None else read_asking(path)
        asking = replace(asking, **_overrides(given, path is None))
    except GdshError as err:
        raise UsageError(str(err)) from err
    window, points = asking.window, asking.points
    cut = f"windows of {window} rows, {asking.stride or window} apart" if window else "whole series"
    cut += f", thinned to {points} points" if points else ""
    if path is None:
        return asking, f"asked by default, {cut}: no {ASKING} beside the adapter or the model says how it was trained"
    more = f"; {', '.join(asking.others)}: trained on as well, and asked otherwise" if asking.others else ""
    return asking, f"asked as {path} says, options first: {cut}{more}"


def _asking_file(given: argparse.Namespace) -> Path | None:
    """An adapter's folder or, of a checkpoint in it, the folder above; else the model's."""
    folders = [Path(one) for one in (given.adapter, given.model) if one]
    places = [place for folder in folders for place in (folder / ASKING, folder.resolve().parent / ASKING)]
    return next((place for place in places if place.is_file()), None)


def _overrides(given: argparse.Namespace, default: bool) -> dict[str, Any]:
    for name, least in (("window", 1), ("stride", 1), ("points", SMALLEST)):
        value = getattr(given, name)
        if value is not None and value != 0 and value < least:
            raise UsageError(f"--{name} {value} is too small; expected {least} or more, or 0 for none")
    found: dict[str, Any] = {}
    if given.window is not None:
        found |= {"window": given.window or None, "stride": given.stride or given.window or None}
    elif default and given.points is None:
        found |= {"window": WHOLE, "stride": STRIDE}
    if given.stride is not None:
        found |= {"stride": given.stride or None}
    if given.points is not None:
        found |= {"points": given.points or None}
    if found.get("stride") and given.window and found["stride"] > given.window:
        raise UsageError(f"--stride {given.stride} does not fit --window {given.window}: rows would be left out")
    if given.prompt:
        try:
            (found["prompt"],), _ = place_markers([text_of(given.prompt, "--prompt").strip()], 1)
        except GdshError as err:
            raise UsageError(f"--prompt {given.prompt}: {err}") from err
    return found


def _settings(given: argparse.Namespace, asking: Asking) -> Settings:
    return Settings(
        model=given.model,
        adapter=given.adapter,
        system=asking.system or SYSTEM,
        max_new_tokens=given.max_new_tokens,
        constrained=not given.free,
        dtype=given.dtype,
        quantization_bit=given.quantization_bit,
        batch=given.batch,
        more=tuple(map(_setting, given.set)),
    )


def _setting(text: str) -> tuple[str, Any]:
    key, found, value = text.partition("=")
    try:
        return key, json.loads(value)
    except ValueError:
        if not (found and key):
            raise UsageError(f"--set {text}: expected KEY=VALUE, e.g. gpu_memory_utilization=0.8") from None
        return key, value


def _options(given: argparse.Namespace, asking: Asking) -> Options:
    names = "file" if given.names == "file" else ""
    reading = Reading(given.value_column, given.time_column, "", given.tag_column, names)
    how = How(reading, given.dates, given.timezone)
    return Options(tuple(given.sources), given.out, asking, how, parse_shard(given.shard), given.votes, given.batch)


def _describe(given: argparse.Namespace, asking: Asking, settings: Settings) -> dict[str, Any]:
    """What a run's results depend on."""
    names = ("value_column", "time_column", "tag_column", "names", "dates", "timezone", "votes", "engine", "batch")
    return {
        "model": contents(given.model),
        "adapter": contents(given.adapter) if given.adapter else "",
        **{name: getattr(given, name) for name in names},
        **{name: getattr(settings, name) for name in ("constrained", "max_new_tokens", "dtype", "quantization_bit")},
        **{name: value for name, value in vars(asking).items() if name not in ("types", "compact_answers")},
    }


def _show_shard(given: argparse.Namespace, options: Options, counts: Counts) -> int:
    broken = [(str(one.path), one.reason) for one in counts.files if not one.key]
    for path, reason in broken[:SHOWN]:
        complain(f"{path}: {reason}")
    say(
        f"shard {options.shard_name}: {counts.asked} series answered; when all shards are done, the same command "
        f"without --shard writes the results (with --join DIR… where their --out differ)"
    )
    return FAULTS if broken else DONE


def _show(counts: Counts, found: Results) -> None:
    rows = [
        ("files", len(counts.files)),
        ("series answered", found.series),
        ("  of these in this call", counts.asked),
        ("questions in this call, one a window", counts.questions),
        ("  with anomalies", found.with_intervals),
        ("intervals", found.intervals),
        ("missing values, interpolated", found.filled),
        ("files, series, answers that failed, see failed.csv", found.failed),
    ]
    print_table("Detections", ("", "number"), rows)
    for file, series, start, end, reason in found.failures[:SHOWN]:
        where = [f"series {series!r}" if series else "", f"rows {start} to {end}" if start else ""]
        complain(": ".join(filter(None, (file, *where, reason))))
    if found.failed > SHOWN:
        complain(f"... and {found.failed - SHOWN} more in failed.csv")
