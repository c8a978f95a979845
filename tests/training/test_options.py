"""LLaMA-Factory's other options with series: the same records and numbers, or one line that says what to change."""

import functools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import log_history
from datasets import DatasetDict
from resilience.options_bench import PLAIN, Bench, exchange, prepare
from resilience.options_special import sharded

from llamafactory_ext.data import loading
from llamafactory_ext.series import patch_count


IGNORED = -100
RUNS: dict[str, dict[str, Any]] = {
    "dpo": {"stage": "dpo", "dataset": "pairs", "finetuning_type": "full"},
    "kto": {"stage": "kto", "dataset": "tagged"},
    "rm": {"stage": "rm", "dataset": "pairs"},
    "accuracy": {"do_train": False, "do_eval": True, "eval_dataset": "series", "compute_accuracy": True},
    "resized": {"add_tokens": ",".join(f"<unit{number}>" for number in range(20)), "save_steps": 2},
}
RUNS["rm_exchanged"] = exchange(RUNS["rm"])


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with prepare(tmp_path_factory.mktemp("options")) as bench:
        yield bench


@pytest.fixture(scope="module")
def runs(bench: Bench) -> Callable[[str], Path]:
    """Carries one of ``RUNS`` out, once, and returns its folder."""

    @functools.cache
    def folder(name: str) -> Path:
        run = bench.train(name, RUNS[name])
        assert run.status == 0, run.output[-4000:]
        return bench.folder / name

    return folder


@pytest.fixture
def load(bench: Bench, tokenise: Callable[..., Any]) -> Callable[..., Any]:
    """Tokenises a data set of the bench; takes recipe keys."""

    def run(dataset: str = "series", **keys: Any) -> dict[str, Any]:
        settings = {"model": bench.folder / "model", "cutoff_len": PLAIN["cutoff_len"], "seed": 1}
        result: dict[str, Any] = tokenise(bench.folder / "data", dataset, **settings | keys)
        return result

    return run


def rows(dataset: Any) -> list[dict[str, Any]]:
    """The records of a data set in an order of their own, with what the collator takes of them."""
    kept = [{key: row[key] for key in ("input_ids", "attention_mask", "labels")} for row in dataset]
    series = [[list(one) for one in row["audios"] or []] for row in dataset]  # a stream's are arrays
    every = [{**row, "audios": own} for row, own in zip(kept, series, strict=True)]
    return sorted(every, key=lambda row: row["input_ids"])


def patch_tokens(run: dict[str, Any], ids: list[int]) -> int:
    return ids.count(run["tokenizer"].convert_tokens_to_ids("<ts>"))


def patches(run: dict[str, Any], series: list[list[float]] | None) -> int:
    return sum(patch_count(len(one), run["processor"].patch_size) for one in series or [])


# --- the same records ---


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_has_all_records(workers: int, load: Callable[..., Any]) -> None:
    """Upstream makes as many shards as there are data loader workers: by default none, and so no record."""
    stream = load(streaming=True, max_steps=2, dataloader_num_workers=workers)["train_dataset"]
    expected = rows(load()["train_dataset"])
    assert len(expected) == 8 and all(row["audios"] for row in expected)
    assert rows(stream) == expected


@pytest.mark.parametrize(("asked", "expected"), [(None, False), (True, True), (False, False)])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_each_process_reads_a_stream(asked: bool | None, expected: bool, workers: int, tmp_path: Path) -> None:
    """One that reads for all would hand out rows of a batch, and series have rows of their own."""
    given, arguments = loaded_with(tmp_path, asked, workers, streaming=True)
    assert given.accelerator_config.dispatch_batches is expected
    assert arguments.accelerator_config.dispatch_batches is expected, "the Trainer has these"
    assert (given.dataloader_num_workers, arguments.dataloader_num_workers) == (max(1, workers), workers)


@pytest.mark.parametrize("other", [{"streaming": False}, {"template": "qwen"}])
def test_other_runs_keep_their_arguments(other: dict[str, Any], tmp_path: Path) -> None:
    given, arguments = loaded_with(tmp_path, None, 0, **other)
    assert given is arguments
    assert (given.accelerator_config.dispatch_batches, given.dataloader_num_workers) == (None, 0)


def loaded_with(
    folder: Path, dispatch: bool | None, workers: int, streaming: bool = True, template: str = "chatts"
) -> tuple[Any, Any]:
    """The arguments that upstream's loader gets for an entry of its own formats, and those that ours was given."""
    from transformers import TrainingArguments

    arguments = TrainingArguments(
        str(folder),
        use_cpu=True,
        dataloader_num_workers=workers,
        accelerator_config={"dispatch_batches": dispatch},
    )
    upstream = ModuleType("loader")
    upstream._load_single_dataset = lambda entry, model, data, training: training  # type: ignore[attr-defined]
    loading.install(upstream)
    entry, data = SimpleNamespace(formatting="alpaca"), SimpleNamespace(streaming=streaming, template=template)
    return upstream._load_single_dataset(entry, None, data, arguments), arguments


