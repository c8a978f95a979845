"""Which CSV belongs to a picture: checked against a plain statement of the rule, pair by pair."""

import os
import pickle
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafactory_ext.gdsh import GdshError, Matches, SeriesIndex, index_series


def touch(path: Path, text: str = "value\n1\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def folder_of(parent: Path, *names: str) -> Path:
    folder = parent / "timeseries" / "gdsh"
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        touch(folder / name)
    return folder


def found(folder: Path, picture: str) -> str:
    return Path(index_series(folder).find(picture).path).relative_to(folder.parent).as_posix()


def refused(folder: Path, picture: str) -> str:
    with pytest.raises(GdshError) as fault:
        index_series(folder).find(picture)
    return str(fault.value)


def belongs(longer: str, shorter: str) -> bool:
    """The rule, word for word: `shorter` ends `longer`, after a `_` or where a non-ASCII prefix ends."""
    if not longer.endswith(shorter) or len(longer) == len(shorter):
        return False
    prefix = longer[: len(longer) - len(shorter)]
    return prefix.endswith("_") or (all(ord(c) > 127 for c in prefix) and ord(shorter[0]) < 128)


def known(picture: str, stem: str, folder: set[str], own: set[str], name: str) -> bool:
    """The rule, word for word: what the longer name has more is a prefix of the data set."""
    longer, shorter = (picture, stem) if len(picture) > len(stem) else (stem, picture)
    prefix = longer[: len(longer) - len(shorter)]
    bare = prefix[3:] if prefix.startswith("数据集") else prefix
    if not bare or bare.lower().startswith(("gdsh_", f"{name}_")):
        return True
    if longer == picture:
        having = sum(one.startswith(bare) for one in own)
        return having > 1 and having > len(own) / 2
    having = sum(one.startswith(prefix) for one in folder)
    exported = sum(one.startswith("数据集") for one in folder)
    return (having > 1 and having > len(folder) / 2) or (bare != prefix and having == exported)


stems = st.lists(
    st.sampled_from(["数据集", "数", "gdsh_", "whlj_", "a_", "b_", "x", "."]), min_size=1, max_size=4
).map("".join)
stems = stems.filter(lambda stem: not stem.startswith("."))


@given(own=st.sets(stems, max_size=5), beside=st.sets(stems, max_size=5), picture=stems)
def test_as_the_plain_rule(
    tmp_path_factory: pytest.TempPathFactory, own: set[str], beside: set[str], picture: str
) -> None:
    folder = folder_of(tmp_path_factory.mktemp("p"), *(f"{stem}.csv" for stem in own))
    for stem in beside:
        touch(folder.parent / "whlj" / f"{stem}.csv")

    for tier, name in ((own, "gdsh"), (beside, "whlj")):
        alike = {stem for stem in tier if belongs(stem, picture) or belongs(picture, stem)}
        matches = {picture} & tier or {stem for stem in alike if known(picture, stem, tier, own, name)}
        if len(matches) == 1:
            assert found(folder, f"/home/x/{picture}.jpg") == f"{name}/{matches.pop()}.csv"
            return
        if matches:
            assert f"belongs to {len(matches)} CSV files" in refused(folder, f"{picture}.jpg")
            return
    assert f"no CSV file belongs to {picture!r}" in refused(folder, f"{picture}.jpg")


@pytest.mark.parametrize(
    ("files", "pictures"),
    [
        (["H2S"], ["LHS2_AI_H2S"]),
        (["H2S", "CO", "O2"], ["LHS2_AI_H2S", "LHS3_AI_H2S", "X_CO"]),
        (["P02_V.PV"], ["P6208_P02_V.PV", "C6102_P02_V.PV"]),
        (["P6208_P02_V.PV", "C6102_P03_V.PV"], ["P02_V.PV"]),
        (["进口FI_1.PV"], ["FI_1.PV"]),
        (["FI_1.PV"], ["进口FI_1.PV", "出口FI_1.PV"]),
    ],
)
def test_a_sensor_is_not_another_one(files: list[str], pictures: list[str], tmp_path: Path) -> None:
    folder = folder_of(tmp_path, *(f"{stem}.csv" for stem in files))
    matches = Matches(index_series(folder), [f"/x/{stem}.jpg" for stem in pictures])
    for stem in pictures:
        with pytest.raises(
            GdshError, match=r"ends alike, but '.*' is no prefix that the folder's files or the pictures"
        ):
            matches.find(f"{stem}.jpg")


def test_a_prefix_that_most_names_share_is_the_data_set(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, *(f"{place}FI.PV.csv" for place in range(4)), *(f"sd_{n}TI.csv" for n in range(9)))
    pictures = [f"zhlh_100_{place}FI.PV.jpg" for place in range(4)]
    matches = Matches(index_series(folder), [*pictures, "0TI.jpg", "1TI.jpg"])
    assert [Path(matches.find(picture).path).name for picture in pictures] == [f"{n}FI.PV.csv" for n in range(4)]
    assert Path(matches.find("1TI.jpg").path).name == "sd_1TI.csv"
    assert matches.disputed == {}


def test_two_pictures_are_enough_to_share_a_prefix_where_they_are_most(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "0FI.PV.csv", "1FI.PV.csv")
    pictures = [f"zhlh_100_{place}FI.PV.jpg" for place in range(2)]
    matches = Matches(index_series(folder), [*pictures, "other.jpg"])
    assert [Path(matches.find(picture).path).name for picture in pictures] == ["0FI.PV.csv", "1FI.PV.csv"]


def test_two_pictures_on_one_file(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "X_1.csv", "Y_1.csv")
    matches = Matches(index_series(folder), ["gdsh_X_1.jpg", "gdsh_second_X_1.jpg", "gdsh_Y_1.jpg", "Y_1.jpg"])
    for picture in ("gdsh_X_1.jpg", "gdsh_second_X_1.jpg"):
        with pytest.raises(
            GdshError, match=r"X_1\.csv' would belong to several pictures, by their ending alone: 'gdsh_X_1'"
        ):
            matches.find(picture)
    assert Path(matches.find("gdsh_Y_1.jpg").path).name == "Y_1.csv"
    both = Matches(index_series(folder), ["数据集gdsh_X_1.jpg", "gdsh_X_1.jpg"])
    assert Path(both.find("gdsh_X_1.jpg").path).name == "X_1.csv"


def test_workbooks_count_where_there_is_no_csv(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "X.csv", "X.xlsx", "Y.parquet", "Y.xlsx", "Z.tsv")
    assert [found(folder, f"{name}.jpg") for name in "XYZ"] == ["gdsh/X.csv", "gdsh/Y.xlsx", "gdsh/Z.tsv"]


@pytest.mark.parametrize(
    ("name", "picture"),
    [
        ("gdsh_second_2501.PV.csv", "/home/wyx/gdsh_second_2501.PV.jpg"),
        ("数据集gdsh_second_X.PV.csv", "gdsh_second_X.PV.jpg"),
        ("AT_032143.PV.csv", "gdsh_second_AT_032143.PV.jpg"),
        ("数据集whlj_ljsj_NB.LJSJ.PT_2A234C.PV.csv", "NB.LJSJ.PT_2A234C.PV.jpg"),
        ("数据集zhlh_100_FI.OUT.CSV", "C:\\数据\\zhlh_100_FI.OUT.JPEG"),
        ("X.PV.csv", "X.PV.png"),
        ("X.PV.csv", "X.PV"),
        ("X.PV.csv", "a/X.PV.csv"),
        ("X.PV.csv", "a\\b/X.PV.csv.Jpg"),
        ("X.jpg.csv", "X.jpg.jpg"),
        (unicodedata.normalize("NFD", "é_1.csv"), unicodedata.normalize("NFC", "é_1.jpg")),
        (unicodedata.normalize("NFC", "é_1.csv"), unicodedata.normalize("NFD", "é_1.jpg")),
    ],
)
def test_names_of_the_field(tmp_path: Path, name: str, picture: str) -> None:
    folder = folder_of(tmp_path, name, "other.csv")
    assert found(folder, picture) == f"gdsh/{name}"


@pytest.mark.parametrize("picture", ["", "a/", "a\\", ".jpg", "a/.csv.png", "a\0.jpg"])
def test_a_picture_without_a_name(tmp_path: Path, picture: str) -> None:
    assert "has no usable file name; expected a path such as" in refused(folder_of(tmp_path, "a.csv"), picture)


def test_an_equal_name_wins_over_an_ending(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a_X.csv", "X.csv", "数据集X.csv")
    assert found(folder, "X.jpg") == "gdsh/X.csv"


def test_sub_folders_count_and_folders_beside_only_in_need(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "deep/er/X.csv")
    touch(folder.parent / "whlj" / "X.csv")
    touch(folder.parent / "whlj" / "deep" / "Y.csv")
    touch(folder.parent / "Z.csv")
    assert found(folder, "X.jpg") == "gdsh/deep/er/X.csv"
    assert found(folder, "Y.jpg") == "whlj/deep/Y.csv"
    assert [index_series(folder).find(f"{name}.jpg").beside for name in "XY"] == [False, True]
    assert "no CSV file belongs to 'Z'" in refused(folder, "Z.jpg")


def test_ambiguity_names_the_candidates(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a/X.csv", "b/X.csv", "Y_1.csv", "数据集Y_1.csv", "Z.csv", "gdsh_Z.csv")
    same = refused(folder, "X.jpg")
    assert "'X' belongs to 2 CSV files of the same name: " in same
    assert str(folder / "a" / "X.csv") in same
    assert str(folder / "b" / "X.csv") in same
    assert "'gdsh_gdsh_Z' belongs to 2 CSV files by shared endings of different lengths: " in refused(
        folder, "gdsh_gdsh_Z.jpg"
    )
    folder = folder_of(tmp_path / "other", "数据集Y.csv", "gdsh_Y.csv")
    assert "'Y' belongs to 2 CSV files by a shared ending: " in refused(folder, "Y.jpg")


def test_ambiguity_names_five_at_most(tmp_path: Path) -> None:
    said = refused(folder_of(tmp_path, *(f"gdsh_{place}_X.csv" for place in range(7))), "X.jpg")
    assert "belongs to 7 CSV files by a shared ending" in said
    assert said.count("_X.csv") == 5


def test_a_missing_file_is_told_with_the_nearest_names(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, *(f"gdsh_second_{place:03}FI.PV.csv" for place in range(200)))
    touch(folder.parent / "whlj" / "other.csv")
    said = refused(folder, "gdsh_second_015FI.OUT.jpg")
    assert f"no CSV file belongs to 'gdsh_second_015FI.OUT': searched {str(folder)!r} (200 CSV files)" in said
    assert "folders beside it (1); the nearest names are 'gdsh_second_015FI.PV.csv', " in said
    assert said.count("'gdsh_second_0") == 5  # the name, three near ones, and the file to add
    assert "nearest" not in refused(folder, "?.jpg")


def test_the_nearest_names_share_a_beginning_or_an_ending(tmp_path: Path) -> None:
    others = [f"z/A{place:02}.MM.csv" for place in range(60)]
    folder = folder_of(tmp_path, "a/T-9999.ZZ.csv", "a/zz-AT_2501.PV.csv", *others)
    assert "nearest names are 'T-9999.ZZ.csv'" in refused(folder, "T-9999.00.jpg")
    assert "nearest names are 'zz-AT_2501.PV.csv'" in refused(folder, "!-AT_2501.PV.jpg")


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("others", "missing"),
    [("z{}.MM", "T-9999.00"), ("z{}.SS", "T-9999.ZZ"), ("A{}.MM", "T-9999.00"), ("A{}.SS", "T-9999.ZZ")],
)
def test_a_near_name_is_found_among_more_than_are_compared(
    tmp_path: Path, others: str, missing: str, turned: bool
) -> None:
    """First or last in the order of names, just before the missing one or after it; by its beginning or ending."""
    stems = ["T-9999.QQ", missing, *(others.format(place) for place in range(10, 40))]
    near, missing, *many = (stem[::-1] if turned else stem for stem in stems)
    folder = folder_of(tmp_path, f"{near}.csv", *(f"{stem}.csv" for stem in many))
    assert f"the nearest names are '{near}.csv'; " in refused(folder, f"{missing}.jpg")


def test_nothing_is_searched_beside_a_folder_of_the_root() -> None:
    roots = [Path(name) for name in ("/srv", "/media", "/mnt") if Path(name).is_dir() and not [*Path(name).iterdir()]]
    if not roots:
        pytest.skip("no empty folder in the root of this file system")
    assert index_series(roots[0]).beside.files == ()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_folders_that_cannot_be_read(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "X.csv", "locked/Y.csv")
    touch(folder.parent / "whlj" / "Z.csv")
    folder.parent.chmod(0o311)
    (folder / "locked").chmod(0o000)
    try:
        with pytest.raises(GdshError, match=r"locked' cannot be read \(Permission denied\); correct its permissions"):
            index_series(folder)
        (folder / "locked").chmod(0o755)
        assert index_series(folder).beside.files == ()
    finally:
        folder.parent.chmod(0o755)
        (folder / "locked").chmod(0o755)


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(
        GdshError, match="none' does not exist; expected the folder of the CSV files: correct the path"
    ):
        index_series(tmp_path / "none")
    with pytest.raises(GdshError, match=r"a\.csv' is not a folder"):
        index_series(touch(tmp_path / "a.csv"))


def test_only_regular_and_visible_files_count(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "X.csv/inner.txt", "._Y.csv", ".ipynb_checkpoints/Z.csv", "W.txt")
    os.mkfifo(folder / "pipe.csv")
    touch(folder.parent / ".hidden" / "V.csv")
    index = index_series(folder)
    assert (index.own.files, index.beside.files) == ((), ())


def test_links_that_lead_out_are_passed_over(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "real.csv")
    beside = touch(folder.parent / "whlj" / "beside.csv")
    outside = touch(tmp_path / "secret" / "S.csv")
    links = {
        "alias": folder / "real.csv",
        "a": beside,
        "b": outside,
        "gone": folder / "nothing.csv",
        "self": folder / "self.csv",
    }
    for name, target in links.items():
        (folder / f"{name}.csv").symlink_to(target)
    (folder / "linked").symlink_to(outside.parent)
    (folder.parent / "linked").symlink_to(outside.parent)
    (folder.parent / "whlj" / "own.csv").symlink_to(folder / "real.csv")
    (folder.parent / "whlj" / "out.csv").symlink_to(outside)
    index = index_series(folder)
    assert [(file.stem, Path(file.path).name) for file in index.own.files] == [
        ("alias", "real.csv"),
        ("real", "real.csv"),
    ]
    assert [(file.stem, Path(file.path).name) for file in index.beside.files] == [
        ("beside", "beside.csv"),
        ("own", "real.csv"),
    ]


def test_two_links_to_one_file_are_one_candidate(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "gdsh_X.csv")
    (folder / "gdsh_b_X.csv").symlink_to(folder / "gdsh_X.csv")
    assert found(folder, "X.jpg") == "gdsh/gdsh_X.csv"


def test_a_folder_that_is_a_link_itself(tmp_path: Path) -> None:
    target = touch(tmp_path / "elsewhere" / "X.csv")
    folder = tmp_path / "timeseries" / "gdsh"
    folder.parent.mkdir()
    folder.symlink_to(target.parent)
    touch(tmp_path / "timeseries" / "whlj" / "Y.csv")
    index = index_series(folder)
    assert index.find("X.jpg").path == str(target)
    assert index.find("Y.jpg").path == str(tmp_path / "timeseries" / "whlj" / "Y.csv")


def test_the_index_pickles_and_changes_only_with_the_files(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "b.csv", "a.csv", "c/a_b.csv")
    touch(folder.parent / "whlj" / "d.csv")
    before = index_series(folder)
    copy: SeriesIndex = pickle.loads(pickle.dumps(before))
    assert copy == before
    assert copy.find("a.jpg") == before.find("a.jpg")
    assert pickle.dumps(index_series(folder)) == pickle.dumps(before)
    assert [file.stem for file in before.own.files] == ["a", "b", "a_b"]

    for changed in (folder / "a.csv", folder.parent / "whlj" / "d.csv"):
        info = changed.stat()
        changed.write_text("value\n12\n")
        longer = index_series(folder)
        assert longer != before
        changed.write_text("value\n1\n")  # of the old size, and with the old time
        os.utime(changed, ns=(info.st_atime_ns, info.st_mtime_ns))
        assert index_series(folder) not in (before, longer)
        before = index_series(folder)


def test_lookups_stay_quick_when_every_picture_is_missing(tmp_path: Path) -> None:
    index = index_series(folder_of(tmp_path, *(f"数据集gdsh_second_{place}FI.PV.csv" for place in range(1000))))
    start = time.perf_counter()
    for place in range(500):
        with pytest.raises(GdshError):
            index.find(f"/home/x/zhlh_100_{place}.OUT.jpg")
    assert time.perf_counter() - start < 5
