"""The page of a comparison: scores and differences first, then the records that turned, drawn by either run."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafactory_ext.files import write_whole
from llamafactory_ext.toolbox.evaluate.page import panels, words
from llamafactory_ext.toolbox.evaluate.tallies import titles
from llamafactory_ext.toolbox.pages import generator, render


if TYPE_CHECKING:
    from llamafactory_ext.toolbox.evaluate.comparing import Run

PAGE, GENERATOR = "index.html", generator("compare")
TURNED = 10
"""Records drawn of those that turned better, and of those that turned worse."""


def write_page(found: Mapping[str, Any], runs: "Sequence[Run]", path: Path) -> None:
    """Writes the page; what was there before stays until the new one is whole.

    Raises:
        OSError: it can't be written.
    """
    write_whole(path, page(found, runs))


def page(found: Mapping[str, Any], runs: "Sequence[Run]") -> Iterator[str]:
    """Yields the page piece by piece."""
    letters = [chr(ord("A") + place) for place in range(len(runs))]
    return render(
        "compare.html.j2",
        generator=GENERATOR,
        title="Comparison",
        found=found,
        letters=letters,
        titles=titles(),
        columns=[f"#{letter}" for letter in letters],
        heads=["score", *(f"#{letter}" for letter in letters), *(f"#{letter} − A" for letter in letters[1:])],
        groups={"type": found["per_type"], **found["per_group"]},
        turned=[
            (
                letter,
                turned,
                {kind: [_pair(runs, number, place) for place in turned[kind][:TURNED]] for kind in turned},
            )
            for number, (letter, turned) in enumerate(zip(letters[1:], found["turned"], strict=True), 1)
        ],
        panels=panels,
        words=words,
    )


def _pair(runs: "Sequence[Run]", number: int, place: int) -> tuple[Any, Any]:
    return runs[0].records[place], runs[number].records[place]
