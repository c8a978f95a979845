"""The main path: predictions in, and the data set behind them; an `Evaluation` out."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from llamafactory_ext.gdsh import NORMAL_TYPES
from llamafactory_ext.gdsh.events import Interval
from llamafactory_ext.gdsh.readings import STRICT, place, read_answer
from llamafactory_ext.plugin.versions import version
from llamafactory_ext.toolbox.evaluate import detectors
from llamafactory_ext.toolbox.evaluate.detail import FloatArray
from llamafactory_ext.toolbox.evaluate.judging import (
    Case,
    Evaluation,
    Judged,
    has_confidences,
    intervals,
    judge,
    read_case,
)
from llamafactory_ext.toolbox.evaluate.metrics import PACKAGES, score
from llamafactory_ext.toolbox.evaluate.points import Source, check_order, fill_lengths, point_names
from llamafactory_ext.toolbox.evaluate.predictions import EvaluateError, Prediction
from llamafactory_ext.toolbox.evaluate.spread import FEWEST, LEVEL
from llamafactory_ext.toolbox.evaluate.tallies import (
    Tally,
    add,
    by_point,
    by_type,
    confidence,
    counts_of,
    of_answers,
    plain,
    records_of,
    tally,
)


Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]
"""Passes on what it is given, and shows how far it has come; the text says what is done, the number how many."""


TRAINING = 200
"""Records that thresholds are chosen on, at most."""


def evaluate(
    predictions: Sequence[Prediction],
    sources: Sequence[Source] | None = None,
    *,
    dataset: str = "the data set",
    salvage: bool = False,
    progress: Progress = lambda items, text, count: items,
    names: Sequence[str] | None = detectors.RULES,
    training: Sequence[Source] | None = None,
    normal: frozenset[str] = NORMAL_TYPES,
) -> Evaluation:
    """Score predictions; with `sources`, the records of their data set, `detectors` have series to read.

    Arguments:
        dataset: what messages call it.
        salvage: take the whole entries of answers that break off.
        names: of the detectors; None: not even random intervals.
        training: records of other data, to choose the detectors' thresholds on.
        normal: types that stand for the normal state.

    Raises:
        EvaluateError: predictions and data set do not belong together, or a label can't be read, or there is none.
    """
    if sources is not None:
        predictions = fill_lengths(predictions, sources)
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
    cases = [read_case(one, salvage, normal) for one in predictions]
    found = [judge(case) for case in progress(cases, "scoring", len(cases))]
    chosen = dict.fromkeys(names or (), 0.0)
    if sources is not None:
        chosen = dict(thresholds(list(chosen), training, progress))
    named = point_names(predictions, sources)
    points = by_point(named, found)
    whole = add(points.values())
    scores = {
        "records": len(cases),
        "records_unlabelled": unlabelled,
        "points": len(points),
        **of_answers(cases),
        **plain(whole),
        "events": counts_of(whole),
        "confidence": confidence(np.array(list(points.values()))),
        "baselines": dict(_baselines(cases, sources, chosen, progress)) if names is not None else {},
        "per_type": by_type(cases),
        "per_point": {
            name: {"records": records_of(sums), **plain(sums), **counts_of(sums)} for name, sums in points.items()
        },
        "vus_from": "confidences" if any(map(has_confidences, cases)) else "intervals",
        "settings": _settings(salvage, sources is not None, chosen, training is not None),
        "versions": {name: version(name) for name in ("llamafactory-ext", *PACKAGES, "scipy", "numpy")},
    }
    series = [source.series for source in sources] if sources is not None else [()] * len(cases)
    alone = [one.f1 for one in found]
    indices, keys = [one.index for one in predictions], [one.descriptions for one in predictions]
    return Evaluation(scores, list(map(_judged, indices, named, cases, alone, series)), cases, keys)


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
    cases: Sequence[Case],
    sources: Sequence[Source] | None,
    chosen: Mapping[str, float],
    progress: Progress,
) -> Iterator[tuple[str, dict[str, float | None]]]:
    """Scores of each detector on the same labels."""
    labels = [intervals(case.labels.inside) for case in cases]
    draws = []
    for seed in progress(range(detectors.SEEDS), "random baseline", detectors.SEEDS):
        rng = np.random.default_rng(seed)
        guesses = [
            detectors.random_intervals(wanted, case.length, rng) for wanted, case in zip(labels, cases, strict=True)
        ]
        draws.append(plain(add(map(_tally, labels, guesses, cases))))
    yield "random", {name: _mean([draw[name] for draw in draws]) for name in draws[0]}
    for name, threshold in chosen.items() if sources is not None else ():
        detector, tallies = detectors.DETECTORS[name], []
        series = progress([source.series for source in sources or ()], f"{name} baseline", len(cases))
        for wanted, one, case in zip(labels, series, cases, strict=True):
            scores = detectors.point_scores(one, detector)
            tallies.append(_tally(wanted, detectors.flagged_intervals(scores, threshold), case, scores))
        yield name, plain(add(tallies))


def thresholds(
    names: Sequence[str], training: Sequence[Source] | None, progress: Progress
) -> Iterator[tuple[str, float]]:
    """What each detector flags from; on at most `TRAINING` records, evenly spread."""
    step = max(1, -(-len(training or ()) // TRAINING))
    learnt = (training or ())[::step]
    labels = []
    for source in learnt:
        reading = read_answer(source.answer)
        length = max(map(len, source.series), default=0)
        labels.append(intervals(place(reading.anomalies, length).inside))
    for name in names:
        detector = detectors.DETECTORS[name]
        if detector.threshold is not None or not learnt:
            yield name, detector.threshold or detectors.UNTRAINED
            continue
        series = progress([source.series for source in learnt], f"{name} threshold", len(learnt))
        scores = (detectors.point_scores(one, detector) for one in series)
        yield name, detectors.choose_threshold(zip(scores, labels, strict=True))


def _tally(
    wanted: Sequence[Interval], guessed: Sequence[Interval], case: Case, scores: FloatArray | None = None
) -> Tally:
    return tally(score(wanted, guessed, case.length, scores=scores))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(float(np.mean(known)), 6) if known else None


def _settings(salvage: bool, has_series: bool, chosen: Mapping[str, float], trained: bool) -> dict[str, Any]:
    """What the numbers depend on besides the data."""
    return {
        "salvage": salvage,
        "confidence_level": LEVEL,
        "fewest_points": FEWEST,
        "random_draws": detectors.SEEDS,
        "left_out": [] if has_series else list(chosen),
        "thresholds": dict(chosen),
        "thresholds_chosen_on_training_labels": trained,
    }
