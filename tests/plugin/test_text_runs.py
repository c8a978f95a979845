"""Runs without series: with the plugin on, switched off or absent, LLaMA-Factory makes the same bytes of tokens."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import upstream


STAGES: dict[str, dict[str, Any]] = {
    "some are cut": {"stage": "sft", "dataset": "talks", "cutoff_len": 24, "val_size": 0.25},
    "packed": {"stage": "sft", "dataset": "talks, tasks", "cutoff_len": 64, "packing": True},
    "pairs": {"stage": "rm", "dataset": "pairs", "cutoff_len": 64},
    "tags": {"stage": "kto", "dataset": "tagged", "cutoff_len": 64},
    "plain text": {"stage": "pt", "dataset": "tasks", "cutoff_len": 16},
}
TOKENISE = """
import hashlib, json, sys
import pyarrow as pa
from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from llamafactory.model import load_tokenizer

def digest(table):
    buffer = pa.BufferOutputStream()
    with pa.ipc.new_stream(buffer, table.schema) as stream:
        stream.write_table(table)
    return hashlib.sha256(buffer.getvalue()).hexdigest()

def digests(dataset):
    table = dataset.with_format("arrow")[:].combine_chunks()
    bare = table.replace_schema_metadata(None)
    return {"rows": len(dataset), "bytes": digest(bare), "with fingerprint": digest(table)}

found = {"plugin": "llamafactory_ext.plugin.activation" in sys.modules}
for name, recipe in json.loads(sys.argv[1]).items():
    model_args, data_args, training_args, finetuning_args, _ = get_train_args(recipe)
    module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    datasets = get_dataset(template, model_args, data_args, training_args, stage=finetuning_args.stage, **module)
    found[name] = {part: digests(dataset) for part, dataset in sorted(datasets.items())}
print(json.dumps(found))
"""


def write_text_data(folder: Path, model: Path) -> None:
    """Data sets of every kind, and a tokenizer of a model that has no series."""
    (folder / "model").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(model / name, folder / "model")
    (folder / "model" / "config.json").write_text('{"model_type": "qwen2"}')
    lines = [f"Wie viel ist {i} mal {i}? 答 {'…' * i}" for i in range(20)]
    roles = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    talk = {"formatting": "sharegpt", "columns": {"messages": "turns"}, "tags": roles}
    pair = {"ranking": True, "columns": {"prompt": "ask", "chosen": "good", "rejected": "bad"}}
    talks = [
        {
            "turns": [{"role": "user", "content": line}, {"role": "assistant", "content": str(i * i)}] * 2,
            "liked": i % 3 > 0,
        }
        for i, line in enumerate(lines)
    ]
    files: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
        "tasks": ([{"instruction": line, "input": "", "output": line[::-1]} for line in lines], {}),
        "talks": (talks, talk),
        "tagged": (talks, {**talk, "columns": {"messages": "turns", "kto_tag": "liked"}}),
        "pairs": ([{"ask": line, "good": "ja", "bad": "nein"} for line in lines], pair),
    }
    info = {}
    for name, (rows, entry) in files.items():
        (folder / f"{name}.json").write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
        info[name] = {"file_name": f"{name}.json", **entry}
    (folder / "dataset_info.json").write_text(json.dumps(info), "utf-8")


def tokenise(folder: Path, state: str, *options: str, **environment: str) -> dict[str, Any]:
    """Runs LLaMA-Factory's own steps up to the tokens in a Python of its own; nothing is taken from a cache."""
    common = {"model_name_or_path": str(folder / "model"), "dataset_dir": str(folder), "template": "qwen"}
    common |= {"do_train": True, "report_to": "none", "output_dir": "out", "cache_dir": str(folder / state)}
    recipes = {name: {**common, **keys} for name, keys in STAGES.items()}
    # Without `site` no .pth file is read; what it would have put on the path is put there by hand.
    packages = [path for path in sys.path if path.endswith("-packages")]
    code = f"import sys; sys.path += [path for path in {packages!r} if path not in sys.path]\n{TOKENISE}"
    done = upstream.run([sys.executable, *options, "-c", code, json.dumps(recipes)], folder, **environment)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_text_is_tokenised_to_the_same_bytes(demo: Path, tmp_path: Path) -> None:
    write_text_data(tmp_path, demo / "model")
    absent = tokenise(tmp_path, "absent", "-S")
    off = tokenise(tmp_path, "off", LLAMAFACTORY_EXT="0")
    on = tokenise(tmp_path, "on")
    assert [absent.pop("plugin"), off.pop("plugin"), on.pop("plugin")] == [False, False, True]
    assert off == absent
    assert set(absent) == set(STAGES) and absent["some are cut"]["eval_dataset"]["rows"] == 5
    # datasets' fingerprint covers the arguments, which have more fields where the plugin is on.
    for found in (absent, on):
        assert all(part.pop("with fingerprint") for parts in found.values() for part in parts.values())
    assert on == absent
