"""A model's answers: what is strict, lenient, salvaged, unreadable; and where their intervals lie."""

import json

import pytest
from conftest import NOTHING_FOUND, answer
from hypothesis import given
from hypothesis import strategies as st

from llamafactory_ext.gdsh import Anomaly
from llamafactory_ext.gdsh.readings import LENIENT, SALVAGED, STRICT, UNREADABLE, place, read_answer


ENTRY = '{"interval": [3, 5], "type": "点异常"}'
FORMS = {
    NOTHING_FOUND: (STRICT, []),
    answer((3, 5), (9, 9)): (STRICT, [(3, 5), (9, 9)]),
    ENTRY: (STRICT, [(3, 5)]),
    f"[{ENTRY}]": (STRICT, [(3, 5)]),
    f"{ENTRY}, {ENTRY}": (LENIENT, [(3, 5)]),
    "{'interval': [3, 5], 'type': '点异常'}": (LENIENT, [(3, 5)]),
    "": (UNREADABLE, []),
    "我不知道": (UNREADABLE, []),
    "5": (UNREADABLE, []),
    f"```json\n{ENTRY}\n```": (UNREADABLE, []),
    f"异常：{ENTRY}": (UNREADABLE, []),
    '{"status": "failed", "detected_anomalies": []}': (UNREADABLE, []),
    '{"interval": [3], "type": "点异常"}': (UNREADABLE, []),
    '{"interval": [NaN, 5], "type": "点异常"}': (UNREADABLE, []),
    answer((3, 5), (9, 9))[:-40]: (UNREADABLE, []),
    "[" * 100_000: (UNREADABLE, []),
}


@pytest.mark.parametrize("text", FORMS, ids=lambda text: text[:40])
def test_forms(text: str) -> None:
    found = read_answer(text)
    assert (found.form, [(one.start, one.end) for one in found.anomalies]) == FORMS[text]
    assert bool(found.problem) == (found.form == UNREADABLE)


def test_the_problem_is_told_without_advice_for_annotators() -> None:
    assert read_answer("我不知道").problem == "text at character 0 that is not part of the JSON: '我不知道'"


def test_every_place_to_break_off() -> None:
    """Whole entries before the break are saved on request, no others, and only then."""
    text = answer((3, 5), (9, 9), (20, 30))
    ends = [at + 1 for at in range(len(text)) if text.startswith("}", at)][:3]
    for cut in range(1, len(text) - 1):
        plain, saved = read_answer(text[:cut]), read_answer(text[:cut], salvage=True)
        assert (plain.form, plain.cut_off, plain.anomalies) == (UNREADABLE, True, ())
        whole = sum(end <= cut for end in ends)
        assert [one.start for one in saved.anomalies] == [3, 9, 20][:whole]
        assert (saved.form, saved.cut_off) == (SALVAGED if whole else UNREADABLE, True)
        assert saved.problem == plain.problem


def test_what_does_not_break_off_is_never_salvaged() -> None:
    for text in (f"异常：{ENTRY}", f"{ENTRY} 等等", f"[{ENTRY}}}", f"{ENTRY}]", f"[{ENTRY}, {{}}]"):
        found = read_answer(text, salvage=True)
        assert (found.form, found.cut_off, found.anomalies) == (UNREADABLE, False, ()), text


def test_the_longest_answer_that_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    text = answer((3, 5), (9, 9))[:-2]
    for longest, saved in ((len(text), [3, 9]), (len(text) - 1, [])):
        monkeypatch.setattr("llamafactory_ext.gdsh.readings.MAX_ANSWER", longest)
        found = read_answer(text, salvage=True)
        assert ([one.start for one in found.anomalies], found.cut_off) == (saved, bool(saved))


@given(st.text() | st.text(alphabet='{}[]"\\,:0123456789 ', max_size=60), st.booleans())
def test_never_raises(text: str, salvage: bool) -> None:
    found = read_answer(text, salvage)
    assert bool(found.problem) == (found.form in (SALVAGED, UNREADABLE))


def test_entries_without_interval_are_counted() -> None:
    entries = [{"type": "全局属性"}, {"interval": [3, 5], "type": "点异常"}]
    found = read_answer(json.dumps({"status": "success", "detected_anomalies": entries}))
    assert (found.form, len(found.anomalies), found.without_interval) == (STRICT, 1, 1)
    found = read_answer(str(entries))
    assert (found.form, len(found.anomalies), found.without_interval) == (LENIENT, 1, 1)


def test_place() -> None:
    named = [(0, 9), (-3, 2), (8, 10), (-5, 99), (-9, -1), (10, 12), (6, 4)]
    found = place([Anomaly(start, end, {"type": "a"}) for start, end in named], 10)
    assert [(one.start, one.end) for one in found.inside] == [(0, 9), (0, 2), (8, 9), (0, 9)]
    assert [(one.start, one.end) for one in found.outside] == [(-9, -1), (10, 12), (6, 4)]
    assert found.clipped == 3
    assert {one.type for one in found.inside} == {"a"}
