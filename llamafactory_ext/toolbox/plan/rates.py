"""Speeds that were measured. A card that is not in the table has no time: none is guessed."""

import json
from pathlib import Path
from typing import Any


RATES = Path(__file__).with_name("rates.json")
"""A list of `{"card", "layers", "hidden_size", "quantization_bit", "tokens_per_second", "versions", "date"}`."""


def seconds(card: str, shape: Any, quantization_bit: int | None, tokens: float, path: Path = RATES) -> float | None:
    """Returns how long a run over so many tokens takes on a card; None where that was not measured."""
    wanted = {"card": card, "layers": shape.layers, "hidden_size": shape.hidden_size}
    wanted["quantization_bit"] = quantization_bit
    for row in json.loads(path.read_text(encoding="utf-8")):
        if all(row.get(key) == value for key, value in wanted.items()):
            return float(tokens / row["tokens_per_second"])
    return None