def test_tokenised_records_keep_their_series(load: Callable[..., Any], tmp_path: Path) -> None:
    expected = rows(load()["train_dataset"])
    written = load(tokenized_path=str(tmp_path / "tokens"))
    read = load("no such data set", tokenized_path=str(tmp_path / "tokens"))
    assert rows(written["train_dataset"]) == rows(read["train_dataset"]) == expected


def test_worker_processes_change_nothing(load: Callable[..., Any], tmp_path: Path) -> None:
    parallel = load(preprocessing_num_workers=4, cache_dir=str(tmp_path / "other"))
    assert rows(parallel["train_dataset"]) == rows(load()["train_dataset"])


def test_validation_is_split_off_with_its_series(load: Callable[..., Any]) -> None:
    run = load(val_size=0.25)
    assert (len(run["train_dataset"]), len(run["eval_dataset"])) == (6, 2)
    together = [*run["train_dataset"], *run["eval_dataset"]]
    assert rows(together) == rows(load()["train_dataset"])


@pytest.mark.parametrize("streaming", [False, True])
def test_text_is_mixed_in(streaming: bool, load: Callable[..., Any]) -> None:
    run = load("series,text", mix_strategy="interleave_over", streaming=streaming, max_steps=2)
    mixed = list(run["train_dataset"])
    assert len(mixed) == (15 if streaming else 16)  # a stream ends with the last record that is new
    for row in mixed:
        assert patch_tokens(run, row["input_ids"]) == patches(run, row["audios"])
    assert sum(bool(row["audios"]) for row in mixed) == 8


def test_packed_rows_carry_the_series_of_their_records(load: Callable[..., Any]) -> None:
    run = load(packing=True)
    packed = list(run["train_dataset"])
    series = [one for row in packed for one in row["audios"]]
    assert len(packed) < len(series) == 8
    for row in packed:
        assert patch_tokens(run, row["input_ids"]) == patches(run, row["audios"])
        assert patches(run, row["audios"]) > patches(run, row["audios"][:1])


@pytest.mark.parametrize(("stage", "dataset"), [("rm", "pairs"), ("kto", "tagged")])
def test_preferences_carry_their_series(stage: str, dataset: str, load: Callable[..., Any]) -> None:
    run = load(dataset, stage=stage)
    assert len(run["train_dataset"]) == 8
    for row in run["train_dataset"]:
        for name in [name for name in row if name.endswith("input_ids")]:
            assert patch_tokens(run, row[name]) == patches(run, row["audios"]) > 0


# --- one line ---


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (
            {"streaming": True, "max_steps": 2, "val_size": 2},
            "`val_size` does not go with `streaming`: .* `eval_dataset`",
        ),
        ({"streaming": True, "max_steps": 2, "packing": True}, "`packing` does not go with `streaming`"),
        ({"packing": True, "cutoff_len": 500}, r"needs a `cutoff_len` that is a multiple of 8, found 500; set 504\."),
        ({"neat_packing": True, "cutoff_len": 505}, r"multiple of 8, found 505; set 512\."),
        ({"stage": "pt"}, r"Stage `pt` reads text alone .*; train records with series in stage `sft`\."),
        (
            {"stage": "ppo", "reward_model": "x"},
            "Stage `ppo` scores its answers without their series; .*`dpo` or `kto`",
        ),
        ({"stage": "pt", "streaming": True, "max_steps": 2}, "Stage `pt` reads text alone"),
        ({"stage": "kto"}, "8 records have no `kto_tag`, in stage `kto`; name the column .*:\n  record 0 "),
        ({"dataset": "tagged"}, "8 records have a `kto_tag`, in stage `sft`; take stage `kto`, .*:\n  record 0"),
        ({"dataset": "tagged", "streaming": True, "max_steps": 2}, "1 records have a `kto_tag`, in stage `sft`"),
        ({"dataset": "pairs"}, "The dataset is not applicable in the current training stage"),
    ],
)
def test_what_does_not_work_says_so(keys: dict[str, Any], line: str, load: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=line):
        load(**keys)


