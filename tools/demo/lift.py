"""Says what the demo's model learnt of its plant, from the two scores.json of llamafactory-ext evaluate.

Fails (exit status 1) where event F1 on held-out points is below 0.85 after training, not at least 0.2 above that
before, not above every detector that costs nothing, or where fewer than 98 % of the answers are strict JSON. A lift
that is missed is a fault in the data's way, or in training, before it is a matter of settings.
"""

import json
import sys
from pathlib import Path
from typing import Any


ENOUGH = 0.85
LIFT = 0.2
STRICT = 0.98


def judge(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, float, bool]]:
    """Compare the scores after training with what they must reach: with what, the number there, whether they do."""
    reached = after["event_f1"]
    detectors = {name: one["event_f1"] for name, one in after["baselines"].items()}
    return [
        ("wanted", ENOUGH, reached >= ENOUGH),
        (f"before training, and {LIFT}", before["event_f1"] + LIFT, reached >= before["event_f1"] + LIFT),
        *((name, f1, reached > f1) for name, f1 in detectors.items()),
    ]


def main() -> int:
    if len(sys.argv) != 3:
        print("usage: python tools/demo/lift.py SCORES_BEFORE.json SCORES_AFTER.json", file=sys.stderr)
        return 2
    before, after = (json.loads(Path(path).read_text(encoding="utf-8")) for path in sys.argv[1:])
    found, strict = judge(before, after), after["strict_json_rate"]
    print(f"event F1 on {after['records']} points never trained on")
    print(f"  {before['event_f1']:.3f} before training, {after['event_f1']:.3f} after; strict JSON {strict:.1%}")
    for name, f1, reached in found:
        print(f"  {'above' if reached else 'BELOW'} {f1:.3f}  {name}")
    return 0 if strict >= STRICT and all(reached for _, _, reached in found) else 1


if __name__ == "__main__":
    sys.exit(main())
