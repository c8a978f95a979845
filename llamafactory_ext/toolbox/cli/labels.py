"""Writes labels, or what a model predicted, as pre-labels for the tools that people correct labels in.

llamafactory-ext labels data/plant --to label-studio --out prelabels
llamafactory-ext labels data/plant --detections detections.csv --to annotator --out prelabels
llamafactory-ext labels data/plant --detections detections.csv --choose 20 --to annotator --out prelabels
"""

import argparse
from pathlib import Path

from llamafactory_ext.toolbox.cli.terminal import DONE, say, stops_in_one_line
from llamafactory_ext.toolbox.importing.back import FORMS, LOST, choose, replace_anomalies
from llamafactory_ext.toolbox.importing.layout import read_layout


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="llamafactory-ext labels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="exit status: 0 written, 1 faults in the data, 2 wrong usage.",
    )
    parser.add_argument("data", type=Path, metavar="DIR", help="a folder with json/ and timeseries/")
    parser.add_argument("--to", choices=sorted(FORMS), required=True, help="the form to write")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of what is written")
    parser.add_argument(
        "--detections", type=Path, metavar="FILE.csv", help="series, start, end, type: in place of labels"
    )
    parser.add_argument(
        "--choose", type=int, metavar="N", help="only the N series whose detections are the least confident"
    )
    parser.add_argument(
        "--random", type=int, metavar="SEED", help="with --choose: N series by chance, to compare with"
    )
    given = parser.parse_args(arguments)
    if given.choose is not None and (given.choose < 1 or not given.detections):
        parser.error("--choose takes a number from 1 on, and needs --detections")
    if given.random is not None and given.choose is None:
        parser.error("--random needs --choose")
    return given


@stops_in_one_line()
def main() -> int:
    given = parse()
    series = list(read_layout(given.data))
    if given.detections:
        series = replace_anomalies(series, given.detections)
    if given.choose:
        series = choose(series, given.detections, given.choose, given.random)
    path = FORMS[given.to](series, given.out)
    if given.to in LOST:
        say(LOST[given.to])
    say(f"{len(series)} series, {sum(len(one.anomalies or ()) for one in series)} intervals: {path}")
    return DONE
