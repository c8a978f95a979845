"""Says whether the full demo's model reads series, from the two scores.json of llamafactory-ext evaluate.

Fails (exit status 1) where event F1 on held-out points is below 0.9, below three times that of the control (the same
model, series exchanged among the records) or of random intervals, or not above both rules that need no model. Where
one of these is missed, look for a fault in the data's way before tuning: labels that are shifted, or series that don't
reach the model, look just like this.
"""

import json
import sys
from pathlib import Path
from typing import Any


ENOUGH = 0.9
TIMES = 3.0


def judge(scores: dict[str, Any], control: dict[str, Any]) -> list[tuple[str, float, bool]]:
    """Compare event F1 with what it must reach: with what, the number there, and whether it does."""
    reached = scores["event_f1"]
    baselines = {name: one["event_f1"] for name, one in scores["baselines"].items()}
    chance = {"series exchanged": control["event_f1"], "random": baselines.pop("random")}
    return [
        ("wanted", ENOUGH, reached >= ENOUGH),
        *((f"{TIMES:.0f} x {name}", TIMES * f1, reached >= TIMES * f1) for name, f1 in chance.items()),
        *((name, f1, reached > f1) for name, f1 in baselines.items()),
    ]


def main() -> int:
    if len(sys.argv) != 3:
        print("usage: python tools/demo/verdict.py SCORES.json SCORES_OF_THE_CONTROL.json", file=sys.stderr)
        return 2
    scores, control = (json.loads(Path(path).read_text(encoding="utf-8")) for path in sys.argv[1:])
    found = judge(scores, control)
    print(f"event F1 on {scores['records']} held-out points: {scores['event_f1']:.3f}")
    for name, f1, reached in found:
        print(f"  {'above' if reached else 'BELOW'} {f1:.3f}  {name}")
    return 0 if all(reached for _, _, reached in found) else 1


if __name__ == "__main__":
    sys.exit(main())
