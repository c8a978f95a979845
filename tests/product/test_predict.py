"""Predictions by the real command line: what a batch answers is what each record is answered alone, 4 bit or not.

The answers of records alone are made here, without LLaMA-Factory, from the prompts that stand in its file.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, Gdsh, annotation, answer, run_cli
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from llamafactory_ext.model import read_config
from llamafactory_ext.series import describe, encode
from llamafactory_ext.toolbox.cli import evaluate


NEW_TOKENS = 12
SERIES = {
    "a": [float(i % 7) for i in range(60)],
    "b": [0.5, 1.75, 3.0, -400.0],
    "c": [float((i * 37) % 101) for i in range(203)],
    "d": [5.0],
}
USER = "请找出异常区间，用JSON回答。"
LONG = answer(*[(i, i + 1) for i in range(0, 58, 2)])
RECORDS = [("a", LONG), ("ab", answer((2, 3))), ("d", answer()), ("cad", answer((9, 9))), ("b", answer((1, 1)))]
CUTOFF = 300  # room for every prompt, not for the prompt of `a` with its answer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One to three series a record, of unequal length: five records, so that the last batch is not full."""
    data = Gdsh(tmp_path_factory.mktemp("predict") / "data")
    for name, values in SERIES.items():
        data.csv(f"{name}.csv", values)
    records = [
        annotation(
            [f"{name}.jpg" for name in names], reply, user=" 与 ".join(["<image>"] * len(names)) + " 有何异常？"
        )
        for names, reply in RECORDS
    ]
    return data.records(*records).folder


