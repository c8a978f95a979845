"""Both data formats through LLaMA-Factory's own loader: what the model is given, and what every bad input says."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import NOTHING_FOUND, USER, Gdsh, annotation, answer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


IGNORED = -100


def statement_of_text(x: list[float], patch_size: int) -> str:
    """The published formula, written a second time."""
    mean = float(np.mean(np.array(x, dtype=np.float64)))
    largest = max(abs(value - mean) for value in x)
    scaling = largest / 3 if largest >= 3 else 1.0
    patches = len(x) // patch_size + (len(x) % patch_size > 0)
    return (
        f"[offset={-mean:.4f}|scaling={scaling:.4f}|length={len(x)}|max={max(x):.4f}|min={min(x):.4f}"
        f"|left={x[0]:.4f}|right={x[-1]:.4f}]" + "<ts>" * patches
    )


def chatml(user: str, reply: str, system: str = "You are a helpful assistant.") -> tuple[str, str]:
    prompt = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
    return prompt, f"{reply}<|im_end|>\n"


def decoded(row: dict[str, Any], tokenizer: Any) -> tuple[str, str]:
    """Prompt and answer of a tokenised row; they part where the labels start."""
    start = next(i for i, label in enumerate(row["labels"]) if label != IGNORED)
    assert row["labels"][start:] == row["input_ids"][start:]
    assert set(row["labels"][:start]) <= {IGNORED}
    return tokenizer.decode(row["input_ids"][:start]), tokenizer.decode(row["input_ids"][start:])


def test_gdsh_record_is_what_the_formula_says(gdsh: Gdsh, tokenise: Callable[..., Any]) -> None:
    values = [i / 4 for i in range(40)]
    reply = answer((3, 5))
    run = tokenise(gdsh.records(annotation(reply=reply)).folder)
    row, tokenizer = run["train_dataset"][0], run["tokenizer"]
    user = USER.replace("<image>", statement_of_text(values, patch_size=8))
    assert decoded(row, tokenizer) == chatml(user, reply)
    assert row["audios"] == [values]
    # token by token: each piece by itself, since special tokens part the text
    prompt, target = chatml(user, reply)
    assert row["input_ids"] == tokenizer.encode(prompt) + tokenizer.encode(target)


def test_published_token_ids_with_one_marker_token_a_patch(gdsh: Gdsh, tokenise: Callable[..., Any]) -> None:
    """The published text holds `<ts><ts/>`, which the model replaces by the patches: same place, same length."""
    run = tokenise(gdsh.records(annotation()).folder)
    tokenizer, ids = run["tokenizer"], run["train_dataset"][0]["input_ids"]
    start, end = (tokenizer.convert_tokens_to_ids(token) for token in ("<ts>", "<ts/>"))
    text = statement_of_text([i / 4 for i in range(40)], 8).split("<ts>")[0] + "<ts><ts/>"
    published = tokenizer.encode("".join(chatml(USER.replace("<image>", text), NOTHING_FOUND)))
    at = published.index(start)
    assert published[at + 1] == end
    assert ids == published[:at] + [start] * 5 + published[at + 2 :]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    series=st.lists(
        st.lists(st.floats(-1e6, 1e6, allow_nan=False).map(lambda v: round(v, 3)), min_size=1, max_size=60),
        min_size=1,
        max_size=4,
    )
)
def test_several_series_in_order(
    series: list[list[float]], tmp_path_factory: pytest.TempPathFactory, tokenise: Callable[..., Any]
) -> None:
    folder = tmp_path_factory.mktemp("chatts")
    prompt = "; ".join(f"series {i}: <ts><ts/>" for i in range(len(series)))
    entry = {"file_name": "a.jsonl", "columns": {"prompt": "input", "response": "output", "timeseries": "timeseries"}}
    (folder / "dataset_info.json").write_text(json.dumps({"a": entry}))
    record = {"input": prompt, "output": "yes", "timeseries": series}
    (folder / "a.jsonl").write_text(json.dumps(record) + "\n")
    run = tokenise(folder, cutoff_len=100_000)
    expected = "; ".join(f"series {i}: {statement_of_text(x, 8)}" for i, x in enumerate(series))
    assert decoded(run["train_dataset"][0], run["tokenizer"]) == chatml(expected, "yes")
    assert run["train_dataset"][0]["audios"] == series


def collated(run: dict[str, Any], rows: list[int]) -> dict[str, Any]:
    from llamafactory.data import SFTDataCollatorWith4DAttentionMask

    collator = SFTDataCollatorWith4DAttentionMask(
        template=run["template"], tokenizer=run["tokenizer"], processor=run["processor"], model=None
    )
    batch: dict[str, Any] = collator([dict(run["train_dataset"][row]) for row in rows])
    return batch


def test_batch_holds_the_series_of_all_records_in_order(gdsh: Gdsh, tokenise: Callable[..., Any]) -> None:
    gdsh.csv("b.csv", [5, 5, 5])
    gdsh.csv("c.csv", [-100, 100] * 6 + [7])
    two = annotation(["b.jpg", "c.jpg"], user="<image> <image> ?")
    run = tokenise(gdsh.records(annotation("c.png"), two, annotation("a.JPEG")).folder)
    batch = collated(run, [0, 1, 2])
    assert batch["timeseries"].shape == (4, 80, 1)
    values, mask = batch["timeseries"].float().reshape(4, 40, 2).unbind(-1)
    assert mask.sum(1).tolist() == [13, 3, 13, 40]
    c = np.array([-100, 100] * 6 + [7], dtype=np.float64)
    scaled = (c - c.mean()) / (np.abs(c - c.mean()).max() / 3)
    for row in (0, 2):
        assert values[row, :13].tolist() == scaled.astype(np.float16).astype(np.float32).tolist()
    assert values[1].abs().max() == 0  # a constant series is its own mean


def test_text_only_record_makes_a_batch_without_series(tmp_path: Path, tokenise: Callable[..., Any]) -> None:
    entry = {"file_name": "a.jsonl", "formatting": "chatts"}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"a": entry}))
    (tmp_path / "a.jsonl").write_text(json.dumps({"input": "hello", "output": "yes", "timeseries": []}) + "\n")
    run = tokenise(tmp_path)
    assert decoded(run["train_dataset"][0], run["tokenizer"]) == chatml("hello", "yes")
    assert "timeseries" not in collated(run, [0])


@pytest.mark.parametrize(
    ("first", "second"),
    [([1, 2, 3], [[1.5, 2.5]]), ([[1, 2, 3]], [[0.5]]), ([1, 2], [3, 4.5])],
    ids=["flat beside nested", "whole numbers first", "flat"],
)
def test_types_may_mix_in_a_chatts_file(first: Any, second: Any, tmp_path: Path, tokenise: Callable[..., Any]) -> None:
    entry = {"file_name": "a.jsonl", "columns": {"prompt": "input", "response": "output", "timeseries": "timeseries"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"a": entry}))
    rows = [{"input": "<ts><ts/>", "output": "yes", "timeseries": series} for series in (first, second)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = tokenise(tmp_path)
    nested = [series if isinstance(series[0], list) else [series] for series in (first, second)]
    assert run["train_dataset"]["audios"][:] == nested


def test_roles_turns_and_system_text(gdsh: Gdsh, tokenise: Callable[..., Any]) -> None:
    gdsh.entry["tags"] = {"role_tag": "role", "content_tag": "text", "user_tag": "human", "assistant_tag": "gpt"}
    gdsh.entry["columns"] = {"messages": "talk", "images": "picture", "system": "intro"}
    turns = [("human", "<image> first?"), ("gpt", NOTHING_FOUND), ("human", "and now?"), ("gpt", answer((1, 2)))]
    record = {"picture": "a.jpg", "intro": "Be brief.", "talk": [{"role": r, "text": t} for r, t in turns]}
    run = tokenise(gdsh.records(record).folder)
    text = run["tokenizer"].decode(run["train_dataset"][0]["input_ids"])
    series = statement_of_text([i / 4 for i in range(40)], 8)
    first = "".join(chatml(f"{series} first?", NOTHING_FOUND, "Be brief."))
    assert text == f"{first}<|im_start|>user\nand now?<|im_end|>\n<|im_start|>assistant\n{answer((1, 2))}<|im_end|>\n"


def test_system_turn(gdsh: Gdsh, tokenise: Callable[..., Any]) -> None:
    record = annotation()
    record["conversations"].insert(0, {"from": "system", "value": "Be brief."})
    run = tokenise(gdsh.records(record).folder)
    text = run["tokenizer"].decode(run["train_dataset"][0]["input_ids"])
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n[offset=")


def test_mixed_types_that_arrow_refuses(gdsh: Gdsh, tokenise: Callable[..., Any]) -> None:
    joined = f"{answer((7, 9))},{answer((1, 2))}"
    entries = [{"interval": [4, 4], "type": "点异常"}, {"type": "全局属性"}]
    python = "{'interval': [0, 3], 'type': '竖直尖峰'}"
    records = [annotation("a.jpg", joined), annotation(["a.jpg"], entries), annotation("a.jpg", python)]
    run = tokenise(gdsh.records(*records).folder)
    replies = [decoded(row, run["tokenizer"])[1].removesuffix("<|im_end|>\n") for row in run["train_dataset"]]
    found = [[e["interval"] for e in json.loads(reply)["detected_anomalies"]] for reply in replies]
    assert found == [[[1, 2], [7, 9]], [[4, 4]], [[0, 3]]]


def test_counts_are_logged(gdsh: Gdsh, tokenise: Callable[..., Any], log: pytest.LogCaptureFixture) -> None:
    gdsh.csv("gaps.csv", [1, "", "Bad", 4, "inf"])
    gdsh.csv("数据集far.csv", [1, 2, 3], folder="hbsn")
    records = [
        annotation("gaps.jpg", f"{answer((1, 1))},{answer((1, 1))},{{'type': '无异常'}}"),
        annotation("far.jpg", "{'type': '无异常'}", user="no marker"),
    ]
    run = tokenise(gdsh.records(*records).folder)
    assert run["train_dataset"][0]["audios"] == [[1, 2, 3, 4, 4]]
    assert [message.strip() for message in log.messages if message.startswith(("  ", str(gdsh.folder)))] == [
        f"{gdsh.folder}/json/a.json: 2 records.",
        "1 prompts without marker, series put in front (in 1 records).",
        "3 empty cells or words for a missing value, interpolated in place (in 1 records).",
        "1 labelled intervals that hold interpolated rows: there is no anomaly to be seen there (in 1 records).",
        "1 series found in a folder beside `folder` (in 1 records).",
        "1 series whose CSV is named differently from the picture (one name ends with the other) (in 1 records).",
        "2 answers rewritten as one JSON object (in 2 records).",
        "2 answer entries of a normal state (无异常, normal, …; `normal_types`) left out: no anomalies "
        "(in 2 records).",
        "1 answers that held both anomalies and a normal state (in 1 records).",
        "1 answers that have no interval left, and now say that nothing was found (in 1 records).",
        "1 duplicate answer entries left out (in 1 records).",
    ]


def test_nothing_is_counted_where_nothing_was_done(
    gdsh: Gdsh, tokenise: Callable[..., Any], log: pytest.LogCaptureFixture
) -> None:
    tokenise(gdsh.records(annotation("a.jpg", answer((1, 1)))).folder)
    said = [message for message in log.messages if message.startswith(("  ", str(gdsh.folder)))]
    assert said == [f"{gdsh.folder}/json/a.json: 1 records."]


def test_worker_processes_give_the_same(demo: Path, tokenise: Callable[..., Any], tmp_path: Path) -> None:
    one = tokenise(demo / "data", "gdsh_demo", cutoff_len=8192)
    two = tokenise(
        demo / "data", "gdsh_demo", cutoff_len=8192, preprocessing_num_workers=2, cache_dir=str(tmp_path / "other")
    )
    for column in ("input_ids", "labels", "audios"):
        assert one["train_dataset"][column][:] == two["train_dataset"][column][:]


def test_changed_csv_is_read_anew(gdsh: Gdsh, tokenise: Callable[..., Any]) -> None:
    gdsh.records(annotation())
    assert tokenise(gdsh.folder)["train_dataset"][0]["audios"] == [[i / 4 for i in range(40)]]
    gdsh.csv("a.csv", [9.5] * 40)
    assert tokenise(gdsh.folder)["train_dataset"][0]["audios"] == [[9.5] * 40]


BAD_RECORDS = {
    "no csv": (annotation("b.jpg"), "record 0 (b.jpg): ", "'b'"),
    "outside the folder": (annotation("../../../../etc/passwd"), "record 0 (passwd): ", ""),
    "markers": (annotation(user="<image> <image>"), "record 0 (a.jpg): 2 <image> but 1 series", ""),
    "text answer": (annotation(reply="nothing to see"), "record 0 (a.jpg): ", "nothing to see"),
    "cut answer": (annotation(reply='{"status":"success","detected_anom'), "record 0 (a.jpg): ", "detected_anom"),
    "outside the series": (annotation(reply=answer((30, 40))), "record 0 (a.jpg): ", "[30, 40]"),
    "reversed": (annotation(reply=answer((9, 4))), "record 0 (a.jpg): ", "[9, 4]"),
    "no picture": ({"conversations": annotation()["conversations"]}, "record 0 (): ", "'image'"),
    "roles": (
        {"image": "a.jpg", "conversations": annotation()["conversations"][::-1]},
        "record 0 (a.jpg): found the roles ['assistant', 'user']; expected 'user' and 'assistant' in turn",
        "tags",
    ),
    "not an object": ("a.jpg", "record 0 (): ", "expected an object"),
}


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_bad_record_stops_the_run(name: str, gdsh: Gdsh, tokenise: Callable[..., Any]) -> None:
    record, start, part = BAD_RECORDS[name]
    with pytest.raises(ValueError, match="records can't be used") as caught:
        tokenise(gdsh.records(record, annotation()).folder)
    message = str(caught.value)
    assert message.startswith(f"{gdsh.folder}/json/a.json: 1 of 2 records can't be used.\n  {start}")
    assert part in message


BAD_TABLES = {
    "no value column": (b",date,val,other\n0,x,1,2\n", "value"),
    "no rows": (b",date,category,value\n", "row"),
    "no number": (b",date,category,value\n0,d,c,Bad\n1,d,c,\n", "number"),
    "empty file": (b"", "empty"),
    "neither UTF-8 nor GB18030": (b",date,category,value\n0,\xff\xff,c,1\n", "GB18030"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_csv_stops_the_run(name: str, gdsh: Gdsh, tokenise: Callable[..., Any]) -> None:
    content, part = BAD_TABLES[name]
    (gdsh.folder / "timeseries" / "gdsh" / "a.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"record 0 \(a.jpg\): .*a\.csv") as caught:
        tokenise(gdsh.records(annotation()).folder)
    assert part in str(caught.value)


def test_all_faults_in_one_message(gdsh: Gdsh, tokenise: Callable[..., Any]) -> None:
    records = [annotation(f"missing{i}.jpg") for i in range(25)] + [annotation()]
    with pytest.raises(ValueError, match="25 of 26 records") as caught:
        tokenise(gdsh.records(*records).folder, preprocessing_num_workers=2)
    lines = str(caught.value).splitlines()
    assert len(lines) == 22
    assert lines[1].startswith("  record 0 (missing0.jpg): ")
    assert lines[-1] == "  … and 5 more"


@pytest.mark.parametrize(
    ("series", "prompt", "message"),
    [
        ([[1.0, 2.0]], "none", r"record 1: found 0 <ts><ts/> in 'input' and 1 series; expected one marker"),
        ([[1.0], []], "<ts><ts/><ts><ts/>", "record 1: series 1: found a series without points"),
        ([[1.0, None]], "<ts><ts/>", "series 0: found 1 values that are not finite numbers, the first at index 1"),
        ([[1.7e308, -1.7e308, -1.7e308]], "<ts><ts/>", "mean or range overflows"),
    ],
)
def test_bad_chatts_record(
    series: Any, prompt: str, message: str, tmp_path: Path, tokenise: Callable[..., Any]
) -> None:
    good = {"input": "<ts><ts/>", "output": "yes", "timeseries": [[1.0]]}
    (tmp_path / "a.jsonl").write_text(
        json.dumps(good) + "\n" + json.dumps({"input": prompt, "output": "yes", "timeseries": series})
    )
    (tmp_path / "dataset_info.json").write_text(json.dumps({"a": {"file_name": "a.jsonl", "formatting": "chatts"}}))
    with pytest.raises(ValueError, match=message):
        tokenise(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": None}, r"record 1: found None in 'output'; expected text"),
        ({"input": None}, r"record 1: found None in 'input'; expected text"),
    ],
)
def test_chatts_record_without_text(
    changes: dict[str, Any], message: str, tmp_path: Path, tokenise: Callable[..., Any]
) -> None:
    good = {"input": "<ts><ts/>", "output": "yes", "timeseries": [[1.0]]}
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, [good, {**good, **changes}])))
    (tmp_path / "dataset_info.json").write_text(json.dumps({"a": {"file_name": "a.jsonl", "formatting": "chatts"}}))
    with pytest.raises(ValueError, match=message):
        tokenise(tmp_path)


def test_chatts_records_that_do_not_fit_together_are_counted(tmp_path: Path, tokenise: Callable[..., Any]) -> None:
    good = {"input": "<ts><ts/>", "output": "yes", "timeseries": [[1.0]]}
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, [good, {**good, "input": 5}])))
    (tmp_path / "dataset_info.json").write_text(json.dumps({"a": {"file_name": "a.jsonl", "formatting": "chatts"}}))
    with pytest.raises(ValueError, match="records can't be used") as caught:
        tokenise(tmp_path)
    said = f"{tmp_path}/a.jsonl: 1 of 2 records can't be used.\n  record 1: found 5 in 'input'; expected text"
    assert str(caught.value) == said


def test_column_that_is_not_there(tmp_path: Path, tokenise: Callable[..., Any]) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"input": "<ts><ts/>", "output": "yes", "series": [[1.0]]}))
    (tmp_path / "dataset_info.json").write_text(json.dumps({"a": {"file_name": "a.jsonl", "formatting": "chatts"}}))
    message = r"record 0: found no column 'timeseries', only \['input', 'output', 'series'\]; name yours under"
    with pytest.raises(ValueError, match=message):
        tokenise(tmp_path)


def test_entry_without_folder(gdsh: Gdsh, tokenise: Callable[..., Any]) -> None:
    del gdsh.entry["folder"]
    with pytest.raises(ValueError, match="formatting `gdsh` but no `folder`; add the folder of its CSV files"):
        tokenise(gdsh.records(annotation()).folder)


def test_broken_json_names_the_place(gdsh: Gdsh, tokenise: Callable[..., Any]) -> None:
    gdsh.records(annotation())
    (gdsh.folder / "json" / "a.json").write_text('[{"image": "a.jpg",\n "conversations": oops}]')
    with pytest.raises(ValueError, match="line 2, column 19"):
        tokenise(gdsh.folder)


@pytest.mark.parametrize("name", ["json", "json/none.json"])
def test_annotations_that_are_no_file(name: str, gdsh: Gdsh, tokenise: Callable[..., Any]) -> None:
    gdsh.entry["file_name"] = name
    with pytest.raises(FileNotFoundError, match=f"{name} is not a file; `file_name` of a gdsh entry names one JSON"):
        tokenise(gdsh.records(annotation()).folder)


def test_single_marker_token_in_a_message(tmp_path: Path, tokenise: Callable[..., Any]) -> None:
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"input": "<ts><ts/> and <ts>", "output": "yes", "timeseries": [[1.0]]})
    )
    (tmp_path / "dataset_info.json").write_text(json.dumps({"a": {"file_name": "a.jsonl", "formatting": "chatts"}}))
    with pytest.raises(ValueError, match="record 0: found a single <ts> or <ts/>; expected <ts><ts/>"):
        tokenise(tmp_path)


def test_series_longer_than_the_encoder_places(gdsh: Gdsh, tokenise: Callable[..., Any]) -> None:
    gdsh.csv("long.csv", range(9000))
    two = annotation(["a.jpg", "long.jpg"], user="<image><image>")
    with pytest.raises(ValueError, match="1 series have more points than the encoder of this checkpoint") as caught:
        tokenise(gdsh.records(annotation(), two).folder, cutoff_len=8192)
    assert str(caught.value).endswith("\n  record 1 (a.jpg, long.jpg): 9000 points")


def test_broken_line_of_a_chatts_file(tmp_path: Path, tokenise: Callable[..., Any]) -> None:
    good = json.dumps({"input": "<ts><ts/>", "output": "yes", "timeseries": [[1.0]]})
    (tmp_path / "a.jsonl").write_text(f"{good}\n{good[:-3]}\n{good}\n")
    (tmp_path / "dataset_info.json").write_text(json.dumps({"a": {"file_name": "a.jsonl", "formatting": "chatts"}}))
    with pytest.raises(ValueError, match=r"a\.jsonl' is not valid JSON at line 2, column 60 .*: correct that place"):
        tokenise(tmp_path)


@pytest.fixture
def plain(demo: Path, tmp_path: Path) -> Path:
    """The demo's checkpoint as one of Qwen2 that knows no series."""
    model = tmp_path / "plain"
    model.mkdir()
    for file in (demo / "model").iterdir():
        if file.is_file() and file.name != "model.safetensors":
            (model / file.name).write_bytes(file.read_bytes())
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    config.pop("ts")
    (model / "config.json").write_text(json.dumps(config))
    return model


