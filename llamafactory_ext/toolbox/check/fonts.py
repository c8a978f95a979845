"""Which characters a picture can show: matplotlib brings no Chinese glyphs, and draws boxes with a warning."""

import contextlib
import functools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib import font_manager


_CHINESE = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",  # the same file by another name, on some systems the only one that is found
    "Noto Sans SC",
    "Source Han Sans SC",
    "Source Han Sans CN",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Microsoft YaHei",
    "SimHei",
    "PingFang SC",
    "Droid Sans Fallback",
)
_FILES = re.compile(r"cjk|sourcehan|notosanssc|wqy|msyh|simhei|pingfang|droidsansfallback", re.IGNORECASE)
_OWN = "DejaVu Sans"  # comes with matplotlib


@functools.cache
def families() -> tuple[str, ...]:
    """Returns the fonts to draw with, to be tried in this order for each character."""
    found = _installed()
    return (_OWN, *found) if found else (_OWN, *_added_since())


def drawable(text: str, fonts: Sequence[str] | None = None) -> str:
    """Returns the text with ``?`` for each character that none of the fonts has."""
    known = _characters(tuple(fonts or families()))
    return "".join(one if ord(one) in known else "?" for one in text)


def can_draw(texts: Iterable[str], fonts: Sequence[str] | None = None) -> bool:
    """True where the fonts have every character of all the texts."""
    return all(drawable(text, fonts) == text for text in texts)


def _installed() -> list[str]:
    known = {font.name for font in font_manager.fontManager.ttflist}
    return [name for name in _CHINESE if name in known]


def _added_since() -> list[str]:
    """Looks for fonts that were installed after matplotlib made its list, which it never does again by itself."""
    known = {font.fname for font in font_manager.fontManager.ttflist}
    for path in font_manager.findSystemFonts():
        if path not in known and _FILES.search(Path(path).name):
            with contextlib.suppress(RuntimeError, OSError, ValueError):  # a broken file is as good as none
                font_manager.fontManager.addfont(path)
    return _installed()


@functools.cache
def _characters(fonts: tuple[str, ...]) -> frozenset[int]:
    paths = (font_manager.findfont(name, fallback_to_default=True) for name in fonts)
    return frozenset(code for path in paths for code in font_manager.get_font(path).get_charmap())
