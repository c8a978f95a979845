"""Says whether mini reads series, from the two scores.json of llamafactory-ext evaluate.

    python tools/mini/verdict.py SCORES.json SCORES_OF_THE_CONTROL.json

Fails (exit status 1) where event F1 on held-out points is below 0.9; where event F1 at IoU 0.3, the harder score, is
below 0.85, below three times that of the control (the same model, series exchanged among the records) or of random
intervals; or where a detector that needs no model reaches 0.7 there: the series are then too easy to tell reading by.
Where one of these is missed, look for a fault in the data's way before tuning: labels that are shifted, or series that
don't reach the model, look just like this.
"""

import json
import sys
from pathlib import Path
from typing import Any


ENOUGH = {"event_f1": 0.9, "event_f1_iou30": 0.85}  # what ships reaches 0.926 and 0.886
TIMES = 3.0
TOO_EASY = 0.7  # for what needs no model
SCORE = "event_f1_iou30"


def judge(scores: dict[str, Any], control: dict[str, Any]) -> list[tuple[str, float, bool]]:
    """Compare event F1 with what it must reach: with what, the number there, and whether it does."""
    reached = scores[SCORE]
    baselines = {name: one[SCORE] for name, one in scores["baselines"].items()}
    chance = {"series exchanged": control[SCORE], "random": baselines.pop("random")}
    return [
        *((f"wanted of {name}", least, scores[name] >= least) for name, least in ENOUGH.items()),
        *((f"{TIMES:.0f} x {name}", TIMES * f1, reached >= TIMES * f1) for name, f1 in chance.items()),
        *((name, f1, f1 < min(reached, TOO_EASY)) for name, f1 in baselines.items()),
    ]


def main() -> int:
    if len(sys.argv) != 3:
        print("usage: python tools/mini/verdict.py SCORES.json SCORES_OF_THE_CONTROL.json", file=sys.stderr)
        return 2
    scores, control = (json.loads(Path(path).read_text(encoding="utf-8")) for path in sys.argv[1:])
    found = judge(scores, control)
    print(f"{scores['records']} held-out points: event F1 {scores['event_f1']:.3f}, at IoU 0.3 {scores[SCORE]:.3f}")
    for name, f1, reached in found:
        print(f"  {'passed' if reached else 'MISSED'} {f1:.3f}  {name}")
    return 0 if all(reached for _, _, reached in found) else 1


if __name__ == "__main__":
    sys.exit(main())