def test_text_alone_is_packed_in_stage_pt(load: Callable[..., Any]) -> None:
    """Text beside template `chatts`: blocks of `cutoff_len` tokens, as without the plugin."""
    blocks = load("text", stage="pt", cutoff_len=16)["train_dataset"]
    assert {len(row["input_ids"]) for row in blocks} == {16}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"rejected": None}, "found None in 'rejected'; expected text"),
        ({"chosen": ...}, "found no column 'chosen', only"),
        ({"good": "yes"}, "found 'yes' in 'good'; expected true or false"),
        ({"output": ""}, "found no text in 'output'; stage `kto` needs an answer"),
    ],
)
def test_preference_records_with_a_fault(
    changes: dict[str, Any], line: str, bench: Bench, tmp_path: Path, tokenise: Callable[..., Any]
) -> None:
    name, stage = ("pairs", "rm") if changes.keys() & {"chosen", "rejected"} else ("tagged", "kto")
    record = json.loads((bench.folder / "data" / f"{name}.json").read_text())[0] | changes
    record = {key: value for key, value in record.items() if value is not ...}
    info = json.loads((bench.folder / "data" / "dataset_info.json").read_text())[name]
    (tmp_path / f"{name}.json").write_text(json.dumps([record]))
    (tmp_path / "dataset_info.json").write_text(json.dumps({"a": info}))
    with pytest.raises(ValueError, match=f"1 of 1 records can't be used.\n.*{line}"):
        tokenise(tmp_path, model=bench.folder / "model", stage=stage)


def test_tokens_of_another_checkpoint(load: Callable[..., Any]) -> None:
    """As `tokenized_path` may hold them, which nobody compares with the model."""
    from llamafactory.data import SFTDataCollatorWith4DAttentionMask

    run = load()
    run["processor"].patch_size = 16
    module = {key: run[key] for key in ("template", "tokenizer", "processor")}
    collator = SFTDataCollatorWith4DAttentionMask(**module, model=None)
    with pytest.raises(ValueError, match=r"found 76 <ts> tokens in a batch and \d+ patches .*delete `tokenized_path`"):
        collator(list(run["train_dataset"]))


def test_tokens_without_their_series(bench: Bench, load: Callable[..., Any]) -> None:
    """As `tokenized_path` holds them where the plugin was off: it stops before the first step."""
    written = load(tokenized_path=str(bench.folder / "with"))["train_dataset"]
    lost = written.map(lambda row: {"audios": None}, load_from_cache_file=False)
    DatasetDict({"train": lost}).save_to_disk(bench.folder / "without")
    run = bench.train("lost", {"tokenized_path": "without"})
    assert run.status != 0 and "'loss'" not in run.output
    assert "<ts> tokens in a batch and 0 patches of its 0 series" in run.error


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        ({"formatting": "sharegpt"}, "reads no series; remove `formatting`"),
        ({"formatting": "gdsh", "folder": "x", "columns": {}, "ranking": True}, "whose records hold one answer each"),
        ({"formatting": "gdsh", "folder": "x", "columns": {"kto_tag": "good"}}, "whose records hold one answer each"),
        ({"ranking": True}, "name its columns `chosen` and `rejected`"),
    ],
)
def test_entries_that_would_lose_something(entry: dict[str, Any], line: str) -> None:
    from llamafactory_ext.data.entries import complete

    whole = {"file_name": "a.json", "columns": {"prompt": "input", "timeseries": "timeseries"}, **entry}
    with pytest.raises(ValueError, match=f"a.json has .*{line}"):
        complete(whole)


# --- what is trained ---


@pytest.fixture
def adapt(bench: Bench, tmp_path: Path) -> Callable[..., Any]:
    """A small model as it is after loading; takes recipe keys, or LLaMA-Factory's own arguments for a reference."""

    def run(reference: bool = False, **keys: Any) -> Any:
        from helpers_model import build
        from llamafactory.hparams import FinetuningArguments, get_train_args
        from llamafactory.model import loader

        recipe = PLAIN | {"model_name_or_path": "model", "dataset_dir": "data", "output_dir": str(tmp_path)} | keys
        model_args, _, _, finetuning_args, _ = get_train_args(recipe)
        model = build("qwen2")
        if reference:
            return loader.init_adapter(model.config, model, model_args, FinetuningArguments(), False)
        return loader.init_adapter(model.config, model, model_args, finetuning_args, True)

    return run


@pytest.mark.parametrize("encoder", [True, False])
@pytest.mark.parametrize("layers", [1, 2])
def test_freeze_tuning_takes_the_encoder_as_a_whole(layers: int, encoder: bool, adapt: Callable[..., Any]) -> None:
    """Upstream goes by layers' numbers, and `.0.` is the encoder's first layer as well as the decoder's."""
    keys = {"finetuning_type": "freeze", "freeze_trainable_layers": layers, "train_timeseries_modules": encoder}
    model = adapt(**keys)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    in_encoder = {name for name, _ in model.named_parameters() if name.startswith("ts_encoder.")}
    assert trained & in_encoder == (in_encoder if encoder else set())
    assert (
        {name.split(".")[2] for name in trained - in_encoder} == {"1", "0"} - {"0"} * (2 - layers)
        if False
        else {str(1 - place) for place in range(layers)}
    )


