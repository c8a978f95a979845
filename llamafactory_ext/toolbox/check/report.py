"""Everything that was found, as one JSON object for machines; and one record as the model sees it."""

import itertools
import re
from collections import Counter
from dataclasses import asdict
from typing import Any

from llamafactory_ext.errors import UsageError
from llamafactory_ext.series import PATCH_TOKEN, encode
from llamafactory_ext.toolbox.check.inspection import Inspection
from llamafactory_ext.toolbox.check.page import Drawn
from llamafactory_ext.toolbox.session.tokens import IGNORED, PARTS, percentiles, tokenise_part


_VALUES = 6  # of a series, when one record is shown


def report(found: Inspection, drawn: Drawn | None = None) -> dict[str, Any]:
    """Returns counts, lengths, types, findings and what is known of each record; only plain JSON values."""
    lengths = [one.length for record in found.records for one in record.series]
    intervals = [one.end - one.start + 1 for record in found.records for one in record.labels]
    tokens = [one for one in found.tokens if one]
    parts = {name: [getattr(one, name) for one in tokens] for name in PARTS}
    return {
        "data_sets": {part.name: len(part.dataset) for part in found.parts},
        "validation": list(found.arguments.validation),
        "model": found.arguments.model.model_name_or_path,
        "records": len(found.records),
        "usable": sum(not record.fault for record in found.records),
        "cutoff_len": found.limit,
        "over_cutoff_len": sum(one.whole > found.limit for one in tokens),
        "tokens": {name: percentiles(values) for name, values in parts.items() if values},
        "no_tokens": found.no_tokens,
        "series": {"count": len(lengths), "points": percentiles(lengths) if lengths else {}},
        "intervals": {"count": len(intervals), "points": percentiles(intervals) if intervals else {}},
        "types": dict(found.types),
        "records_without_anomaly": without_anomaly(found),
        "faults": sum(one.severity == "fault" for one in found.findings),
        "notices": sum(one.severity == "notice" for one in found.findings),
        "findings": [
            {
                "kind": one.kind,
                "severity": one.severity,
                "text": one.text,
                "advice": one.advice,
                "records": [
                    {"row": place.row, "name": found.records[place.row].name, "detail": place.detail}
                    for place in one.places
                ],
            }
            for one in found.findings
        ],
        "each_record": [_record(found, row) for row in range(len(found.records))],
        "plot": {"folder": str(drawn.folder), "records": drawn.records} if drawn else None,
    }


def without_anomaly(found: Inspection) -> int:
    """Returns the number of records whose answers are JSON and name no interval."""
    return sum(record.is_json and not record.labels and not record.bad_interval for record in found.records)


def _record(found: Inspection, row: int) -> dict[str, Any]:
    record, tokens = found.records[row], found.tokens[row]
    return {
        "row": row,
        "name": record.name,
        "usable": not record.fault,
        "points": [one.length for one in record.series],
        "intervals": len(record.labels),
        "types": dict(Counter(one.type for one in record.labels)),
        "characters": {"prompt": record.prompt_characters, "answer": record.answer_characters},
        "tokens": asdict(tokens) | {"whole": tokens.whole} if tokens else None,
    }


def show(found: Inspection, row: int) -> list[str]:
    """Returns the lines that show a record; without a tokenizer, its texts as they go into the template.

    Raises:
        UsageError: there is no such record.
    """
    if not 0 <= row < len(found.records):
        raise UsageError(f"there is no record {row}; expected 0 to {len(found.records) - 1}")
    facts, record = found.records[row], found.record(row)
    lines = [facts.name, ""]
    if facts.fault:
        return [*lines, f"can't be used: {facts.fault}"]
    part, place = found.place(row)
    tokens = found.tokens[row]
    if found.tokenizer is None or tokens is None:
        why = found.no_tokens or "its series are too long for this checkpoint"
        lines += [f"(not tokenised: {why})", *_turns(record.system, record.turns)]
    else:
        tokenised = tokenise_part(part, [place], found.arguments, found.tokenizer)[0]
        lines += _pieces(tokenised["input_ids"], tokenised["labels"], found.tokenizer.tokenizer)
        lines += ["", f"tokens: text {tokens.text}, series {tokens.series}, answer {tokens.answer}, "]
        lines[-1] += f"whole {tokens.whole} of cutoff_len {found.limit}"
    if record.series:
        lines += ["", *_tensor(record.series)]
    counts = {name: count for name, count in record.notes.items() if isinstance(count, int) and count}
    done = [f"{count} {name.replace('_', ' ')}" for name, count in counts.items()]
    lines += ["", f"done to the record: {', '.join(done) or 'nothing'}"]
    lines += [f"{one.severity}: {one.kind}{detail}" for one, detail in _findings(found, row)]
    return lines


def shorten_patches(text: str) -> str:
    """Returns the text with each run of patch tokens as ``<ts>×625``."""
    return re.sub(f"(?:{re.escape(PATCH_TOKEN)})+", lambda run: f"{PATCH_TOKEN}×{len(run[0]) // 4}", text)


def _pieces(ids: list[int], labels: list[int], tokenizer: Any) -> list[str]:
    """Returns the decoded text, parted where training on it starts and ends."""
    lines, pairs = [], zip(ids, labels, strict=True)
    for trained, run in itertools.groupby(pairs, key=lambda pair: pair[1] != IGNORED):
        text = tokenizer.decode([token for token, _ in run], skip_special_tokens=False)
        lines += [f"── {'trained on' if trained else 'given'} ──", shorten_patches(text).rstrip("\n")]
    return lines


def _turns(system: str, turns: list[dict[str, str]]) -> list[str]:
    texts = [{"role": "system", "content": system}] if system else []
    return [line for turn in [*texts, *turns] for line in (f"── {turn['role']} ──", turn["content"])]


def _tensor(series: list[Any]) -> list[str]:
    tensor = encode(series)
    lines = [f"tensor of the series: {list(tensor.shape)}, {tensor.dtype} (scaled value and mask in turn)"]
    for number, (row, values) in enumerate(zip(tensor, series, strict=True)):
        raw = ", ".join(f"{value:g}" for value in values[:_VALUES])
        scaled = ", ".join(f"{value:.4g}" for value in row[: 2 * _VALUES : 2, 0].tolist()[: len(values)])
        more = ", …" if len(values) > _VALUES else ""
        lines.append(f"  series {number}: {len(values)} points: {raw}{more} → {scaled}{more}")
    return lines


def _findings(found: Inspection, row: int) -> list[tuple[Any, str]]:
    places = [(one, place) for one in found.findings for place in one.places if place.row == row]
    return [(one, f" ({place.detail})" if place.detail else "") for one, place in places]
