"""The page: every drawn record with its series, texts and findings. One file, no script, nothing from the network.

Names, prompts and reasons come from data that nobody vouches for: each is escaped, and a policy in the page forbids
scripts altogether.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from llamafactory_ext.toolbox.pages.panels import Panel
from llamafactory_ext.toolbox.pages.svg import draw


GENERATOR = '<meta name="generator" content="llamafactory_ext check">'
"""Tells a page of ours from another one."""

_CHARACTERS = 6000  # of a prompt or an answer

_STYLE = """
:root{color-scheme:light}body{font:14px/1.5 system-ui,"Noto Sans CJK SC","Microsoft YaHei",sans-serif;margin:0 auto;
max-width:1120px;padding:24px;color:#1c2330;background:#f6f7f9}h1{font-size:22px;margin:0 0 4px}h2{font-size:16px;
margin:28px 0 8px}h3{font-size:15px;margin:0;overflow-wrap:anywhere}p{margin:4px 0}a{color:#0b5cad}
.card{background:#fff;border:1px solid #dfe3e8;border-radius:8px;padding:14px 16px;margin:14px 0;
content-visibility:auto;contain-intrinsic-size:auto 260px}.meta,.quiet{color:#5b6675;font-size:13px}
svg{display:block;width:100%;height:auto;margin-top:6px}.area{fill:#fbfcfd;stroke:#dfe3e8}.grid{stroke:#e6e9ee;
fill:none}polyline{fill:none;stroke:#1c2330;stroke-width:1;pointer-events:none}.band{fill-opacity:.28}
circle{stroke:#fff;stroke-width:1.2}svg text{font-size:11px;fill:#5b6675}
.badge{display:inline-block;border-radius:10px;padding:0 9px;margin:2px 4px 2px 0;font-size:12px;color:#fff}
.fault{background:#b3261e}.notice{background:#8a6d00}.none{background:#2e7d32}
.legend span{display:inline-block;margin-right:16px;white-space:nowrap}.legend i{display:inline-block;width:14px;
height:14px;border-radius:3px;margin-right:5px;vertical-align:-2px}
table{border-collapse:collapse;width:100%;background:#fff;border:1px solid #dfe3e8}td,th{padding:3px 10px;
text-align:left;border-top:1px solid #eceff3;overflow-wrap:anywhere;vertical-align:top}
th,td.s{white-space:nowrap}td.n,th.n{text-align:right;white-space:nowrap}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#f6f7f9;padding:8px 10px;border-radius:6px;margin:4px 0}
summary{cursor:pointer;color:#5b6675;font-size:13px}
"""


@dataclass(frozen=True)
class Badge:
    """A finding, as it is shown beside a record."""

    kind: str
    severity: str
    detail: str = ""


@dataclass(frozen=True)
class Entry:
    """A record in the index."""

    name: str
    lengths: tuple[int, ...]
    """Points of its series."""
    labels: int
    tokens: int | None
    badges: tuple[Badge, ...] = ()
    sheet: str = ""
    """File name of the contact sheet that its first series is on."""


@dataclass(frozen=True)
class Card:
    """A record as it is drawn, below the index."""

    entry: Entry
    panels: Sequence[Panel]
    texts: Mapping[str, str] = field(default_factory=dict)
    """Prompt, answer and the like, by what they are."""


def page(
    title: str,
    notes: Sequence[str],
    findings: Sequence[tuple[Badge, str]],
    types: Mapping[str, tuple[str, str, int]],
    entries: Sequence[Entry],
    cards: Iterable[Card],
) -> Iterator[str]:
    """Yields the page piece by piece; `cards` belong to `entries`, in the same order, and are drawn as they come.

    Arguments:
        notes: lines below the title.
        findings: with what they say.
        types: number, colour and count of each anomaly type.
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    yield f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">{GENERATOR}'
    yield f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    yield '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
    yield f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>"
    yield "".join(f'<p class="meta">{escape(note)}</p>' for note in notes)
    yield "<h2>Findings</h2>" + "".join(f"<p>{_badge(badge)} {escape(text)}</p>" for badge, text in findings)
    yield "" if findings else '<p><span class="badge none">none</span></p>'
    yield f'<h2>Types</h2><p class="legend">{_legend(types)}</p><h2>Records</h2>{_index(entries)}'
    colours = {name: colour for name, (_, colour, _) in types.items()}
    for number, card in enumerate(cards):
        yield _card(number, card, colours)
    yield "</body></html>\n"


def _legend(types: Mapping[str, tuple[str, str, int]]) -> str:
    return "".join(
        f'<span><i style="background:{colour}"></i>{number} {escape(name or "(no type)")} × {count}</span> '
        for name, (number, colour, count) in types.items()
    )


def _index(entries: Sequence[Entry]) -> str:
    head = '<th>record</th><th class="n">points</th><th class="n">labels</th><th class="n">tokens</th><th>sheet</th>'
    rows = [
        f'<tr><td><a href="#r{number}">{escape(one.name)}</a></td><td class="n">{_lengths(one)}</td>'
        f'<td class="n">{one.labels}</td><td class="n">{"" if one.tokens is None else one.tokens}</td>'
        f'<td class="s">{_sheet(one)}</td><td>{_badges(one)}</td></tr>'
        for number, one in enumerate(entries)
    ]
    return f"<table><tr>{head}<th>findings</th></tr>{''.join(rows)}</table>"


def _card(number: int, card: Card, colours: Mapping[str, str]) -> str:
    one = card.entry
    tokens = "" if one.tokens is None else f" · {one.tokens} tokens"
    meta = f"{_lengths(one) or 'no'} points · {one.labels} labels{tokens} {_sheet(one, ' · ')}"
    said = "".join(f'<p class="quiet">{escape(badge.kind)}: {escape(badge.detail)}</p>'
                   for badge in one.badges if badge.detail)  # fmt: skip
    drawn = "".join(draw(panel, colours) for panel in card.panels)
    texts = "".join(
        f"<details><summary>{escape(what)} ({len(text)} characters)</summary><pre>{escape(_shortened(text))}</pre>"
        "</details>"
        for what, text in card.texts.items()
    )
    return (
        f'<section class="card" id="r{number}"><h3>{escape(one.name)}</h3><p class="meta">{meta}</p>'
        f"{_badges(one)}{said}{drawn}{texts}</section>"
    )


def _badge(badge: Badge) -> str:
    return f'<span class="badge {badge.severity}" title="{escape(badge.detail)}">{escape(badge.kind)}</span>'


def _badges(entry: Entry) -> str:
    return "".join(map(_badge, entry.badges))


def _lengths(entry: Entry) -> str:
    return ", ".join(map(str, entry.lengths))


def _sheet(entry: Entry, before: str = "") -> str:
    return f'{before}<a href="{entry.sheet}">{entry.sheet}</a>' if entry.sheet else ""


def _shortened(text: str) -> str:
    return text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]}… ({len(text) - _CHARACTERS} more)"
