"""What a table's first lines say of its columns, and what stands beside the values: each limit, and one beyond it."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from llamafactory_ext.gdsh import GdshError, TableOptions, read_series
from llamafactory_ext.gdsh.columns import Watch
from llamafactory_ext.gdsh.layout import (
    MAX_COLUMNS,
    count_totals,
    count_units,
    find_layout,
    find_separator,
    is_number,
)


def watch(options: TableOptions = TableOptions(), **columns: list[str]) -> tuple[Watch, list[tuple[str, str]]]:  # noqa: B008
    """Looks at batches of two rows each, as a table's reader does."""
    names = ("value", *columns)
    places = {key: names.index(key) if key in names else None for key in ("time", "quality", "tag")}
    layout = find_layout(names, [["1"] * len(names)], [], options)
    assert {key: getattr(layout, key) for key in places} == places
    found, count = Watch(layout, options), len(next(iter(columns.values())))
    values = np.arange(count, dtype=np.float64)
    for at in range(0, count, 2):
        found.see(values[at : at + 2], {key: pa.array(cells[at : at + 2]) for key, cells in columns.items()})
    return found, found.remarks(values)


@pytest.mark.parametrize(
    ("times", "said"),
    [
        (["1", "2", "3", "13"], []),
        (["1", "2", "3", "13.5"], ["time jumps by more than 10 times the usual step 1 times"]),
        (["3", "2", "1"], ["time runs backwards in 2 of 2 steps from row to row"]),
        (["1", "1", "1", "9"], []),  # without a usual step nothing is far from it
        (["2025-01-01 00:00", "2025-01-01 00:01", "2025-01-01 00:12"], ["time jumps by more than 10 times"]),
        (["2025/01/03", "2025/01/02"], ["time runs backwards in 1 of 1 steps"]),
        (["2025/01/01 10:30:05", "2025/01/01 10:30:04"], ["time runs backwards in 1 of 1 steps"]),
        (["2025-01-03", "2025-01-02"], ["time runs backwards in 1 of 1 steps"]),
        (["1.5", "1.25"], ["time runs backwards in 1 of 1 steps"]),
        (["noon", "2", "1"], []),
        (["1", "x", "3", "2"], []),  # no times any more, and nothing is said of the first ones
    ],
)
def test_time(times: list[str], said: list[str]) -> None:
    _, remarks = watch(time=times)
    texts = [text for kind, text in remarks if kind == "time"]
    assert len(texts) == len(said) and all(text.startswith(one) for text, one in zip(texts, said, strict=True))


@pytest.mark.parametrize(
    ("code", "good"),
    [
        ("192", True), ("191", False), ("255", True), ("128", False), ("64", False), ("0", False), ("4", False),
        ("448", True), ("65535", True), ("Good", True), (" ok ", True), ("B", False), ("无效", False), ("", False),
    ],
)  # fmt: skip
def test_qualities(code: str, good: bool) -> None:
    """OPC: of eight bits the two highest are set where a value is good (OPC DA 3.0, 6.8)."""
    used = TableOptions(quality_column="quality")
    for options, kind in ((TableOptions(), "quality_unused"), (used, "quality")):
        found, remarks = watch(options, quality=[code, "192", "192"])
        assert (found.bad, found.rows) == (int(not good), 3)
        assert [one for one, _ in remarks] == ([] if good else [kind])
    if not good:
        assert remarks == [("quality", "the column 'quality' calls 1 of 3 rows not good: interpolated")]


@pytest.mark.parametrize("code", ["3", "1", "-192", "65536", "192.5", "A7"])
def test_qualities_that_are_none(code: str) -> None:
    assert watch(quality=[code, code])[0].bad == 0
    with pytest.raises(GdshError, match="is not known; expected Good, Bad, or OPC codes"):
        watch(TableOptions(quality_column="quality"), quality=[code])


def test_a_table_holds_one_tag() -> None:
    assert watch(tag=["T1", "", "T1"])[0].tags == {"T1"}
    with pytest.raises(GdshError, match=r"the column 'tag' holds \['T1', 'T2'\]"):
        watch(tag=["T1", "T1", "T2"])


