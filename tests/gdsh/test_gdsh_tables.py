"""The `value` column of a CSV file, every row in its place."""

import csv
import io
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafactory_ext.gdsh import GdshError, read_series


def write(folder: Path, text: str | bytes, encoding: str = "utf-8") -> Path:
    path = folder / "series.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def values(folder: Path, text: str | bytes) -> list[float]:
    return list(read_series(write(folder, text)).values)


number = (
    st.floats(-1e300, 1e300).map(repr) | st.integers(-(10**20), 10**20).map(str) | st.sampled_from([" 1.5 ", "+2"])
)
junk = st.sampled_from(["", "nan", "NaN", "inf", "-Infinity", "Bad", "1e400", "1,234.5", "0x1F", "1_000", "异常", '"'])


@given(
    cells=st.lists(number | junk, min_size=1, max_size=30),
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
            found = float(cell.replace("_", "no number"))
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
        ("a,value\n0,1\n1,1_000\n2,3\n", [1, 2, 3]),
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
        ("a,Value\n0,1\n", "no column 'value' in the header ['a', 'Value']; name exactly one"),
        ("a;value\n0;1\n", "no column 'value' in the header ['a;value']"),
        ("\nvalue\n1\n", "no column 'value' in the header []"),
        ("value,a, value\n1,2,3\n", "2 columns 'value' in the header"),
        ("a,value\n", "a header, but no rows; expected a row for each point in time"),
        ("value\n\n\n", "a header, but no rows"),
        ("a,value\n0,Bad\n1,\n", "no finite number in 2 rows of 'value', the first cell is 'Bad'"),
        ("a,value\n0,1\n1,2,3\n", "row 1 has 3 fields, the header 2: ['1', '2', '3']; put quotes"),
        ('a,value\n0,1\n"1,2\n', "malformed CSV at line 3: unexpected end of data"),
        ('a,value\n0,1\n"1"x,2\n', "malformed CSV at line 3"),
        ('a,value\n0,"' + "1" * 200_000 + '"\n', "malformed CSV at line 2: field larger than field limit"),
        ("value\n1\n".encode("utf-16"), "is neither UTF-8 nor GB18030 text; save it as UTF-8"),
        ("value\n1\n".encode("utf-16-le"), "holds NUL characters"),
    ],
)
def test_faults(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(GdshError) as fault:
        values(tmp_path, text)
    assert said in str(fault.value)
    assert "series.csv" in str(fault.value)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    for path in (tmp_path, pipe):
        with pytest.raises(GdshError, match="is not a regular file"):
            read_series(path)
    with pytest.raises(GdshError, match=r"cannot be read \(No such file or directory\); correct the path"):
        read_series(tmp_path / "none.csv")
