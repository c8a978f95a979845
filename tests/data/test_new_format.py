"""A format is one file: a toy one goes LLaMA-Factory's way from its entry to tokens, with nothing but a ``Format``."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llamafactory_ext.data.formats import FORMATS, Format, Notes
from llamafactory_ext.errors import GdshError, excerpt
from llamafactory_ext.gdsh.records import read_records
from llamafactory_ext.series import MARKER, FloatArray, as_series


def lines(attr: Any, source: Path, folder: Path) -> Iterator[str]:
    for record in read_records(source):
        yield json.dumps(record, ensure_ascii=False)


def read(record: dict[str, Any], attr: Any, notes: Notes) -> tuple[dict[str, Any], list[FloatArray]]:
    return {"question": MARKER + record["question"], "answer": record["answer"]}, [as_series(record["values"])]


def check(converted: dict[str, Any], record: dict[str, Any], attr: Any, series: list[FloatArray]) -> None:
    if not record["answer"]:
        raise GdshError(f"found {excerpt(record['answer'])} in 'answer'; expected text")


TOY = Format(
    name="toy",
    upstream="alpaca",
    columns={"prompt": "question", "response": "answer"},
    check_entry=lambda entry, name: None,
    lines=lines,
    read=read,
    check=check,
)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the word in ``data/formats/__init__.py`` does, and LLaMA-Factory's start after it."""
    from llamafactory.data import converter

    from llamafactory_ext.data.converter import install

    monkeypatch.setitem(FORMATS, "toy", TOY)
    monkeypatch.setattr(converter, "DATASET_CONVERTERS", dict(converter.DATASET_CONVERTERS))
    assert install(converter) == "registered toy"


def write(folder: Path, answer: str) -> Path:
    record = {"question": "Odd?", "answer": answer, "values": [1, 2, 3] * 9}
    (folder / "toy.jsonl").write_text(json.dumps(record) + "\n")
    (folder / "dataset_info.json").write_text(json.dumps({"a": {"file_name": "toy.jsonl", "formatting": "toy"}}))
    return folder


def test_a_record_becomes_tokens(tokenise: Callable[..., Any], tmp_path: Path) -> None:
    module = tokenise(write(tmp_path, "no"))
    (record,) = module["train_dataset"]
    text = module["tokenizer"].decode(record["input_ids"])
    assert text.count("<ts>") == 4 and "Odd?<|im_end|>" in text and text.rstrip().endswith("no<|im_end|>")


def test_a_fault_is_named_with_its_record(tokenise: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"record 0.*found '' in 'answer'; expected text"):
        tokenise(write(tmp_path, ""))
