"""The main path: predictions in, and the data set behind them; an `Evaluation` out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from llamafactory_ext.gdsh.events import Interval
from llamafactory_ext.gdsh.readings import STRICT
from llamafactory_ext.plugin.versions import version
from llamafactory_ext.toolbox.evaluate import baselines
from llamafactory_ext.toolbox.evaluate.judging import Case, Evaluation, Judged, intervals, judge, read_case
from llamafactory_ext.toolbox.evaluate.metrics import PACKAGES, score
from llamafactory_ext.toolbox.evaluate.points import Source, check_order, point_names
from llamafactory_ext.toolbox.evaluate.predictions import EvaluateError, Prediction
from llamafactory_ext.toolbox.evaluate.tallies import (
    LEVEL,
    RESAMPLES,
    Tally,
    add,
    by_point,
    by_type,
    confidence,
    counts_of,
    of_answers,
    plain,
    tally,
)


Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]
"""Passes on what it is given, and shows how far it has come; the text says what is done, the number how many."""


def evaluate(
    predictions: Sequence[Prediction],
    sources: Sequence[Source] | None = None,
    *,
    dataset: str = "the data set",
    salvage: bool = False,
    progress: Progress = lambda items, text, count: items,
) -> Evaluation:
    """Score predictions; with `sources`, the records of their data set, the rules of `baselines` have series to read.

    Arguments:
        dataset: what messages call it.
        salvage: take the whole entries of answers that break off.

    Raises:
        EvaluateError: predictions and data set do not belong together, or a label can't be read.
    """
    if sources is not None:
        check_order(predictions, sources, dataset)
    kept = [place for place, one in enumerate(predictions) if one.is_labelled]
    if not kept:
        raise EvaluateError(
            f"none of {len(predictions)} predictions has a label, so that nothing can be scored; predict records with "
            "answers, or read `predict` in the file as it is"
        )
    unlabelled = len(predictions) - len(kept)
    predictions = [predictions[place] for place in kept]
    sources = [sources[place] for place in kept] if sources is not None else None
    cases = [read_case(one, salvage) for one in predictions]
    found = [judge(case) for case in progress(cases, "scoring", len(cases))]
    names = point_names(predictions, sources)
    points = by_point(names, found)
    whole = add(points.values())
    scores = {
        "records": len(cases),
        "records_unlabelled": unlabelled,
        "points": len(points),
        **of_answers(cases),
        **plain(whole),
        "events": counts_of(whole),
        "confidence": confidence(np.array(list(points.values()))),
        "baselines": dict(_baselines(cases, sources, progress)),
        "per_type": by_type(cases),
        "per_point": {
            name: {"records": int(sums[-1]), **plain(sums), **counts_of(sums)} for name, sums in points.items()
        },
        "settings": _settings(salvage, sources is not None),
        "versions": {name: version(name) for name in ("llamafactory-ext", *PACKAGES, "scipy", "numpy")},
    }
    series = [source.series for source in sources] if sources is not None else [()] * len(cases)
    alone = [one.f1 for one in found]
    return Evaluation(scores, list(map(_judged, [one.index for one in predictions], names, cases, alone, series)))


def _judged(index: int, name: str, case: Case, f1: dict[str, float], series: Any) -> Judged:
    return Judged(
        index=index,
        name=name,
        length=case.length,
        labels=case.labels.inside,
        predicted=case.predicted.inside,
        strict=case.reading.form == STRICT,
        problem=case.reading.problem,
        scores=f1,
        series=tuple(series),
    )


def _baselines(
    cases: Sequence[Case], sources: Sequence[Source] | None, progress: Progress
) -> Iterator[tuple[str, dict[str, float]]]:
    """Scores of each baseline on the same labels."""
    labels = [intervals(case.labels.inside) for case in cases]
    draws = []
    for seed in progress(range(baselines.SEEDS), "random baseline", baselines.SEEDS):
        rng = np.random.default_rng(seed)
        lengths = [case.length for case in cases]
        guesses = [baselines.random_intervals(*pair, rng) for pair in zip(labels, lengths, strict=True)]
        draws.append(plain(_sum(labels, guesses, cases)))
    yield "random", {name: round(float(np.mean([draw[name] for draw in draws])), 6) for name in draws[0]}
    for name, rule in baselines.RULES.items() if sources is not None else ():
        series = progress([source.series for source in sources or ()], f"{name} baseline", len(cases))
        yield name, plain(_sum(labels, [baselines.flagged_intervals(one, rule) for one in series], cases))


def _sum(labels: Sequence[Sequence[Interval]], guesses: Sequence[Sequence[Interval]], cases: Sequence[Case]) -> Tally:
    triples = zip(labels, guesses, cases, strict=True)
    return add(tally(score(wanted, guessed, case.length)) for wanted, guessed, case in triples)


def _settings(salvage: bool, has_series: bool) -> dict[str, Any]:
    """What the numbers depend on besides the data."""
    return {
        "salvage": salvage,
        "confidence_level": LEVEL,
        "resamples": RESAMPLES,
        "random_draws": baselines.SEEDS,
        "left_out": [] if has_series else list(baselines.RULES),
    }
