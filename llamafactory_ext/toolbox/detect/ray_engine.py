"""The engine for many machines: actors on a Ray cluster, each of which holds one of the other engines.

Actors stay from one batch to the next; ``map_batches`` would open their models anew at each. One that dies with its
machine is started again elsewhere, and what it was asked is asked again. Checked with Ray 2.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.util import ActorPool

from llamafactory_ext.errors import UsageError

from .engines import Answer, Question, Settings, open_engine


_OWN = {"actors": None, "engine": "vllm", "gpus": None, "cpus": 1, "address": "auto"}
"""Keys of `Settings.more` that are ours, and what they are by default; the rest are the engine's."""


class Holder:
    """An actor: an engine, opened once."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.engine = open_engine(name, settings)

    def ask(self, questions: Sequence[Question], temperature: float, seed: int) -> list[Answer]:
        return self.engine.ask(questions, temperature, seed)


class RayEngine:
    """Asks actors of a cluster that is there already.

    Of `Settings.more`: ``engine``, the one that an actor holds (vllm); ``actors``, one a card by default; ``gpus`` and
    ``cpus`` of an actor.

    Raises:
        UsageError: there is no cluster.
    """

    def __init__(self, settings: Settings) -> None:
        given = dict(settings.more)
        own = {key: given.pop(key, value) for key, value in _OWN.items()}
        if not ray.is_initialized():
            try:
                ray.init(address=own["address"], log_to_driver=False)
            except ConnectionError as err:
                raise UsageError(f"there is no Ray cluster ({err}); start one: ray start --head") from err
        cards = int(ray.cluster_resources().get("GPU", 0))
        count = int(own["actors"] or max(1, cards))
        gpus = float(own["gpus"] if own["gpus"] is not None else bool(cards))
        made = ray.remote(Holder).options(
            num_cpus=own["cpus"], num_gpus=gpus, max_restarts=-1, max_task_retries=-1, max_concurrency=1
        )
        held = replace(settings, more=tuple(given.items()))
        self.actors = [made.remote(own["engine"], held) for _ in range(count)]

    def ask(self, questions: Sequence[Question], temperature: float = 0.0, seed: int = 0) -> list[Answer]:
        """Returns an answer to each question; see `Engine`."""
        size = max(1, -(-len(questions) // len(self.actors)))
        parts = [(start, questions[start : start + size]) for start in range(0, len(questions), size)]

        def send(actor: Any, part: tuple[int, Sequence[Question]]) -> Any:
            start, few = part
            return actor.ask.remote(few, temperature, seed + start)

        return [one for answers in ActorPool(self.actors).map(send, parts) for one in answers]
