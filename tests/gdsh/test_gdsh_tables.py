"""The `value` column of a CSV file, every row in its place."""

import csv
import io
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafactory_ext.gdsh import GdshError, TableOptions, read_series


def write(folder: Path, text: str | bytes, encoding: str = "utf-8") -> Path:
    path = folder / "series.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def values(folder: Path, text: str | bytes) -> list[float]:
    return list(read_series(write(folder, text)).values)


number = (
    st.floats(-1e300, 1e300).map(repr) | st.integers(-(10**20), 10**20).map(str) | st.sampled_from([" 1.5 ", "+2"])
)
words = st.sampled_from(["", "nan", "NaN", "inf", "-Infinity", "Bad", "#N/A", "1.#IND", "I/O Timeout", "异常", '"'])


@given(
    cells=st.lists(number | words, min_size=1, max_size=30),
    place=st.integers(0, 3),
    width=st.integers(1, 4),
    line_end=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "gb18030"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_as_a_cell_by_cell_reading(
    tmp_path_factory: pytest.TempPathFactory,
    cells: list[str],
    place: int,
    width: int,
    line_end: str,
    encoding: str,
    quoting: int,
) -> None:
    place %= width
    out = io.StringIO()
    writer = csv.writer(out, lineterminator=line_end, quoting=quoting)  # type: ignore[arg-type]
    writer.writerow(["value" if column == place else f"列{column}" for column in range(width)])
    for cell in cells:
        writer.writerow([cell if column == place else f"甲,{column}" for column in range(width)])
    path = write(tmp_path_factory.mktemp("t"), out.getvalue(), encoding)

    expected = []
    for cell in cells:
        try:
            found = float(cell)
        except ValueError:
            found = float("nan")
        expected.append(found if abs(found) < float("inf") else float("nan"))
    gaps = np.isnan(expected)
    if gaps.all():
        with pytest.raises(GdshError, match=f"no finite number in {len(cells)} rows of 'value', the first cell is"):
            read_series(path)
        return
    series = read_series(path)
    at = np.arange(len(cells))
    assert series.filled == gaps.sum()
    assert series.values.dtype == np.float64
    assert series.values[~gaps].tolist() == np.array(expected)[~gaps].tolist()
    np.testing.assert_array_equal(series.values, np.interp(at, at[~gaps], np.array(expected)[~gaps]))


def test_the_usual_file(tmp_path: Path) -> None:
    text = ",date,category,value\n0,2024-01-01,PV,1.5\n1,2024-01-02,PV,\n2,2024-01-03,PV,2.5\n"
    series = read_series(write(tmp_path, text))
    assert (series.values.tolist(), series.filled) == ([1.5, 2.0, 2.5], 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("value\n1\n\n3\n\n\n", [1, 2, 3]),  # one column: a blank line in the middle is a gap, at the end no row
        ("value\n\n1\n", [1, 1]),
        ("a,value\n0,1\n1,I/O Timeout\n2,3\n", [1, 2, 3]),
        ("a,value\nx\ry,1\n", [1, 1]),
        ("value\n1\n\n3\n4\n", [1, 2, 3, 4]),
        ("value\n1\n  \n3\n \n", [1, 2, 3]),
        ('value\n1\n""\n3\n""\n', [1, 2, 3, 3]),  # an empty cell in quotes is a row wherever it stands
        ("a,value\n0,1\n\n1,3\n\n", [1, 3]),  # more columns: a blank line is no row
        ("a,value\r\r\n0,1\r\r\n1,3\r\r\n", [1, 3]),
        ("a,value\r0,1\r1,3\r", [1, 3]),
        ("a,value\n0,1\n1,\n,\n", [1, 1, 1]),
        ("a,value\n0,1\n1\n2,3", [1, 2, 3]),  # a short row has an empty cell
        (" value ,a\n1,0\n", [1]),
        ('"value",a\n1,"x\ny"\n2,0\n', [1, 2]),
        ("\ufeffvalue\n1\n", [1]),
        ("value\n0.1\n1e-320\n179769313486231570000000000000000000000\n", [0.1, 1e-320, 1.7976931348623157e38]),
    ],
)
def test_rows_keep_their_places(tmp_path: Path, text: str, expected: list[float]) -> None:
    assert values(tmp_path, text) == expected


