"""Two actors on a Ray of this machine: every question is asked once, by one of them, and answers keep their order."""

import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from llamafactory_ext.toolbox.detect.engines import Answer, Question, Settings


LENGTHS = (60, 90, 200, 131, 400)
ray = pytest.importorskip("ray")
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors don't have this file


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


class Echo:
    """Stands for an actor's engine: says what it was asked, and by whom it was answered."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.said = f"{name} {settings.model} {dict(settings.more)}"

    def ask(self, questions: list[Question], temperature: float, seed: int) -> list[Answer]:
        if any(one.prompt == "too long" for one in questions):
            raise ValueError("a question of 9 tokens")
        return [Answer(f"{one.prompt} {self.said}", (str(os.getpid()),), (float(seed),)) for one in questions]


def test_two_actors(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from llamafactory_ext.toolbox.detect import ray_engine

    monkeypatch.setattr(ray_engine, "Holder", Echo)
    settings = Settings("M", more=(("actors", 2), ("engine", "transformers"), ("max_model_len", 99)))
    engine = ray_engine.RayEngine(settings)
    questions = [Question(str(k), (np.zeros(3),)) for k in range(7)]
    answers = engine.ask(questions, seed=5)
    assert [one.text for one in answers] == [f"{k} transformers M {{'max_model_len': 99}}" for k in range(7)]
    assert len({one.tokens for one in answers}) == 2
    assert [one.logprobs for one in answers] == [(5.0,)] * 4 + [(9.0,)] * 3
    assert engine.ask([]) == [] and engine.ask(questions[:1])[0].text.startswith("0 ")
    with pytest.raises(ValueError, match="a question of 9 tokens"):
        engine.ask([*questions, Question("too long", (np.zeros(3),))])
    assert len(engine.ask(questions)) == 7


def test_two_actors_with_engines_of_their_own(cluster: Any) -> None:
    """On the shipped small model; each is asked about half, and says what one engine says about all."""
    from llamafactory_ext.toolbox.demo.writing import MINI
    from llamafactory_ext.toolbox.detect.engines import open_engine

    settings = Settings(str(MINI), max_new_tokens=60)
    series = [np.where(abs(np.arange(length) - length // 3) < 6, 3.0, np.sin(range(length)) / 9) for length in LENGTHS]
    asked = [Question("<ts><ts/>\n请找出异常区间，用JSON回答。", (one,)) for one in series]
    expected = open_engine("transformers", settings).ask(asked)
    more = (("actors", 2), ("engine", "transformers"))
    found = open_engine("ray", Settings(str(MINI), max_new_tokens=60, more=more)).ask(asked)
    assert len({one.text for one in found}) > 2
    for one, other in zip(found, expected, strict=True):
        assert (one.text, one.tokens) == (other.text, other.tokens)
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
