"""Answers of every dialect become valid JSON with all their intervals, or are refused with a reason."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafactory_ext.gdsh import (
    Anomaly,
    GdshError,
    check_intervals,
    normal_types,
    parse_answer,
    read_annotations,
    read_anomalies,
)


REAL = Path(__file__).parents[3] / "shared" / "real" / "all_conversations.json"
NONE_FOUND = '{"status": "success", "detected_anomalies": []}'

Entry = dict[str, object]


def envelope(*entries: Entry) -> Entry:
    return {"status": "success", "detected_anomalies": list(entries)}


def spike(start: int, end: int, kind: str = "上行尖峰") -> Entry:
    return {"interval": [start, end], "type": kind, "reason": f"索引[{start},{end}]"}


# Each writes a list of entries in one of the forms that tools leave behind.
DIALECTS: dict[str, Callable[[list[Entry]], object]] = {
    "joined JSON": lambda entries: ",".join(json.dumps(envelope(entry), ensure_ascii=False) for entry in entries),
    "JSON a line": lambda entries: "\n".join(json.dumps(envelope(entry), indent=1) for entry in entries),
    "joined entries": lambda entries: " , ".join(json.dumps(entry) for entry in entries),
    "Python object": lambda entries: str(envelope(*entries)),
    "Python list": lambda entries: str(entries),
    "joined Python": lambda entries: ", ".join(map(str, entries)),
    "Python a line": lambda entries: "\n\n".join(map(str, entries)),
    "both": lambda entries: ",".join((str, json.dumps)[place % 2](entry) for place, entry in enumerate(entries)),
    "list": lambda entries: entries,
    "list of objects": lambda entries: [envelope(entry) for entry in entries],
    "object": lambda entries: envelope(*entries),
}

noise = st.text(alphabet="a{}[]()\"'\\, \n是:#`", max_size=12)
entries_with_noise = st.lists(
    st.builds(
        lambda interval, kind, reason, key: {"type": kind, key: reason} | interval,
        st.sampled_from([{}, {"interval": None}])
        | st.builds(lambda start, end: {"interval": [start, end]}, st.integers(0, 9), st.integers(0, 9)),
        st.sampled_from(["点异常", "全局属性"]) | noise,
        noise | st.none() | st.booleans(),
        st.sampled_from(["reason", "severity"]),
    ),
    min_size=2,
    max_size=8,
)


@pytest.mark.parametrize("dialect", DIALECTS)
@given(entries=entries_with_noise)
def test_every_dialect_keeps_every_interval_sorted_and_once(dialect: str, entries: list[Entry]) -> None:
    answer = parse_answer(DIALECTS[dialect](entries))

    with_interval = [entry for entry in entries if entry.get("interval") is not None]
    unique = [entry for place, entry in enumerate(with_interval) if entry not in with_interval[:place]]
    written = json.loads(answer.text)["detected_anomalies"]
    assert answer.rewritten
    assert all(entry in written for entry in unique)
    assert len(written) == len(unique)
    assert [tuple(entry["interval"]) for entry in written] == sorted(tuple(e["interval"]) for e in unique)  # type: ignore[arg-type]
    assert answer.intervals == tuple(tuple(entry["interval"]) for entry in written)
    assert answer.without_interval == len(entries) - len(with_interval)
    assert answer.normal == 0
    assert answer.duplicates == len(with_interval) - len(unique)
    again = parse_answer(answer.text)
    assert (again.text, again.rewritten, again.intervals) == (answer.text, False, answer.intervals)


@given(entries=entries_with_noise, seed=st.randoms(use_true_random=False))
def test_order_of_entries_does_not_matter(entries: list[Entry], seed: object) -> None:
    shuffled = entries.copy()
    seed.shuffle(shuffled)  # type: ignore[attr-defined]
    assert parse_answer(entries).text == parse_answer(shuffled).text


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "status", "b"]), inner),
    max_leaves=8,
)


@given(
    value=st.lists(json_values) | st.dictionaries(st.text(alphabet="x异{}[]\"' _"), json_values),
    indent=st.none() | st.integers(0, 3),
    around=st.sampled_from(["", " ", "\n"]),
)
def test_valid_json_stays_to_the_byte(value: object, indent: int | None, around: str) -> None:
    text = around + json.dumps(value, indent=indent, ensure_ascii=bool(indent)) + around
    answer = parse_answer(text)
    assert (answer.text, answer.rewritten, answer.without_interval, answer.duplicates) == (text, False, 0, 0)


def test_intervals_of_valid_json_are_read_in_its_order_and_nothing_is_left_out() -> None:
    text = json.dumps(envelope(spike(5, 6), spike(1, 2), {"type": "全局属性"}, spike(5, 6)), ensure_ascii=False)
    answer = parse_answer(text)
    assert answer.text == text
    assert answer.intervals == ((5, 6), (1, 2), (5, 6))
    assert (answer.without_interval, answer.duplicates) == (0, 0)


@pytest.mark.parametrize(
    ("text", "intervals"),
    [
        ('[{"interval": [3, 4]}, {"interval": null}, {"interval": [1, 1]}]', ((3, 4), (1, 1))),
        ('{"interval": [7, 8.0], "type": "x"}', ((7, 8),)),
        ('{"status": "failed", "why": [1, 2]}', ()),
        ("[]", ()),
    ],
)
def test_other_shapes_of_valid_json(text: str, intervals: tuple[tuple[int, int], ...]) -> None:
    answer = parse_answer(text)
    assert (answer.text, answer.rewritten, answer.intervals) == (text, False, intervals)


def test_the_canonical_form() -> None:
    answer = parse_answer("{'reason': 'x', 'level': 2, 'interval': (741, 780.0), 'type': '竖直尖峰', 'sure': True}")
    assert answer.text == (
        '{"status": "success", "detected_anomalies": '
        '[{"interval": [741, 780], "type": "竖直尖峰", "reason": "x", "level": 2, "sure": true}]}'
    )


@pytest.mark.parametrize("value", [[], [{"type": "无异常"}], "{'type': '全局属性'}", f"{NONE_FOUND},{NONE_FOUND}"])
def test_no_interval_at_all_is_the_answer_without_anomalies(value: object) -> None:
    assert parse_answer(value).text == NONE_FOUND


NORMAL = ["无异常", " 正常 ", "正常状态。", "Normal", "NO ANOMALY", "no_anomaly", "none", "No-Anomalies"]


@pytest.mark.parametrize("dialect", ["strict JSON", *DIALECTS])
@given(
    kinds=st.lists(st.sampled_from(NORMAL) | st.sampled_from(["上行尖峰", "阶跃", "abnormal"]), min_size=1),
    at_a_place=st.booleans(),
)
def test_the_normal_state_is_no_anomaly(dialect: str, kinds: list[str], at_a_place: bool) -> None:
    entries = [
        {"interval": [place, place + 9], "type": kind}
        if at_a_place or kind not in NORMAL
        else {"type": kind, "reason": "未见 3 处"}
        for place, kind in enumerate(kinds)
    ]
    write = DIALECTS.get(dialect, lambda entries: json.dumps(envelope(*entries)))
    answer = parse_answer(write(entries))
    left = [entry for entry in entries if entry["type"] not in NORMAL]
    assert answer.normal == len(entries) - len(left)
    assert [list(pair) for pair in answer.intervals] == [entry["interval"] for entry in left]
    assert read_anomalies(answer.text) == ([Anomaly(*e["interval"], {"type": e["type"]}) for e in left], 0)  # type: ignore[misc]
    if not left:
        assert answer.text == NONE_FOUND


def test_words_for_the_normal_state_may_be_added() -> None:
    text = '[{"interval": [1, 2], "type": "健康"}, {"interval": [3, 4], "type": null}]'
    assert len(parse_answer(text).intervals) == 2
    assert parse_answer(text, normal_types(["健康"])).text == '[{"interval": [3, 4], "type": null}]'
    assert parse_answer('[{"interval": [1, 2], "type": "正常"}]', normal_types(["健康"])).text == NONE_FOUND


def test_what_stands_beside_the_normal_state_stays() -> None:
    text = '{"summary": "x", "detected_anomalies": [{"type": "全局属性"}, {"type": "无异常", "interval": [0, 9]}]}'
    answer = parse_answer(text)
    assert answer.text == '{"summary": "x", "detected_anomalies": [{"type": "全局属性"}]}'
    assert (answer.normal, answer.without_interval, answer.rewritten, answer.was_json) == (1, 0, True, True)


KEYS = {
    "start, end": {"start": 100, "end": 101.0},
    "their like": {"Start_Index": 100, "endIndex": 101, "interval": None},
    "Chinese": {"起始索引": 100, "结束索引": 101},
    "range": {"range": [100, 101]},
    "another case": {"Interval": (100, 101)},
    "segment": {"segment": {"start": 100, "end": 101, "count": 2}},
    "nested": {"interval": {"start": 100, "end": 101}},
    "twice the same": {"range": [100, 101], "start": 100, "end": 101},
    "rows beside times": {"start": "2025-01-01", "end": "2025-01-02", "start_idx": 100, "end_idx": 101},
}


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("dialect", ["strict JSON", *DIALECTS])
def test_an_interval_under_another_key(name: str, dialect: str) -> None:
    write = DIALECTS.get(dialect, lambda entries: json.dumps(envelope(*entries)))
    answer = parse_answer(write([{"type": "尖峰", **KEYS[name]}]))
    assert (answer.intervals, answer.renamed, answer.rewritten) == (((100, 101),), 1, True)
    (found,), without = read_anomalies(answer.text)
    assert (found.start, found.end, found.type, without) == (100, 101, "尖峰", 0)
    again = parse_answer(answer.text)
    assert (again.text, again.rewritten) == (answer.text, False)


@pytest.mark.parametrize("write", [str, json.dumps])
@pytest.mark.parametrize(
    "intervals",
    [{"intervals": [[100, 101], [5, 6]]}, {"segments": [{"start": 100, "end": 101}, {"start": 5, "end": 6}]}],
)
def test_several_intervals_in_one_entry(intervals: Entry, write: Callable[[object], str]) -> None:
    answer = parse_answer(write({"anomalies": [{"type": "尖峰", **intervals}]}))
    assert sorted(answer.intervals) == [(5, 6), (100, 101)]
    assert [entry["type"] for entry in json.loads(answer.text)["detected_anomalies"]] == ["尖峰"] * 2


@pytest.mark.parametrize("write", [str, json.dumps])
@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (
            {"type": "尖峰", "position": 100},
            "an entry has no interval, but 100 under 'position'; if that is its place",
        ),
        ({"type": "尖峰", "at": "row 100"}, "but 'row 100' under 'at'"),
        ({"type": "尖峰", "start": 100}, "but 100 under 'start'"),
        ({"type": "尖峰", "start": 100, "length": 2}, "but 100 under 'start'"),
        ({"type": "尖峰", "segment": "100-101"}, "segment is '100-101', expected [start, end], two whole numbers"),
        ({"type": "尖峰", "start": "01:40", "end": "01:50"}, "end, start is ['01:40', '01:50'], expected"),
        ({"type": "尖峰", "range": [12.5, 30]}, "range is [12.5, 30], expected"),
        ({"type": "尖峰", "range": [1, 2], "start": 3, "end": 4}, "end, range, start name different intervals"),
        ([1, 2], "is no anomaly"),
        ("尖峰 at 100", "'尖峰 at 100' is no anomaly"),
    ],
)
def test_a_place_that_is_not_understood_is_not_nothing(
    entry: object, said: str, write: Callable[[object], str]
) -> None:
    with pytest.raises(GdshError) as fault:
        parse_answer(write({"status": "success", "detected_anomalies": [entry]}))
    assert said in str(fault.value)


@pytest.mark.parametrize(
    "entry",
    [
        {"type": "全局属性", "reason": "3 Hz", "severity": 2},
        {"type": "全局属性", "trend": "stable"},
        {"overall_attribute": {"frequency": "3 Hz"}},
        {"type": "尖峰", "interval": None},
        {"interval": [1, 2], "type": "尖峰", "range": [0, 9], "position": 7},
    ],
)
def test_remarks_are_no_places(entry: Entry) -> None:
    assert parse_answer(json.dumps([entry])).text == json.dumps([entry])
    assert parse_answer(f"{json.dumps(entry)},{NONE_FOUND}").renamed == 0


GOOD = json.dumps(spike(1, 2), ensure_ascii=False)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "the answer is None, neither text nor a list nor an object"),
        (3, "the answer is 3, neither text"),
        ("", "the answer is empty; for a series without anomalies write"),
        (" \n", "the answer is empty"),
        ('"abc"', "neither object nor list: '\"abc\"'"),
        ("3", "neither object nor list: '3'"),
        ("null", "neither object nor list"),
        ("NaN", "text at character 0 that is not part of the JSON: 'NaN'"),
        ("no anomaly", "text at character 0 that is not part of the JSON: 'no anomaly'"),
        (f"```json\n{GOOD}\n```", "a Markdown code fence at character 0"),
        (f"{GOOD}\n```", "a Markdown code fence at character"),
        (f"The answer: {GOOD}", "text at character 0 that is not part of the JSON: 'The answer: "),
        (f"Here's it: {GOOD}", "text at character 0 that is not part of the JSON"),
        (f"{GOOD} done", f"text at character {len(GOOD) + 1} that is not part of the JSON"),
        (f"{GOOD};{GOOD}", f"text at character {len(GOOD)} that is not part of the JSON"),
        (f"{GOOD},,{GOOD}", f"text at character {len(GOOD)} that is not part of the JSON"),
        (f"{GOOD},", f"a comma at character {len(GOOD)} that is not part"),
        (f",{GOOD}", "a comma at character 0 that is not part"),
        (f"{GOOD}}}", f"text at character {len(GOOD)} that is not part"),
        (f"({GOOD},)", "text at character 0 that is not part"),
        (f"{GOOD},{GOOD[:-1]}", f"the bracket that opens at character {len(GOOD) + 1} never closes"),
        (GOOD[:20], "never closes"),
        (GOOD[: GOOD.index("尖峰")], "a quote opens at character 29 and never closes: "),
        ("{'interval': [1, 2], 'type': null}", "neither JSON nor a Python literal at character 1"),
        ('{"interval": [1, 2], "level": NaN}', "at character 0 (NaN is no JSON number)"),
        ("{'interval': [1, 2], 'level': 1e999}", "a value that JSON has no form for"),
        ("{'interval': [1, 2], 'level': {1, 2}}", "a value that JSON has no form for"),
        ({"interval": [1, 2], "level": float("inf")}, "a value that JSON has no form for"),
        ('{"interval": [1, 2], "interval": [3, 4]}', "a key occurs twice in one object"),
        ("{'interval': [1, 2], 'interval': [3, 4]}", "a key occurs twice in one object"),
        ("{[1]: 2}", "neither JSON nor a Python literal"),
        ("{1, 2}", "{1, 2} is no anomaly; expected an object with interval"),
        ({1: 2}, "{1: 2} is no anomaly"),
        ([741, 780], "741 is no anomaly"),
        ({}, "{} has neither detected_anomalies nor interval nor type"),
        ({"status": "success"}, "has neither detected_anomalies nor interval nor type"),
        ({"status": "failed", "detected_anomalies": []}, "status is 'failed', expected 'success'"),
        (f'{NONE_FOUND},{{"status": "error", "detected_anomalies": []}}', "status is 'error', expected 'success'"),
        ({"detected_anomalies": {}}, "cannot be joined: expected status, a list detected_anomalies"),
        ({"detected_anomalies": [], "summary": "x"}, "and no other key"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
        ("[" + "9" * 5000 + "]", "neither JSON nor a Python literal"),
    ],
)
def test_what_cannot_be_read_in_one_way_is_refused(value: object, said: str) -> None:
    with pytest.raises(GdshError) as fault:
        parse_answer(value)
    assert said in str(fault.value)
    assert len(str(fault.value)) < 400


@pytest.mark.parametrize(
    "interval", [[1], [1, 2, 3], [], "1-2", 5, {"a": 1}, [1, "2"], [1, None], [True, 2], [1.5, 2], [1, float("inf")]]
)
@pytest.mark.parametrize("write", [lambda entry: entry, lambda entry: str(entry), lambda entry: json.dumps([entry])])
def test_an_interval_is_two_whole_numbers(interval: object, write: Callable[[object], object]) -> None:
    value = write({"interval": interval, "type": "x"})
    if "inf" in str(value).lower().replace("interval", ""):
        value = '{"interval": [1, 1e999]}'
    with pytest.raises(GdshError, match=r"interval is .*, expected \[start, end\], two whole numbers; correct"):
        parse_answer(value)


@given(
    intervals=st.lists(st.tuples(st.integers(-3, 12), st.integers(-3, 12))),
    lengths=st.lists(st.integers(1, 10), min_size=1, max_size=3),
)
def test_intervals_lie_within_the_longest_series(intervals: list[tuple[int, int]], lengths: list[int]) -> None:
    rows = range(max(lengths))
    bad = [pair for pair in intervals if pair[0] not in rows or pair[1] not in rows or pair[0] > pair[1]]
    if not bad:
        check_intervals(intervals, lengths)
        return
    with pytest.raises(GdshError) as fault:
        check_intervals(intervals, lengths)
    said = str(fault.value)
    assert said.startswith(f"{len(bad)} of {len(intervals)} intervals do not fit the series of {len(rows)} rows: ")
    named = [str(list(pair)) for pair in bad[:5]] + ["..."] * (len(bad) > 5)
    assert f" rows: {', '.join(named)}; " in said
    assert f"0 <= start <= end <= {len(rows) - 1}" in said


def test_intervals_need_a_series() -> None:
    with pytest.raises(GdshError, match="no series to check"):
        check_intervals([], [])


@pytest.mark.skipif(not REAL.exists(), reason="the real annotation file is not public")
def test_all_real_answers_become_json() -> None:
    keys = {"messages": "conversations", "images": "image", "role_tag": "from", "content_tag": "value"}
    rows = list(read_annotations(REAL, **keys, system=None))
    answers = [parse_answer(row.turns[-1][1]) for row in rows]
    assert len(answers) == 99
    assert all(row.fault is None for row in rows)
    assert all(json.loads(answer.text)["status"] == "success" for answer in answers)
    assert sum(len(answer.intervals) for answer in answers) == 1845
    assert sum(answer.without_interval + answer.normal for answer in answers) == 118
    assert sum(answer.duplicates for answer in answers) == 0
    for answer in answers:
        check_intervals(answer.intervals, [5000])


def test_an_interval_of_times_is_sent_to_import() -> None:
    text = '{"interval": ["2025-01-01 01:40:00", "2025-01-01 01:59:00"], "type": "x"}'
    with pytest.raises(GdshError, match="times become rows by `llamafactory-ext import SOURCE --labels gdsh:FILE`"):
        parse_answer(text)
