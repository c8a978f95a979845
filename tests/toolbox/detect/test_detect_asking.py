"""How a model was taught to be asked: from prepare over the data set's folder into the adapter's."""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import Gdsh, annotation, answer

from llamafactory_ext.gdsh import GdshError
from llamafactory_ext.gdsh.prompts import ASKING
from llamafactory_ext.toolbox.prepare import Options, prepare
from llamafactory_ext.toolbox.prepare.asking import Asking, read_asking


def test_prepare_says_how_and_training_takes_it_along(gdsh: Gdsh, tmp_path: Path) -> None:
    from llamafactory_ext.training.asking import write_asking

    for name in ("a", "b", "c"):
        gdsh.csv(f"{name}.csv", range(40))
    common, other = "<image>\n有何异常？", "<image>\n请标注。"
    gdsh.records(
        annotation("a.jpg", answer((3, 5)), other),
        annotation("b.jpg", answer((3, 5), (8, 9), kind="乙"), common),
        annotation("c.jpg", answer((20, 30), kind="乙"), common),
    )
    out = tmp_path / "made" / "train.jsonl"
    prepare(Options(root=gdsh.folder, out=out, window=20, max_points=10, compact_answers=True))
    expected = Asking("<ts><ts/>\n有何异常？", "", 20, 20, 10, True, ("乙", "点异常"))
    assert read_asking(tmp_path / "made" / "train.detect.json") == expected
    entries = {"train": {"file_name": "train.jsonl"}, "plain": {"file_name": "plain.json"}, "hub": {"hf_hub_url": "x"}}
    (tmp_path / "made" / "dataset_info.json").write_text(json.dumps(entries))
    for names, copied in ((["hub", "plain"], False), (["plain", "train"], True)):
        write_asking(tmp_path, SimpleNamespace(dataset_dir=tmp_path / "made", dataset=names))
        assert (tmp_path / ASKING).is_file() == copied
    assert read_asking(tmp_path / ASKING) == expected


def test_data_sets_that_ask_otherwise_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from llamafactory_ext.toolbox.cli.detect import how_to_ask
    from llamafactory_ext.training.asking import write_asking

    whole, same = Asking("<ts><ts/>\n?", types=("甲",)), Asking("<ts><ts/>\n?", types=("乙",))
    for name, asking in (("a", whole), ("b", same), ("c", Asking("<ts><ts/>\n?", window=50, stride=25))):
        (tmp_path / f"{name}.detect.json").write_text(asking.as_json(), "utf-8")
    entries = {name: {"file_name": f"{name}.jsonl"} for name in "abc"}
    (tmp_path / "dataset_info.json").write_text(json.dumps(entries))

    def trained(*names: str) -> tuple[Asking, str]:
        write_asking(tmp_path, SimpleNamespace(dataset_dir=tmp_path, dataset=list(names)))
        options = dict.fromkeys(("window", "stride", "points", "prompt"))
        return how_to_ask(argparse.Namespace(adapter=str(tmp_path), model="", **options))

    assert trained("a", "b")[0] == whole and "otherwise" not in trained("a", "b")[1]
    asking, said = trained("a", "b", "c")
    assert asking == Asking(**{**vars(whole), "others": ("c",)})
    assert "c: trained on as well, and asked otherwise" in said
    assert "c: asked otherwise than a (prompt, windows or thinning)" in caplog.text
    assert trained("c", "a")[0].window == 50


@pytest.mark.parametrize("text", ["", "[]", '{"prompt": "a"}', '{"prompt": "<ts><ts/>", "window": 0}', '{"promt": 1}'])
def test_another_file_of_that_name_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / ASKING).write_text(text)
    with pytest.raises(GdshError, match="write it anew with prepare, or remove it"):
        read_asking(tmp_path / ASKING)
