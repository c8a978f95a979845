"""From scored answers of one record to what is trained on: the best answer, a pair, answers that are liked or not."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from llamafactory_ext.toolbox.prefer.reward import Reward


LEAST = 0.3
"""What an answer must be worth to be learnt from: one that names everything is worth less."""
MARGIN = 0.2
"""How much more than the other one an answer of a pair must be worth."""


@dataclass(frozen=True)
class Choice:
    """What comes of one record; an empty text is none."""

    best: str = ""
    worst: str = ""
    """Worth less than `best` by `MARGIN` at least."""
    liked: tuple[str, ...] = ()
    disliked: tuple[str, ...] = ()
    value: float = 0.0
    """Of `best`."""
    mean: float = 0.0
    """Of all answers."""


def choose(answers: Sequence[str], rewards: Sequence[Reward], least: float = LEAST, margin: float = MARGIN) -> Choice:
    """Chooses among the answers to one record.

    An answer that says nothing true is never liked, be it the best of them: where nothing was found of what is there,
    saying nothing is no better than a wrong guess. Where all answers are alike, there is nothing to be learnt.
    """
    values = {text: one for text, one in zip(answers, rewards, strict=True) if text.strip()}
    if not values:
        return Choice()
    often = Counter(answers)
    mean = sum(one.value for one in rewards) / len(rewards)
    order = sorted(values, key=lambda text: (-values[text].value, -often[text]))
    good = [text for text in order if values[text].is_right and values[text].value >= least]
    top = values[good[0]].value if good else least
    bad = [text for text in order if values[text].value <= top - margin]
    if not good:
        return Choice(disliked=tuple(bad), mean=mean)
    liked = tuple(text for text in good if values[text].value > top - margin)
    return Choice(good[0], bad[-1] if bad else "", liked, tuple(bad), top, mean)
