"""Numerals: cells with digits that Python's `float` does not read, as other programs and countries write them.

A column is read in one notation: all of its cells fit decimal points, or all fit decimal commas. What fits both
(`1,234` is either) or neither is refused: read wrongly, or filled in as if missing, it would change what a label
means.
"""

import math
import re
import unicodedata
from dataclasses import dataclass, field

from llamafactory_ext.errors import GdshError, excerpt


DASHES = str.maketrans(dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\u2014\ufe63\uff0d", "-"))
"""What other programs write for a minus, for `str.translate`."""
_BLANKS = "\\s'\u2019"
_POINT = re.compile(
    rf"[+-]?(?:\d+|\d{{1,3}}(?:,\d{{3}})+|\d{{1,3}}(?:[{_BLANKS}]\d{{3}})+)?(?:\.\d*)?(?:[eE][+-]?\d+)?"
)
_COMMA = re.compile(
    rf"[+-]?(?:\d+|\d{{1,3}}(?:\.\d{{3}})+|\d{{1,3}}(?:[{_BLANKS}]\d{{3}})+)?(?:,\d*)?(?:[eE][+-]?\d+)?"
)
# A number, then its unit: without digits, or parted from the number by a blank.
_PARTS = re.compile(
    rf"([+-]?\.?,?\d(?:[\d.,{_BLANKS}]*\d)?[.,]?(?:[eE][+-]?\d+)?)(\s*[^\W\d_][^\d\s_]*|\s*[%‰°][^\d]*|\s+[^\W\d_]\S*)?"
)
_MISSING = frozenset({"1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan", "1.#inf", "-1.#inf"})
_LONGEST = 64  # characters of a numeral


@dataclass
class Notation:
    """What is known of a column's cells: fed with all of them, then asked to read them."""

    missing: frozenset[str] = frozenset()
    """Texts that stand for no value."""
    plain: bool = True
    """Whether Python's `float` reads every number."""
    point: bool = True
    comma: bool = True
    """Whether all numbers so far can be read so."""
    with_comma: tuple[str, int] | None = None
    """The first cell that holds a comma, and its line."""
    units: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Each unit and its first cell."""
    brackets: bool = False

    def see(self, cell: str, line: int) -> None:
        """Take note of one cell.

        Raises:
            GdshError: it holds digits, and is no number, or one in another notation than the cells before.
        """
        if not _has_digit(cell) or is_missing(cell, self.missing):
            return
        number = _plain(cell)
        if number is not None and math.isfinite(number) and not (self.comma and "." in cell):
            self._unit("", cell, line)
            return
        parts = _split(cell)
        fits_point, fits_comma = (parts is not None and bool(form.fullmatch(parts[0])) for form in (_POINT, _COMMA))
        if number is not None and math.isfinite(number):
            fits_point = True
            parts = parts or (cell, "", False)
        elif parts is None or number is not None or not (fits_point or fits_comma):
            raise _fault(cell, line, "it has digits, but is no finite number")
        digits, unit, brackets = parts
        self.plain &= number is not None
        self.brackets |= brackets
        self.point &= fits_point
        self.comma &= fits_comma
        if "," in digits and self.with_comma is None:
            self.with_comma = cell, line
        self._unit(unit, cell, line)
        if not self.point and not self.comma:
            raise _fault(cell, line, "decimal points and decimal commas stand in one column")

    def settle(self) -> None:
        """Decide, when all cells have been seen.

        Raises:
            GdshError: the column may be read in two ways.
        """
        if self.with_comma and self.point and self.comma:
            raise _fault(
                *self.with_comma, "its comma may part thousands or be a decimal comma, and no cell says which"
            )

    def read(self, cell: str) -> float:
        """Returns the number in a cell that was seen; NaN where it stands for a missing value."""
        if self.plain or self.point:
            number = _plain(cell)
            if number is not None:
                return number if math.isfinite(number) and not is_missing(cell, self.missing) else math.nan
        parts = _split(cell) if _has_digit(cell) and not is_missing(cell, self.missing) else None
        if parts is None:
            return math.nan
        digits, _, brackets = parts
        bare = re.sub(rf"[{_BLANKS}]", "", digits)
        bare = bare.replace(",", "") if self.point else bare.replace(".", "").replace(",", ".")
        return -float(bare) if brackets else float(bare)

    @property
    def remark(self) -> str:
        """How numbers are written, where that is not Python's way; else empty."""
        said = []
        if not self.plain and not self.point:
            said.append("a decimal comma")
        elif not self.plain and self.with_comma:
            said.append("commas between thousands")
        if self.brackets:
            said.append("negative ones in brackets")
        said += [f"the unit {unit!r} in each cell" for unit in self.units if unit]
        return f"numbers written with {', '.join(said) or 'other signs'}" if not self.plain else ""

    def _unit(self, unit: str, cell: str, line: int) -> None:
        if unit not in self.units:
            self.units[unit] = cell, line
        if len(self.units) > 1:
            (one, _), (other, at) = list(self.units.values())[:2]
            odd, at = (other, at) if unit == list(self.units)[1] else (one, at)
            raise _fault(odd, at, f"other cells of its column, such as {excerpt(one)}, have another unit or none")


def is_missing(cell: str, missing: frozenset[str]) -> bool:
    """Whether a cell stands for no value: one of `missing`, or what C's printf makes of NaN."""
    text = cell.strip()
    return text in missing or text.casefold() in _MISSING


def _has_digit(cell: str) -> bool:
    return any(char.isdigit() for char in cell)


def _plain(cell: str) -> float | None:
    try:
        return float(cell) if "_" not in cell else None
    except ValueError:
        return None


def _split(cell: str) -> tuple[str, str, bool] | None:
    """Part a cell into number, unit and whether brackets stood round it; None where there is no number."""
    if len(cell) > _LONGEST:
        return None
    text = unicodedata.normalize("NFKC", cell).translate(DASHES).strip()
    brackets = text.startswith("(") and text.endswith(")")
    found = _PARTS.fullmatch(text[1:-1].strip() if brackets else text)
    if found is None or (brackets and found[1][0] in "+-"):
        return None
    return found[1], (found[2] or "").strip(), brackets


def _fault(cell: str, line: int, why: str) -> GdshError:
    return GdshError(
        f"line {line}: the cell {excerpt(cell)} can't be read: {why}; write it as 1180.0, leave it empty, or name it "
        "under `missing_values` where it stands for no value"
    )