def test_bom_of_gb18030(tmp_path: Path) -> None:
    assert values(tmp_path, "\ufeffvalue,类别\n1,甲\n".encode("gb18030")) == [1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty; expected a header with a column 'value'"),
        (" \n\n", "is empty; expected a header"),
        ("\ufeff", "is empty; expected a header"),
        ("a,b\n0,1\n", "no column 'value' in the header ['a', 'b']; ['a', 'b'] hold numbers; name exactly one"),
        ("a,b\nx,y\n", "set `value_column` (--value-column) to the one that is meant"),
        ("\nvalue\n1\n", "no column 'value' in the header []"),
        ("value,a, value\n1,2,3\n", "2 columns 'value' in the header"),
        ("a,value\n", "a header, but no rows; expected a row for each point in time"),
        ("value\n\n\n", "a header, but no rows"),
        ("a,value\n0,Bad\n1,\n", "no finite number in 2 rows of 'value', the first cell is 'Bad'"),
        ("a,value\n0,1\n1,2,3\n", "row 1 has 3 fields, the header 2: ['1', '2', '3']; put quotes"),
        ('a,value\n0,1\n"1,2\n', "malformed CSV at line 3: unexpected end of data"),
        ('a,value\n0,1\n"1"x,2\n', "malformed CSV at line 3"),
        ('a,value\n0,"' + "1" * 200_000 + '"\n', "malformed CSV at line 2: field larger than field limit"),
        (b"\x81\xff\xfe", "is neither UTF-8 nor GB18030 text; save it as UTF-8"),
        ("value\n1\n".encode("utf-16-le"), "holds NUL characters"),
    ],
)
def test_faults(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(GdshError) as fault:
        values(tmp_path, text)
    assert said in str(fault.value)
    assert "series.csv" in str(fault.value)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_columns_are_judged_by_fifty_rows(tmp_path: Path, suffix: str) -> None:
    """A second column of numbers leaves it open which one is meant, if one of the first fifty rows shows it."""
    from pyarrow import csv as arrow_csv
    from pyarrow import parquet

    for row in (50, 51):
        path = tmp_path / f"{row}{suffix}"
        cells = [f"{number},{'7' if number == row else ''}\n" for number in range(1, 61)]
        text = ("level,flow\n" + "".join(cells)).encode()
        if suffix == ".csv":
            path.write_bytes(text)
        else:
            parquet.write_table(arrow_csv.read_csv(io.BytesIO(text)), path)
        if row <= 50:
            with pytest.raises(GdshError, match=r"\['level', 'flow'\] hold numbers"):
                read_series(path)
        else:
            assert list(read_series(path).values) == list(range(1, 61))


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    for path in (tmp_path, pipe):
        with pytest.raises(GdshError, match="is not a regular file"):
            read_series(path)
    with pytest.raises(GdshError, match=r"cannot be read \(No such file or directory\); correct the path"):
        read_series(tmp_path / "none.csv")


# Cells of one column, and what they are.
NOTATIONS: dict[str, tuple[list[str], list[float], str]] = {
    "thousands": (["915.20", "1,180.00", ""], [915.2, 1180, 1180], "numbers written with commas between thousands"),
    "decimal comma": (["50,7933", "51", "1.180,5"], [50.7933, 51, 1180.5], "numbers written with a decimal comma"),
    "points are thousands then": (["1.180", "12,5"], [1180, 12.5], "numbers written with a decimal comma"),
    "Unicode minus": (["\u22126.41", "2.125"], [-6.41, 2.125], "numbers written with other signs"),
    "brackets": (["(1.5)", "2"], [-1.5, 2], "numbers written with negative ones in brackets"),
    "a unit": (["1.2E+03 mg", "5 mg"], [1200, 5], "numbers written with the unit 'mg' in each cell"),
    "a unit with digits": (["3.5 m3/h", "-2 m3/h"], [3.5, -2], "numbers written with the unit 'm3/h' in each cell"),
    "blanks": (["1 180.5", "2\u00a0000"], [1180.5, 2000], "numbers written with other signs"),
    "full width": (["\uff11\uff0e\uff15", "2"], [1.5, 2], "numbers written with other signs"),
    "Python's own": (["+2", " .5 ", "1e-320", "1.234"], [2, 0.5, 1e-320, 1.234], ""),
}


@pytest.mark.parametrize("name", NOTATIONS)
def test_numbers_as_others_write_them(name: str, tmp_path: Path) -> None:
    cells, expected, said = NOTATIONS[name]
    out = io.StringIO()
    csv.writer(out).writerows([["date", "value"], *(["2025-01-01", cell] for cell in cells)])
    series = read_series(write(tmp_path, out.getvalue()))
    assert series.values.tolist() == expected
    assert [text for kind, text in series.remarks if kind == "notation"] == [said][: bool(said)]


@pytest.mark.parametrize(
    ("cells", "line", "shown", "why"),
    [
        (["1", "2", "0x1F"], 4, "0x1F", "it has digits, but is no finite number"),
        (["1_000", "2"], 2, "1_000", "it has digits, but is no finite number"),
        (["1", "1e400"], 3, "1e400", "it has digits, but is no finite number"),
        (["1", "12:30"], 3, "12:30", "it has digits, but is no finite number"),
        (["1", "3 mg"], 3, "3 mg", "other cells of its column, such as '1', have another unit or none"),
        (["3 mg", "3 g"], 3, "3 g", "such as '3 mg', have another unit"),
        (["1.5", "12,5"], 3, "12,5", "decimal points and decimal commas stand in one column"),
        (["995", "1,234"], 3, "1,234", "its comma may part thousands or be a decimal comma, and no cell says which"),
    ],
)
def test_digits_that_are_no_number_are_a_fault(
    cells: list[str], line: int, shown: str, why: str, tmp_path: Path
) -> None:
    text = "n,value\n" + "".join(f'0,"{cell}"\n' for cell in cells)
    with pytest.raises(GdshError) as fault:
        values(tmp_path, text)
    assert f"series.csv': line {line}: the cell '{shown}' can't be read: " in str(fault.value)
    assert why in str(fault.value)
    missing = read_series(tmp_path / "series.csv", TableOptions(missing_values=(shown,)))
    assert missing.gaps.tolist() == [line - 2]


numeral = st.floats(-1e6, 1e6, allow_nan=False).map(lambda number: round(number, 3))


@given(numbers=st.lists(numeral, min_size=1, max_size=9), comma=st.booleans(), grouped=st.booleans())
def test_a_column_in_one_notation(
    numbers: list[float], comma: bool, grouped: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Written with four digits, so that no cell may be read in two ways."""
    swap = str.maketrans(",.", ".,") if comma else {}
    cells = [(f"{number:,.4f}" if grouped else f"{number:.4f}").translate(swap) for number in numbers]
    text = "n;value\n" + "".join(f"0;{cell}\n" for cell in cells)
    series = read_series(write(tmp_path_factory.mktemp("t"), text))
    assert series.values.tolist() == numbers
    assert series.filled == 0


TABLES = {
    "semicolons": "date;value\n2025-01-01;1,5\n2025-01-02;2,25\n",
    "tabs": "date\tvalue\n2025-01-01\t1.5\n2025-01-02\t2.25\n",
    "sep=": "sep=;\ndate;value\n2025-01-01;1.5\n2025-01-02;2.25\n",
    "another name": "time,PV\n2025-01-01,1.5\n2025-01-02,2.25\n",
    "a tag's name": ",date,FI_1.PV,quality\n7,2025-01-01,1.5,Good\n8,2025-01-02,2.25,Good\n",
    "another case": "time,VALUE,n\n2025-01-01,1.5,1\n2025-01-02,2.25,1\n",
    "a label beside": "Data,Label\n1.5,0\n2.25,1\n",
    "units": "时间,value,n\ns,mg/l,\n2025-01-01,1.5,1\n2025-01-02,2.25,1\n",
    "totals": "date,value\n2025-01-01,1.5\n2025-01-02,2.25\n合计,3.75\n",
    "an average in quotes": 'date,value\n2025-01-01,1.5\n2025-01-02,2.25\n"Average:",1.875\n\n',
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "gb18030"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_tables_as_they_are_laid_out(name: str, encoding: str, line_end: str, tmp_path: Path) -> None:
    text = TABLES[name].replace("\n", line_end)
    series = read_series(write(tmp_path, text, encoding))
    assert (series.values.tolist(), series.filled) == ([1.5, 2.25], 0)
    said = {kind for kind, _ in series.remarks}
    assert said - {"notation"} == (
        {"column"} if name in ("another name", "a tag's name", "another case", "a label beside") else {"layout"}
    ) | ({"layout"} if encoding == "utf-16" else set())


def test_a_column_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "value,PV,PV2\n1,2,3\n")
    assert read_series(path).values.tolist() == [1]
    assert read_series(path, TableOptions(value_column="PV2")).values.tolist() == [3]
    with pytest.raises(GdshError, match="no column 'SV' in the header"):
        read_series(path, TableOptions(value_column="SV"))


@pytest.mark.parametrize("quote", ["", '"'])
@pytest.mark.parametrize(
    ("good", "bad"), [("Good", "Bad"), ("192", "0"), ("216", "64"), ("好", "坏"), ("GOOD", "uncertain"), ("ok", "")]
)
def test_a_quality_column(good: str, bad: str, quote: str, tmp_path: Path) -> None:
    rows = [(1, good), (99, bad), (3, good)]
    text = "date,value,质量码\n" + "".join(f"2025-01-0{n},{n},{quote}{word}{quote}\n" for n, word in rows)
    path = write(tmp_path, text.replace("0 99", "02"))
    plain = read_series(path)
    assert (plain.values.tolist(), plain.filled) == ([1, 99, 3], 0)
    assert [text for kind, text in plain.remarks if kind == "quality_unused"] == [
        "the column '质量码' calls 1 of 3 rows not good, which is not used; "
        '"quality_column": "质量码" makes them missing'
    ]
    used = read_series(path, TableOptions(quality_column="质量码"))
    assert (used.values.tolist(), used.gaps.tolist()) == ([1, 2, 3], [1])
    assert "quality" in dict(used.remarks)


def test_a_quality_that_is_not_known(tmp_path: Path) -> None:
    path = write(tmp_path, "date,value,quality\n1,1,A7\n")
    assert read_series(path).remarks == ()
    with pytest.raises(GdshError, match="the quality 'A7' is not known; expected Good, Bad, or OPC codes"):
        read_series(path, TableOptions(quality_column="quality"))


@pytest.mark.parametrize("quote", ["", '"'])
def test_several_tags_in_one_table(quote: str, tmp_path: Path) -> None:
    rows = "".join(f"2025-01-01,{quote}T{n % 2}{quote},{n}\n" for n in range(6))
    with pytest.raises(GdshError, match=r"the column 'tag' holds \['T0', 'T1'\]; make a file of each, which"):
        values(tmp_path, f"date,tag,value\n{rows}")
    assert values(tmp_path, f"date,tag,value\n{rows.replace('T1', 'T0')}") == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("sentinel", ["-9999", "-9999.0000", "9999", "-999", "1e30"])
def test_sentinels_are_pointed_out_and_may_be_named(sentinel: str, tmp_path: Path) -> None:
    cells = ["50.1", "50.7", sentinel, "50.2", sentinel, "50.9"]
    path = write(tmp_path, "n,value\n" + "".join(f"0,{cell}\n" for cell in cells))
    assert "stands in 2 rows, far from all other values" in dict(read_series(path).remarks)["sentinel"]
    named = read_series(path, TableOptions(missing_values=(f"{float(sentinel):g}",)))
    assert (named.gaps.tolist(), named.remarks) == ([2, 4], ())


@pytest.mark.parametrize("cells", [["-999", "-1200", "3000"], ["998", "999", "997"], ["0", "0", "-9998"]])
def test_what_may_be_measured_is_no_sentinel(cells: list[str], tmp_path: Path) -> None:
    assert read_series(write(tmp_path, "n,value\n" + "".join(f"0,{cell}\n" for cell in cells))).remarks == ()


@pytest.mark.parametrize("form", ["2025-01-{:02d} 00:00:00", "2025/1/{:d} 00:00", "2025-01-{:02d}", "{:d}"])
def test_time_that_runs_backwards_or_jumps(form: str, tmp_path: Path) -> None:
    def said(days: list[int]) -> list[str]:
        text = "date,value\n" + "".join(f"{form.format(day)},{day}\n" for day in days)
        return [text for kind, text in read_series(write(tmp_path, text)).remarks if kind == "time"]

    assert said([1, 2, 3, 4, 5]) == []
    assert said([5, 4, 3, 2]) == ["time runs backwards in 3 of 3 steps from row to row"]
    assert said([1, 2, 3, 4, 25]) == ["time jumps by more than 10 times the usual step 1 times"]


def test_parquet_and_excel(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    times = pa.array([0, 60, 120, 180], pa.timestamp("s"))
    table = pa.table({"time": times, "PV": pa.array([1.5, None, 2.5, float("inf")])})
    parquet.write_table(table, tmp_path / "a.parquet")
    series = read_series(tmp_path / "a.parquet")
    assert (series.values.tolist(), series.gaps.tolist()) == ([1.5, 2, 2.5, 2.5], [1, 3])
    assert [kind for kind, _ in series.remarks] == ["column"]
    with pytest.raises(GdshError, match=r"a\.xlsx': an Excel file, which needs pandas and openpyxl|No such file"):
        read_series(tmp_path / "a.xlsx")
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(GdshError, match=r"b\.parquet': can't be read as a Parquet file"):
        read_series(tmp_path / "b.parquet")


@pytest.mark.parametrize("quote", ["", '"'])
def test_a_large_file_is_read_piece_by_piece(quote: str, tmp_path: Path) -> None:
    """Over several batches, and equal to what was written; a fault in its middle names its line."""
    count = 150_000
    wanted = np.arange(count) % 977 / 8
    lines = [f"{place},2025-01-01,PV,{quote}{value}{quote}" for place, value in enumerate(wanted)]
    series = read_series(write(tmp_path, "\n".join([",date,category,value", *lines])))
    assert np.array_equal(series.values, wanted)
    lines[70_000] = '70000,2025-01-01,PV,"7 x"'
    with pytest.raises(GdshError, match="line 70002: the cell '7 x' can't be read"):
        read_series(write(tmp_path, "\n".join([",date,category,value", *lines])))