@pytest.mark.parametrize(
    ("cells", "number"),
    [
        ("1 2 -9999", "-9999"),
        ("1 2 999", "999"),
        ("1 2 99", None),
        ("1 2 998", None),
        ("-9999 1", None),  # one other tells nothing of how far values lie apart
        ("-9999 -9999 1", None),
        ("1 1 -9999", "-9999"),
        ("0 199 -999", "-999"),  # 999 away, 199 apart: five times 199 is 995
        ("0 200 -999", None),
        ("1 2 32768", "32768"),
        ("1 2 32769", None),
        ("1 2 65535", "65535"),
        ("1 2 1e20", "1e+20"),
        ("1 2 -1.5e19", None),
        ("1 2 999.5", None),
    ],
)
def test_sentinels(cells: str, number: str | None, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("n,value\n" + "".join(f"0,{cell}\n" for cell in cells.split()))
    said = dict(read_series(path).remarks).get("sentinel", "")
    assert said.partition(" ")[0] == (number or "")


def test_columns_of_a_table_have_an_end() -> None:
    names = ["value", *map(str, range(MAX_COLUMNS - 1))]
    assert find_layout(names, [], [], TableOptions()).value == 0
    with pytest.raises(GdshError, match="4,097 columns; at most 4,096 are read: leave out all but 'value'"):
        find_layout([*names, "x"], [], [], TableOptions())


@pytest.mark.parametrize(
    ("header", "row", "place"),
    [
        ("time,a", "1,2", 1),
        ("Time_Stamp,PV.Value", "1,2", 1),
        ("Quality Code,a", "192,2", 1),
        ("序号,a", "1,2", 1),
        ("a,is_anomaly", "1,0", 0),
        ("a,b", "1,Bad", 0),
        ("a,VALUE", "1,2", 1),
    ],
)
def test_the_only_column_with_numbers(header: str, row: str, place: int) -> None:
    found = find_layout(header.split(","), [row.split(",")], [], TableOptions())
    assert found.value == place
    assert dict(found.remarks)["column"].endswith(f"{header.split(',')[place]!r}, the only one with numbers")


@pytest.mark.parametrize("cells", [["1", "x", "y"], ["1", "12:30"], ["", " "], ["A1", "2"]])
def test_columns_without_numbers(cells: list[str]) -> None:
    with pytest.raises(GdshError, match=r"no column 'value' in the header \['a'\]; name exactly one"):
        find_layout(["a"], [[cell] for cell in cells], [], TableOptions())


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        ("1", True), (" -1", True), ("(1.5)", True), (".5", True), (",5", True), ("+1", True), ("1 mg", True),
        ("\u22121", True), ("x1", False), ("", False), ("-", False), ("2025-01-01", False), ("12:30", False),
        ("1/2", False),
    ],
)  # fmt: skip
def test_numbers_in_any_notation(cell: str, number: bool) -> None:
    assert is_number(cell) is number


@pytest.mark.parametrize(
    ("head", "units"),
    [
        ("s,mg|1,2", 1),
        ("s,mg", 0),  # one row alone may be anything
        (",|1,2", 0),
        ("s,3|1,2", 0),
        ("1,mg|1,2", 0),
        ("s,mg|x,2", 0),
        ("s,mg|1,2|x,3", 0),
        ("s,mg|1,2|Total,3", 1),
        ("s,mg|Total,2", 0),
        ("|1,2", 0),
    ],
)
def test_a_row_of_units(head: str, units: int) -> None:
    rows = [row.split(",") for row in head.split("|")]
    assert count_units(rows, 0) == units and count_units(rows, None) == 0


@pytest.mark.parametrize(
    ("tail", "totals"),
    [("1,2|3,4", 0), ("1,2|Total,4", 1), ("Sum,2|Mean: ,4", 2), ("Total,2|3,4", 0), ("1,2|3,Total", 0), ("合计,9", 1)],
)
def test_rows_of_totals(tail: str, totals: int) -> None:
    rows = [row.split(",") for row in tail.split("|")]
    assert count_totals(rows, 1) == totals
    found = find_layout(["time", "value"], [["1", "2"]], rows, TableOptions())
    assert (found.totals, "layout" in dict(found.remarks)) == (totals, totals > 0)


@pytest.mark.parametrize(
    ("line", "mark"),
    [
        ("a,b", ","), ("a;b", ";"), ("a\tb", "\t"), ("value;b,c,d", ";"), ("a;b;value,c", ";"), ("a;b,value", ","),
        ("a;b,c", ","), ("a;b;c,d", ";"), ("a", ","), ("", ","),
    ],
)  # fmt: skip
def test_separators(line: str, mark: str) -> None:
    assert find_separator(line) == mark