@pytest.mark.parametrize(("stage", "wanted"), [("rm", True), ("dpo", None), ("sft", False)])
def test_a_value_head_gets_logits(stage: str, wanted: bool | None, adapt: Callable[..., Any]) -> None:
    assert adapt(stage=stage, lora_target="q_proj").base_model.model.returns_logits is wanted


def test_a_reference_model_has_no_levers(adapt: Callable[..., Any]) -> None:
    from llamafactory_ext.model.host_embedding import HostEmbedding

    model = adapt(reference=True, stage="dpo", embedding_on_cpu=True)
    assert not isinstance(model.get_input_embeddings(), HostEmbedding)


# --- the right numbers ---


def single(run: dict[str, Any], model: Any, row: dict[str, Any], prefix: str = "") -> tuple[float, int, int]:
    """The summed loss of a record's answer, computed by itself, how many labels it has, how many are guessed."""
    from llamafactory.data import MultiModalDataCollatorForSeq2Seq

    module = {key: run[key] for key in ("template", "tokenizer", "processor")}
    feature = {key: row[f"{prefix}{key}"] for key in ("input_ids", "attention_mask", "labels")}
    batch = MultiModalDataCollatorForSeq2Seq(**module, model=None)([{**feature, "audios": row["audios"]}])
    labels = batch["labels"][:, 1:]
    kept = labels != IGNORED
    with torch.no_grad():
        output = model(**batch)
    guessed = (output.logits[:, :-1].argmax(-1) == labels)[kept].sum()
    return float(output.loss) * int(kept.sum()), int(kept.sum()), int(guessed)


@pytest.fixture
def model(bench: Bench) -> Any:
    from transformers import AutoModelForCausalLM

    from llamafactory_ext.model import ChatTSProcessor  # noqa: F401  (registers the model)

    return AutoModelForCausalLM.from_pretrained(bench.folder / "model").eval()


def test_dpo_in_full_tuning(runs: Callable[[str], Path], load: Callable[..., Any], model: Any) -> None:
    """With a reference model, which comes with arguments that lack this plugin's keys."""
    run = load("pairs", stage="rm")  # as `dpo` calls it, too
    log = log_history(runs("dpo"))
    for side in ("chosen", "rejected"):
        expected = [-single(run, model, row, f"{side}_")[0] for row in run["train_dataset"]]
        assert log[0][f"logps/{side}"] == pytest.approx(sum(expected) / 8, rel=1e-5)
    assert log[0]["loss"] == pytest.approx(math.log(2), rel=1e-6)  # the model is its own reference
    assert log[1]["loss"] < log[0]["loss"]


def test_kto(runs: Callable[[str], Path], load: Callable[..., Any], model: Any) -> None:
    run = load("tagged", stage="kto")
    log = log_history(runs("kto"))
    for side, tag in (("chosen", True), ("rejected", False)):
        expected = [-single(run, model, row)[0] for row in run["train_dataset"] if row["kto_tags"] is tag]
        assert log[0][f"logps/{side}"] == pytest.approx(sum(expected) / 4, rel=1e-5)
    assert log[1]["loss"] < log[0]["loss"]


def test_reward_model(runs: Callable[[str], Path]) -> None:
    losses = [[entry["loss"] for entry in log_history(runs(name))[:2]] for name in ("rm", "rm_exchanged")]
    assert losses[0][1] < losses[0][0]
    assert losses[0][0] != pytest.approx(losses[1][0], rel=1e-3)
    assert (runs("rm") / "value_head.safetensors").is_file()


def test_accuracy_counts_the_labels(runs: Callable[[str], Path], load: Callable[..., Any], model: Any) -> None:
    found = json.loads((runs("accuracy") / "eval_results.json").read_text())
    run = load()
    records = [single(run, model, row) for row in run["train_dataset"]]
    accuracies = [guessed / count for _, count, guessed in records]
    assert found["eval_accuracy"] == pytest.approx(sum(accuracies) / 8, rel=1e-5)
    assert found["eval_loss"] == pytest.approx(
        sum(one[0] for one in records) / sum(one[1] for one in records), rel=1e-5
    )


def test_more_tokens_than_the_vocabulary_has_room_for(runs: Callable[[str], Path], bench: Bench) -> None:
    from safetensors.torch import load_file

    tensors = load_file(runs("resized") / "adapter_model.safetensors")
    (head,) = [tensor for name, tensor in tensors.items() if name.endswith("lm_head.weight")]
    vocabulary = json.loads((bench.folder / "model" / "config.json").read_text())["vocab_size"]
    assert len(head) >= vocabulary + 8
    losses = [entry["loss"] for entry in log_history(runs("resized"))[:2]]
    assert losses[1] < losses[0]


def test_a_step_under_fsdp(bench: Bench) -> None:
    verdict = sharded(bench)
    assert verdict.result == "works", verdict.told