@pytest.fixture(scope="module")
def adapter(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LoRA on what the recipes train, its weights so large that every answer is another one with it."""
    targets = ["q_proj", "k_proj", "v_proj", *(f"ts_encoder.mlp.{index}" for index in (0, 2, 4, 6, 8))]
    torch.manual_seed(1)
    model = get_peft_model(base(demo), LoraConfig(r=8, target_modules=targets, task_type="CAUSAL_LM"))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=3.0 if "ts_encoder" in name else 0.3)  # so that the series matter
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return folder


def base(demo: Path, **options: Any) -> Any:
    path = str(demo / "model")
    return AutoModelForCausalLM.from_pretrained(path, config=read_config(path), dtype=torch.float32, **options)


def predict(
    demo: Path, data: Path, adapter: Path, cwd: Path, *keys: str, here: pytest.MonkeyPatch | None = None
) -> tuple[list[dict[str, str]], str]:
    """Runs the recipe, in this process with ``here``, and returns the lines of its file, and its log."""
    own = [f"model_name_or_path={demo / 'model'}", f"adapter_name_or_path={adapter}", f"dataset_dir={data}"]
    own += ["eval_dataset=a", "output_dir=out", "infer_dtype=float32", f"cutoff_len={CUTOFF}"]
    own += [f"max_new_tokens={NEW_TOKENS}", "preprocessing_num_workers=1"]
    command, log = [str(ROOT / "yaml" / "predict.yaml"), *own, *keys], ""
    if here:
        from llamafactory.train.tuner import run_exp

        here.chdir(cwd)
        here.setattr(sys, "argv", ["llamafactory-cli", *command])
        run_exp()
    else:
        run = run_cli("train", *command, cwd=cwd)
        log = run.stdout + run.stderr
        assert run.returncode == 0, log[-8000:]
    lines = (cwd / "out" / "generated_predictions.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines], log


def alone(model: Any, tokenizer: Any, prompt: str, names: str, sign: int = 1) -> list[int]:
    """The greedy answer to one record; with ``sign`` -1, to its series upside down."""
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        output = model.eval().generate(
            **inputs,
            timeseries=torch.from_numpy(encode([[sign * value for value in SERIES[name]] for name in names])),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    return list(output[0, inputs["input_ids"].shape[1] :].tolist())


def check(lines: list[dict[str, str]], model: Any, demo: Path, special: bool) -> None:
    """Records in their order, prompts and labels whole, each answer that of the record alone."""
    tokenizer = AutoTokenizer.from_pretrained(demo / "model")
    assert len(lines) == len(RECORDS)
    turned = 0
    for line, (names, reply) in zip(lines, RECORDS, strict=True):
        series = [torch.tensor(SERIES[name], dtype=torch.float64).numpy() for name in names]
        expanded = [describe(values) + "<ts>" * -(-len(values) // 8) for values in series]
        assert f"<|im_start|>user\n{' 与 '.join(expanded)} 有何异常？<|im_end|>\n" in line["prompt"]
        label = line["label"].replace("<|endoftext|>", "")  # padding, which special tokens bring along
        assert label.partition("<|im_end|>")[0].rstrip() == reply
        assert ("<|im_end|>" in line["label"]) == special
        expected = tokenizer.decode(alone(model, tokenizer, line["prompt"], names), skip_special_tokens=not special)
        found = line["predict"]
        assert (found.split("<|endoftext|>")[0] if special else found) == expected
        turned += alone(model, tokenizer, line["prompt"], names, -1) != alone(model, tokenizer, line["prompt"], names)
    assert turned >= 2  # or the series would not matter here


def test_a_batch_with_an_adapter(demo: Path, data: Path, adapter: Path, tmp_path: Path) -> None:
    keys = ["quantization_bit=null", "per_device_eval_batch_size=4"]
    lines, log = predict(demo, data, adapter, tmp_path, *keys)
    check(lines, PeftModel.from_pretrained(base(demo), adapter), demo, special=False)
    tokenizer = AutoTokenizer.from_pretrained(demo / "model")
    without = [
        alone(base(demo), tokenizer, line["prompt"], names) for line, (names, _) in zip(lines, RECORDS, strict=True)
    ]
    assert all(
        tokenizer.decode(ids, skip_special_tokens=True) != line["predict"]
        for ids, line in zip(without, lines, strict=True)
    )
    assert "ROUGE and BLEU are left out" in log
    assert not any("rouge" in key for key in json.loads((tmp_path / "out" / "predict_results.json").read_text()))


@pytest.mark.parametrize("form", ["gdsh", "chatts", "chatts without answers"])
def test_series_without_labels_are_answered_and_not_scored(
    form: str,
    demo: Path,
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Through the recipe, in each form that data come in; `evaluate` then scores the one that has a label."""
    data = Gdsh(tmp_path / "data")
    replies = ["", answer((2, 3)), ""]
    if form == "gdsh":
        for name in "abc":
            data.csv(f"{name}.csv", SERIES[name])
        data.records(*(annotation(f"{name}.jpg", reply) for name, reply in zip("abc", replies, strict=True)))
    else:
        columns = {"prompt": "input", "response": "output", "timeseries": "timeseries"}
        lines = [{"input": f"<ts><ts/>\n{USER}", "timeseries": [SERIES[name]]} for name in "abc"]
        if form == "chatts":
            lines = [{**line, "output": reply} for line, reply in zip(lines, replies, strict=True)]
        else:
            replies = [""] * 3
            del columns["response"]
        data.folder.mkdir()
        text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
        (data.folder / "lines.jsonl").write_text(text, encoding="utf-8")
        data.entry = {"file_name": "lines.jsonl", "columns": columns}
        data.describe()
    keys = ["quantization_bit=null", f"cache_dir={tmp_path / 'cache'}"]
    found, _ = predict(demo, data.folder, adapter, tmp_path, *keys, here=monkeypatch)
    assert [line["label"].rstrip() for line in found] == replies
    assert all(line["predict"] for line in found)
    file = tmp_path / "out" / "generated_predictions.jsonl"
    monkeypatch.setattr(sys, "argv", ["llamafactory-ext evaluate", str(file), "--out", str(tmp_path / "scores")])
    status = evaluate.main()
    said = capsys.readouterr()
    if any(replies):
        scores = json.loads((tmp_path / "scores" / "scores.json").read_text("utf-8"))
        assert (status, scores["records"], scores["records_unlabelled"]) == (0, 1, 2)
    else:
        assert status == 1 and "none of 3 predictions has a label, so that nothing can be scored" in said.err
        assert not (tmp_path / "scores").exists()


def test_a_batch_in_4_bit(
    demo: Path, data: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes")
    keys = ("per_device_eval_batch_size=3", "skip_special_tokens=false")
    lines, _ = predict(demo, data, adapter, tmp_path, *keys, here=monkeypatch)
    quantised = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = base(demo, quantization_config=quantised, device_map={"": "cpu"})
    check(lines, PeftModel.from_pretrained(model, adapter), demo, special=True)


def test_recipe_loads_what_the_main_recipe_trained() -> None:
    import yaml

    recipes = {
        name: yaml.safe_load((ROOT / "yaml" / f"{name}.yaml").read_text("utf-8"))
        for name in ("predict", "2080ti_qlora")
    }
    predicts, trains = recipes.values()
    assert predicts["adapter_name_or_path"] == trains["output_dir"]
    assert predicts["output_dir"].startswith(trains["output_dir"] + "/")
    shared = (
        "model_name_or_path",
        "trust_remote_code",
        "flash_attn",
        "embedding_on_cpu",
        "template",
        "cutoff_len",
        "stage",
    )
    quantisation = ("quantization_bit", "quantization_method", "quantization_type", "double_quantization")
    for key in (*shared, *quantisation, "finetuning_type", "dataset_dir"):
        assert predicts[key] == trains[key], key
