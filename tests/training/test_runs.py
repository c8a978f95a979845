"""What happens when a run's arguments are known: its folder, its description, what of a checkpoint is opened how."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers_model import config_dict

from llamafactory_ext.data import loading
from llamafactory_ext.model import ChatTSProcessor
from llamafactory_ext.training import asking, folder, opening, runs


MINE = {"learning_rate": 1.0, "seed": 1, "lora_rank": 8, "optim": "a", "bf16": True, "fp16": False, "data_seed": 2}


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """A run is known until the next one, in this whole process."""
    yield
    loading.listen(None), runs.note_run(False), runs._described.clear()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config_dict("qwen2")))
    return path


@pytest.fixture
def arguments(tmp_path: Path, checkpoint: Path) -> Any:
    """Model, data, training, fine-tuning and generating arguments; takes other values."""
    (tmp_path / "data").mkdir()
    info = {"a": {"file_name": "a.json", "folder": "ts"}}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info))
    (tmp_path / "data" / "a.json").write_text("[]")

    def make(**keys: Any) -> tuple[Any, ...]:
        model = {"model_name_or_path": str(checkpoint), "flash_attn": "auto", "adapter_name_or_path": None}
        data = {"template": "chatts", "dataset": ["a", "b"], "dataset_dir": str(tmp_path / "data")}
        training = {"do_train": True, "gradient_accumulation_steps": 1, "predict_with_generate": False}
        training |= {"eval_strategy": "no", "overwrite_output_dir": False, "world_size": 1, "max_steps": 4, **MINE}
        training["output_dir"] = str(tmp_path / "out")
        parts: list[dict[str, Any]] = [model | {"export_dir": None}, data, training, {"stage": "sft"}, {}]
        return tuple(SimpleNamespace(**{key: keys.get(key, value) for key, value in part.items()}) for part in parts)

    return make


def parse(arguments: tuple[Any, ...]) -> None:
    upstream: Any = SimpleNamespace(_parse_train_args=lambda args: arguments)
    assert runs.install_train(upstream) == "wrapped"
    assert upstream._parse_train_args() == arguments


def begin(arguments: tuple[Any, ...]) -> Path:
    """A run that trains, and has left a checkpoint."""
    parse(arguments)
    runs.begin_training()
    output = Path(arguments[2].output_dir)
    (output / "checkpoint-1").mkdir(exist_ok=True)
    return output


def test_what_a_run_is_trained_with_is_written(arguments: Any, checkpoint: Path) -> None:
    runs._described["of a run before"] = {}
    output = begin(arguments(adapter_name_or_path=[str(checkpoint)]))
    digest = hashlib.sha256(b"[]").hexdigest()[:16]
    sizes = {"config.json": (checkpoint / "config.json").stat().st_size}
    entry = {"file_name": "a.json", "folder": "ts"}
    data = {"a": {"entry": entry, "content": digest}, "b": {"entry": None, "content": None}}
    assert json.loads((output / "chatts_run.json").read_text()) == {
        "data": {"dataset": data, "template": "chatts"},
        "method": {"stage": "sft", "gradient_accumulation_steps": 1, **MINE},
        "model": {"model_name_or_path": sizes, "adapter_name_or_path": {"model": sizes}},
        "may differ": {"max_steps": 4, "eval_strategy": "no", "world_size": 1},
    }
    assert (output / ".chatts_run.owner.json").is_file() and len(loading._listeners) == 1


@pytest.mark.parametrize("why", ["no training", "another process", "another template", "pt"])
def test_who_leaves_the_folder_alone(
    why: str, arguments: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loading.listen(print)  # type: ignore[arg-type]
    (tmp_path / "out").mkdir()
    if why == "another template":
        parse(arguments(template="qwen", model_name_or_path="none", predict_with_generate=True, eval_strategy="steps"))
    elif why == "no training":
        parse(arguments(do_train=False, predict_with_generate=True, eval_strategy="steps"))
        runs.begin_training()
    else:
        monkeypatch.setenv("RANK", "1")
        parse(arguments(**({"stage": "pt", "template": "qwen"} if why == "pt" else {})))
        runs.begin_training()
    assert list((tmp_path / "out").iterdir()) == []
    assert len(loading._listeners) == (why in ("another process", "pt"))


def test_another_run_in_the_folder(arguments: Any, log: pytest.LogCaptureFixture) -> None:
    output = begin(arguments())
    parse(arguments())
    changed = {key: f"{value}1" for key, value in list(MINE.items())[:5]}
    for more, tail in (({}, "seed 1 (here 11): "), ({"fp16": True}, "optim a (here a1) and 1 more: ")):
        with pytest.raises(ValueError, match=rf"^{output} holds a run with .*") as caught:
            parse(arguments(**changed, **more))
        assert tail in str(caught.value) and str(caught.value).endswith(
            "set `overwrite_output_dir: true` to start over, or name another `output_dir`."
        )
    with pytest.raises(ValueError, match=r"holds a run with model_name_or_path \{.*\} \(here hub/name\): set"):
        parse(arguments(model_name_or_path="hub/name"))
    parse(arguments(**changed, overwrite_output_dir=True))
    parse(arguments(max_steps=5, world_size=2))
    assert log.records[-1].message == (
        f"Otherwise than when {output} was begun: max_steps 4 (here 5), world_size 1 (here 2)."
    )
    (output / "chatts_run.json").unlink()
    parse(arguments(**changed))
    assert f"{output} holds checkpoints and no chatts_run.json" in log.records[-1].message


def test_a_start_that_fails_leaves_no_trace(arguments: Any, tmp_path: Path) -> None:
    parse(arguments())
    assert not (tmp_path / "out").exists()


def test_differences_by_their_kind() -> None:
    before = {"a": 1, "b": 2, "c": {"x": 1, "y": 2}, "d": {"x": 1}, "e": {}, "f": 5, "g": [1]}
    now = {"a": 1, "b": 3, "c": {"x": 1, "y": 3}, "d": {"z": 1}, "e": {"w": 1}, "f": {}, "h": 1}
    assert folder.differences(before, now) == [
        "b 2 (here 3)",
        "c y of other content",
        "d x (here z)",
        "e none (here w)",
        "f 5 (here {})",
    ]


@pytest.mark.parametrize("name", ["config.json", "a.safetensors", "b.bin", "c.txt"])
def test_a_model_by_what_it_holds(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("12345")
    (tmp_path / "folder.bin").mkdir()
    assert folder._weights(tmp_path) == ({name: 5} if name != "c.txt" else {})


def test_five_files_are_named(tmp_path: Path) -> None:
    files = {f"s{number}": "x" for number in range(5)}
    folder.write_record(tmp_path / "new" / "out", {"series": {"a": files}})
    (tmp_path / "new" / "out" / "model.safetensors").touch()
    with pytest.raises(ValueError, match="in a: s0, s1, s2, s3, s4: set"):
        folder.refuse_other_series(tmp_path / "new" / "out", "a", dict.fromkeys(files, "y"))


def test_a_folder_that_can_not_be_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    def refuse(lock: Any) -> None:
        raise NotImplementedError("no locks here")

    with monkeypatch.context() as patch:
        patch.setattr(folder.FileLock, "acquire", refuse)
        folder.lock(tmp_path)
    assert log.records[-1].message == f"{tmp_path} can't be locked (no locks here): start no other run there."
    assert not (tmp_path / ".chatts_run.owner.json").exists()
    folder.lock(tmp_path)
    (tmp_path / ".chatts_run.owner.json").unlink()
    folder.lock(tmp_path)  # by this process, already
    assert not (tmp_path / ".chatts_run.owner.json").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_series_are_heard_of(overwrite: bool, arguments: Any, tmp_path: Path) -> None:
    """By their names below the entry's folder, which may be moved; of another entry nothing is noted."""
    output = begin(arguments())
    folder.write_record(output, {**runs._described, "series": {"a": {"x.csv": "1"}}})
    parse(arguments(overwrite_output_dir=overwrite))
    (hear,) = loading._listeners
    read = {str(tmp_path / "data" / "ts" / "x.csv"): "2"}
    hear(SimpleNamespace(dataset_name="a.json", folder="ts"), {})
    hear(SimpleNamespace(dataset_name="a.json", folder="others"), read)
    hear(SimpleNamespace(dataset_name="b.json", folder="ts"), read)
    assert "series" not in runs._described
    if not overwrite:
        with pytest.raises(ValueError, match=r"series of other content in a: x\.csv"):
            hear(SimpleNamespace(dataset_name="a.json", folder="ts"), read)
        return
    hear(SimpleNamespace(dataset_name="a.json", folder="ts"), read)
    assert runs._described["series"] == {"a": {"x.csv": "2"}}


