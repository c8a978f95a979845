"""One record as the model sees it: tokens decoded, what is trained on, and the numbers of its series."""

import itertools
import re
from typing import Any

from llamafactory_ext.series import PATCH_TOKEN, encode
from llamafactory_ext.toolbox.check.inspection import Inspection
from llamafactory_ext.toolbox.session.counting import IGNORED, tokenise_part
from llamafactory_ext.toolbox.session.recipe import UsageError


_VALUES = 6


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
