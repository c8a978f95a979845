"""Everything that was found, as one JSON object for machines."""

from collections import Counter
from dataclasses import asdict
from typing import Any

from llamafactory_ext.toolbox.check.gallery import Gallery
from llamafactory_ext.toolbox.check.inspection import Inspection
from llamafactory_ext.toolbox.session.lengths import PARTS, percentiles


def report(found: Inspection, gallery: Gallery | None = None) -> dict[str, Any]:
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
        "each_record": [_record(found, row, gallery) for row in range(len(found.records))],
        "plot": {"folder": str(gallery.folder), "records": len(gallery.sheets), "keys": gallery.keys}
        if gallery
        else None,
    }


def without_anomaly(found: Inspection) -> int:
    """Returns the number of records whose answers are JSON and name no interval."""
    return sum(record.is_json and not record.labels and not record.bad_interval for record in found.records)


def _record(found: Inspection, row: int, gallery: Gallery | None) -> dict[str, Any]:
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
        "sheets": list(gallery.sheets.get(row, ())) if gallery else [],
    }
