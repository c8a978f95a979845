"""Graphics cards: what memory they have, and the one that is in this machine."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Card:
    """A card, or a machine without one.

    Attributes:
        gib: memory in GiB as CUDA reports it, which is a little less than what is printed on the box.
        capability: CUDA's compute capability; None where it is not known.
    """

    name: str
    gib: float
    capability: tuple[int, int] | None = None
    found: bool = False
    """Whether it is in this machine."""
    device: Literal["cuda", "cpu"] = "cuda"


class UnknownCardError(Exception):
    """No card of that name."""


# Rounded down, so that a plan errs on the safe side.
CARDS = {
    "2080ti": Card("RTX 2080Ti", 10.7, (7, 5)),
    "2080ti-22g": Card("RTX 2080Ti, 22 GB", 21.4, (7, 5)),
    "2080": Card("RTX 2080, 8 GB", 7.6, (7, 5)),
    "3070": Card("RTX 3070, 8 GB", 7.6, (8, 6)),
    "4060": Card("RTX 4060, 8 GB", 7.6, (8, 9)),
    "3060": Card("RTX 3060, 12 GB", 11.6, (8, 6)),
    "3090": Card("RTX 3090", 23.5, (8, 6)),
    "4090": Card("RTX 4090", 23.5, (8, 9)),
    "t4": Card("T4", 14.5, (7, 5)),
    "v100": Card("V100, 16 GB", 15.7, (7, 0)),
    "v100-32g": Card("V100, 32 GB", 31.7, (7, 0)),
    "a10": Card("A10", 22.0, (8, 6)),
    "l4": Card("L4", 22.0, (8, 9)),
    "a100": Card("A100, 40 GB", 39.3, (8, 0)),
    "a100-80g": Card("A100, 80 GB", 79.0, (8, 0)),
    "h100": Card("H100", 79.0, (9, 0)),
    "h200": Card("H200", 139.0, (9, 0)),
}


def named(name: str) -> Card:
    """Returns the card of a name in `CARDS`, one of that many GiB, or for ``cpu`` this machine without one.

    Raises:
        UnknownCardError: it is neither.
    """
    key = name.lower().removeprefix("rtx").strip(" _")
    if key == "cpu":
        return machine()
    if key in CARDS:
        return CARDS[key]
    try:
        gib = float(key.removesuffix("gib").removesuffix("gb"))
    except ValueError:
        gib = 0.0
    if not 0 < gib < 10_000:
        raise UnknownCardError(f"no card {name!r}; known are {', '.join(CARDS)}, cpu, or give its memory in GiB")
    return Card(f"card of {gib:g} GiB", gib)


def present() -> list[Card]:
    """Returns the cards that torch can use in this machine; CUDA_VISIBLE_DEVICES counts."""
    import torch

    cards = []
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(number)
        capability = (properties.major, properties.minor)
        cards.append(Card(properties.name, properties.total_memory / 2**30, capability, found=True))
    return cards


def of_recipe(stem: str) -> Card | None:
    """Returns the card that a recipe is named after, `3060_qlora` for instance; None where it is none."""
    return CARDS.get(stem.partition("_")[0])


def machine() -> Card:
    """Returns this machine's own memory, for a run without a card."""
    import psutil

    return Card("CPU", psutil.virtual_memory().total / 2**30, found=True, device="cpu")