@pytest.mark.parametrize(
    ("generates", "strategy", "fits"),
    [(True, "steps", False), (True, "no", True), (True, "IntervalStrategy.NO", True), (False, "steps", True)],
)
def test_evaluation_that_would_answer_everything(generates: bool, strategy: str, fits: bool, arguments: Any) -> None:
    asked = arguments(predict_with_generate=generates, eval_strategy=strategy)
    if fits:
        parse(asked)
        return
    with pytest.raises(ValueError, match=r"^`predict_with_generate` does not go with `eval_strategy` while training"):
        parse(asked)


@pytest.mark.parametrize(
    ("named", "create", "below", "warns"),
    [(1, True, 1, True), (2, True, 1, False), (2, True, 2, True), (1, False, 1, False), (1, True, 0, False)],
)
@pytest.mark.parametrize("place", [".", "checkpoint-4"])
def test_an_adapter_on_top_of_others(
    named: int, create: bool, below: int, warns: bool, place: str, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    lower = [f"lower{number}" for number in range(below)]
    record = {
        "model": {"adapter_name_or_path": {name: {} for name in lower}},
        "method": {"create_new_adapter": create},
    }
    (tmp_path / "chatts_run.json").write_text(json.dumps(record))
    path = tmp_path / place
    runs._warn_of_lower_adapters(SimpleNamespace(adapter_name_or_path=["x"] * (named - 1) + [str(path)]))
    told = (
        f"{path} was trained on top of adapter {', '.join(lower)}, which is not named here: name both, in that order"
    )
    assert [one.message.startswith(told) for one in log.records] == [True] * warns


@pytest.mark.parametrize(
    ("export", "template", "fits"),
    [("out", None, True), ("out", "qwen", False), (None, None, False), (None, "chatts", True)],
)
def test_the_template_of_answers(export: str | None, template: str | None, fits: bool, arguments: Any) -> None:
    model, data, _, *others = arguments(export_dir=export, template=template)
    upstream: Any = SimpleNamespace(_parse_infer_args=lambda args: (model, data, *others))
    runs.install_infer(upstream)
    if fits:
        upstream._parse_infer_args()
        return
    found = "" if template is None else ", and `template` is 'qwen'"
    told = f"^{model.model_name_or_path} is a ChatTS checkpoint{found}: set `template: chatts`.$"
    with pytest.raises(ValueError, match=told):
        upstream._parse_infer_args()


# How the records ask


def test_how_the_first_data_set_asks_is_copied(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    info: dict[str, Any] = {name: {"file_name": f"{name}.json"} for name in "abcd"}
    (tmp_path / "dataset_info.json").write_text(json.dumps({**info, "e": 5, "f": {"url": "x"}}))
    asks = {"b": {"prompt": "1", "types": [1]}, "c": {"prompt": "1", "types": [2]}, "d": {"prompt": "2"}}
    for name, found in asks.items():
        asking.asking_beside(tmp_path / f"{name}.json").write_text(json.dumps(found))

    def write(*names: str) -> Any:
        (out := tmp_path / "-".join(names)).mkdir()
        asking.write_asking(out, SimpleNamespace(dataset_dir=str(tmp_path), dataset=names))
        files = [json.loads(path.read_text("utf-8")) for path in out.iterdir()]
        return files[0] if files else None

    assert write("a", "e", "f", "none") is None
    assert write("a", "b", "e", "c") == asks["b"] and not log.records
    assert write("d", "b", "c") == {**asks["d"], "others": ["b", "c"]}
    assert log.records[0].message.startswith("b, c: asked otherwise than d (prompt, windows or thinning).")
    asking.write_asking(tmp_path, SimpleNamespace(dataset_dir=str(tmp_path), dataset=None))


# What is opened, and by whose code


@pytest.mark.parametrize(("template", "trusts"), [("chatts", True), ("chatts", False), ("qwen", True)])
def test_trust_in_parsed_arguments(template: str, trusts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    said, verified = list[int](), list[bool]()
    monkeypatch.setattr(opening, "_say_aside", lambda: said.append(1))
    upstream: Any = SimpleNamespace(_verify_model_args=lambda model, *_: verified.append(model.trust_remote_code))
    opening.install_parsed_trust(upstream)
    upstream._verify_model_args(SimpleNamespace(trust_remote_code=trusts), SimpleNamespace(template=template), None)
    assert verified == [trusts and template == "qwen"] and len(said) == (trusts and template == "chatts")


def test_trust_while_loading(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[int] = []
    monkeypatch.setattr(opening, "_say_aside", lambda: said.append(1))
    upstream: Any = SimpleNamespace(_get_init_kwargs=lambda args: {"trust_remote_code": args.trusts})
    opening.install_trust(upstream)
    for path, trusts, found in ((checkpoint, True, False), (checkpoint, False, False), (tmp_path, True, True)):
        args = SimpleNamespace(model_name_or_path=str(path), trusts=trusts)
        assert upstream._get_init_kwargs(args) == {"trust_remote_code": found}
    assert len(said) == 1


def test_trust_is_said(log: pytest.LogCaptureFixture) -> None:
    from llamafactory.extras import logging

    logging.warning_rank0_once.cache_clear()
    opening._say_aside()
    assert "trust_remote_code is ignored" in log.text


def test_configs_are_checked_before_they_are_used(
    checkpoint: Path, tmp_path: Path, arguments: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    required: list[int] = []
    monkeypatch.setattr(opening, "require", lambda: required.append(1))
    upstream: Any = SimpleNamespace(load_config=lambda args: "theirs", AutoProcessor=FoundBefore)
    opening.install_config(upstream), opening.install_processor(upstream)
    args = arguments()[0]
    vars(args).update(cache_dir=None, model_revision="main", hf_hub_token=None, adapter_folder="sub")
    args.train_from_scratch = False
    assert upstream.load_config(args).on_cpu == () and required == [1]
    assert isinstance(upstream.AutoProcessor.from_pretrained(str(checkpoint)), ChatTSProcessor)
    (checkpoint / "model.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(ValueError, match="is no safetensors file"):
        upstream.load_config(args)
    args.train_from_scratch = True
    assert upstream.load_config(args).model_type == "chatts"
    args.adapter_name_or_path = [str(tmp_path / "adapter")]
    (tmp_path / "adapter" / "sub").mkdir(parents=True)
    (tmp_path / "adapter" / "sub" / "adapter_config.json").write_text("[")
    with pytest.raises(ValueError, match="is no adapter's configuration"):
        upstream.load_config(args)
    other = arguments(template="qwen", model_name_or_path="none")
    runs.note(*other)
    vars(other[0]).update(vars(args), adapter_name_or_path=None)
    with pytest.raises(ValueError, match=f"^{checkpoint} is a ChatTS checkpoint: set `template: chatts`"):
        upstream.load_config(other[0])  # a download, which was not there before
    args.model_name_or_path = str(tmp_path)
    assert upstream.load_config(args) == "theirs" and len(required) == 5
    assert upstream.AutoProcessor.from_pretrained(str(tmp_path)) == f"theirs of {tmp_path}"


class FoundBefore:
    """Upstream's `AutoProcessor`."""

    @classmethod
    def from_pretrained(cls, path: str, **kwargs: Any) -> str:
        return f"theirs of {path}"