def test_series_without_a_chatts_model(gdsh: Gdsh, tokenise: Callable[..., Any], plain: Path) -> None:
    with pytest.raises(ValueError, match="the model is no ChatTS checkpoint"):
        tokenise(gdsh.records(annotation()).folder, model=plain)


@pytest.mark.parametrize("use", ["loader", "gdsh", "chatts", "messages", "config"])
def test_each_use_asks_whether_all_is_in_place(use: str, demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each may be the first to need the plugin: a command line can hide that a run does, tools have ways of their own.

    With a seam that could not be put in place each stops there, before anything else is done.
    """
    from llamafactory_ext.data import converter, loading, template
    from llamafactory_ext.plugin import activation
    from llamafactory_ext.training import opening

    entry = SimpleNamespace(formatting="gdsh", messages=None, system=None, images=None, tools=None)
    data = SimpleNamespace(streaming=False, template="chatts", dataset_dir=str(demo))
    model = SimpleNamespace(model_name_or_path=str(demo / "model"), cache_dir=None, model_revision="main")
    model.hf_hub_token = model.adapter_name_or_path = None
    model.train_from_scratch = True
    upstream: Any = ModuleType("upstream")
    upstream._load_single_dataset = upstream.load_config = lambda *args: pytest.fail("went on to upstream")
    loading.install(upstream)
    opening.install_config(upstream)
    monkeypatch.setattr(loading, "_load_noted", lambda *args: pytest.fail("went on to read"))
    uses: dict[str, Callable[[], Any]] = {
        "loader": lambda: upstream._load_single_dataset(entry, model, data, None),
        "gdsh": lambda: converter.SeriesConverter("gdsh", entry, data),
        "chatts": lambda: converter.SeriesConverter("chatts", entry, data),
        "messages": lambda: template.ChatTSPlugin(None, None, None).process_messages([], [], [], [], None),
        "config": lambda: upstream.load_config(model),
    }
    if use != "loader":
        uses[use]()  # nothing else is wrong with it
    monkeypatch.setitem(activation._failures, "some.module:name", "`name` is gone")
    with pytest.raises(activation.SeamError, match=r"some\.module:name: `name` is gone"):
        uses[use]()


class TestOverlong:
    def long_and_short(self, gdsh: Gdsh) -> Path:
        gdsh.csv("long.csv", range(4000))
        return gdsh.records(annotation(), annotation("long.jpg")).folder

    def test_stops_and_names_what_would_fit(self, gdsh: Gdsh, tokenise: Callable[..., Any]) -> None:
        with pytest.raises(ValueError, match="1 of 2 records do not fit cutoff_len 300") as caught:
            tokenise(self.long_and_short(gdsh), cutoff_len=300)
        message = str(caught.value)
        assert "\n  record 1 (long.jpg): " in message
        fits = int(message.partition("`cutoff_len: ")[2].partition("`")[0])
        assert len(tokenise(gdsh.folder, cutoff_len=fits)["train_dataset"]) == 2
        with pytest.raises(ValueError, match="do not fit"):
            tokenise(gdsh.folder, cutoff_len=fits - 1)

    def test_dropped_on_request(self, gdsh: Gdsh, tokenise: Callable[..., Any], log: pytest.LogCaptureFixture) -> None:
        run = tokenise(self.long_and_short(gdsh), cutoff_len=300, overlong_records="drop")
        assert len(run["train_dataset"]) == 1
        assert "1 of 2 records do not fit cutoff_len 300 (a series takes one token a patch); dropped" in log.text
        assert "record 1 (long.jpg)" in log.text

    def test_none_left(self, gdsh: Gdsh, tokenise: Callable[..., Any]) -> None:
        with pytest.raises(ValueError, match="No record is left: the shortest has"):
            tokenise(self.long_and_short(gdsh), cutoff_len=20, overlong_records="drop")

    @pytest.mark.parametrize("packing", [{"packing": True}, {"neat_packing": True}])
    def test_packing(self, packing: dict[str, bool], gdsh: Gdsh, tokenise: Callable[..., Any]) -> None:
        with pytest.raises(ValueError, match="1 of 2 records do not fit cutoff_len 304") as caught:
            tokenise(self.long_and_short(gdsh), cutoff_len=304, **packing)
        fits = int(str(caught.value).partition("`cutoff_len: ")[2].partition("`")[0])
        assert len(tokenise(gdsh.folder, cutoff_len=fits, **packing)["train_dataset"]) == 2
        run = tokenise(gdsh.folder, cutoff_len=304, overlong_records="drop", **packing)
        assert [len(ids) for ids in run["train_dataset"]["input_ids"]] == [304]

    def test_only_the_prompt_counts_for_generation(self, gdsh: Gdsh, tokenise: Callable[..., Any]) -> None:
        reply = answer(*[(i, i) for i in range(20)])
        folder = gdsh.records(*[annotation(reply=reply)] * 4).folder
        keys = {"eval_dataset": "a", "predict_with_generate": True, "do_predict": True, "do_train": False}
        whole = tokenise(folder, cutoff_len=4096)["train_dataset"][0]
        prompt = whole["labels"].count(-100)
        run = tokenise(folder, dataset=None, cutoff_len=prompt, **keys)
        assert [len(row["input_ids"]) for row in run["eval_dataset"]] == [prompt] * 4
        assert {run["tokenizer"].decode(row["labels"]) for row in run["eval_dataset"]} == {f"{reply}<|im_end|>\n"}
        with pytest.raises(ValueError, match="4 of 4 records do not fit"):
            tokenise(folder, dataset=None, cutoff_len=prompt - 1, **keys)

    def test_other_templates_are_cut_as_before(
        self, tmp_path: Path, tokenise: Callable[..., Any], plain: Path
    ) -> None:
        rows = [{"instruction": "hello " * 500, "input": "", "output": "yes"}]
        (tmp_path / "a.json").write_text(json.dumps(rows))
        (tmp_path / "dataset_info.json").write_text(json.dumps({"a": {"file_name": "a.json"}}))
        run = tokenise(tmp_path, model=plain, template="qwen", cutoff_len=100)
        assert len(run["train_dataset"][0]["input_ids"]) == 100
