"""What evaluate prints of scores."""

from collections.abc import Mapping
from typing import Any

from llamafactory_ext.toolbox.cli.terminal import print_table, say
from llamafactory_ext.toolbox.evaluate.detectors import RULES
from llamafactory_ext.toolbox.evaluate.judging import Evaluation


_KINDS = ("event", "range", "affiliation", "point")
_NAMED = 5


def print_scores(found: Evaluation) -> None:
    """Prints how answers could be read, then the scores: over all, beside baselines, by type, of the worst points."""
    _print_answers(found)
    _print_baselines(found.scores)
    _print_metrics(found.scores)
    _print_types(found.scores)
    _print_worst(found)


def _print_answers(found: Evaluation) -> None:
    scores = found.scores
    answers, labels, records = scores["answers"], scores["labels"], scores["records"]
    rows: list[tuple[str, Any]] = [
        ("records", records),
        ("points", scores["points"]),
        ("strict JSON", f"{answers['strict']} ({scores['strict_json_rate']:.1%})"),
        ("read leniently (joined objects, Python literals)", answers["lenient"]),
        ("salvaged: whole entries of answers that break off", answers["salvaged"]),
        ("unreadable, which find nothing and are never right", answers["unreadable"]),
        ("  of these two, cut off (max_new_tokens)", answers["cut_off"]),
        ("intervals labelled", labels["intervals"]),
        ("intervals predicted", answers["intervals"]),
        ("  cut at the ends of their series", answers["intervals_clipped"]),
        ("intervals outside of their series: false alarms", answers["intervals_outside"]),
        ("intervals named again, count once", answers["intervals_named_again"]),
        ("entries without interval, left out", answers["entries_without_interval"]),
        ("entries of a normal state (无异常, normal …), no anomalies, left out", answers["normal_entries"]),
        ("  in answers that name anomalies, too", answers["normal_beside_anomalies"]),
        ("the same in labels, left out", labels["normal_entries"]),
        ("records without label, left out", scores["records_unlabelled"]),
        ("labels cut at the ends of their series", labels["intervals_clipped"]),
        ("labels outside of their series, left out", labels["intervals_outside"]),
    ]
    always = ("records", "points", "strict JSON")
    print_table("Answers", ("", "count"), [row for row in rows if row[0] in always or row[1]])
    unread = [one for one in found.records if one.problem]
    for one in unread[:_NAMED]:
        record = f"record {one.index}"
        say(f"    {record}{'' if one.name == record else f' ({one.name})'}: {one.problem}")
    if len(unread) > _NAMED:
        say(f"    … and {len(unread) - _NAMED} more")
    if unread:
        say()


def _print_metrics(scores: Mapping[str, Any]) -> None:
    rows = []
    for kind in _KINDS:
        low, high = scores["confidence"].get(f"{kind}_f1", ("", ""))
        spread = f"{low:.3f} to {high:.3f}" if scores["confidence"] else "too few points"
        rows.append((kind, *(f"{scores[f'{kind}_{part}']:.3f}" for part in ("precision", "recall", "f1")), spread))
    print_table("Scores", ("", "precision", "recall", "F1", "95 % of F1"), rows)


_COLUMNS = {
    "event_f1": "event F1",
    "event_f1_iou30": "IoU 0.3",
    "event_f1_iou50": "IoU 0.5",
    "vus_pr": "VUS-PR",
    "false_alarms_per_1000_points": "false ↓",
    "mean_delay": "delay ↓",
    "right_type": "type",
}


def _print_baselines(scores: Mapping[str, Any]) -> None:
    """One row a method, the scores that tell methods apart: what an engineer looks at first. The page has all."""
    mark = {"vus_pr": " *"} if scores["vus_from"] == "intervals" else {}
    rows = [("the model", *(shown(scores[key]) + mark.get(key, "") for key in _COLUMNS))]
    rows += [(name, *(shown(one[key]) for key in _COLUMNS)) for name, one in scores["baselines"].items()]
    print_table("Beside detectors that cost nothing", ("", *_COLUMNS.values()), rows)
    say("false: alarms per 1,000 points; delay: points until the first hit; type: right among hits; ↓ less is better")
    if scores["vus_from"] == "intervals":
        say("* from plain intervals: the answers name no confidence; detectors score every point")
    settings = scores["settings"]
    if settings["left_out"]:
        say(f"Left out: {', '.join(settings['left_out'])}; they need the series: --dataset NAME")
    elif set(settings["thresholds"]) - set(RULES) and not settings["thresholds_chosen_on_training_labels"]:
        say("Thresholds of the detectors are not chosen on labels: --train NAME")
    say()


def shown(value: float | None) -> str:
    """A score with three digits, a dash where there is none."""
    return "–" if value is None else f"{value:.3f}"


def _print_types(scores: Mapping[str, Any]) -> None:
    rows = []
    for name, one in scores["per_type"].items():
        whatever = one["recall_of_any_type"]
        named = "" if whatever is None else f"{whatever:.1%}"
        rows.append((name or "(no type)", one["labels"], one["predicted"], *_f1(one), named))
    if rows:
        columns = ("", "labels", "predicted", *_KINDS, "any type")
        print_table("F1 by type; labels found, whatever they were called", columns, rows)


def _print_worst(found: Evaluation) -> None:
    points = sorted(found.scores["per_point"].items(), key=lambda item: (item[1]["event_f1"], item[1]["range_f1"]))
    rows = [(name, one["misses"], one["false_alarms"], *_f1(one)) for name, one in points[:_NAMED]]
    print_table(f"F1 of the worst points, of {len(points)}", ("", "missed", "false", *_KINDS), rows)


def _f1(scores: Mapping[str, Any]) -> list[str]:
    return [f"{scores[f'{kind}_f1']:.3f}" for kind in _KINDS]
