"""LLaMA-Factory's own tests with this package absent, switched off and on: every one must end the same way.

Takes LLaMA-Factory's checkout, at the version that is installed here (its sdist has the tests too). Each of the three
runs has a virtual environment of its own, which borrows the packages of this one; in two of them the project is
installed by pip. Nothing is downloaded: a random Llama and a few records stand in for the smallest of the models and
data sets that the tests ask a hub for, and tests that ask for others fail, three times in the same way.

    python tests/resilience/upstream_tests.py --tests ../LLaMA-Factory               # 10 minutes on 2 cores
    python tests/resilience/upstream_tests.py --tests ../LLaMA-Factory --select tests/data
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
SPECIAL = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>", "<image>")
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
DEMO, TINY, LLAMA = "stand_in/demo", "stand_in/tiny", "stand_in/llama3"  # as names on the hub and as folders
# What a fresh Python tells of the plugin once LLaMA-Factory is imported: is it loaded, is it active?
PROBE = (
    "import sys, llamafactory.data.template as t; print('llamafactory_ext' in sys.modules, 'chatts' in t.TEMPLATES)"
)
STATES = {"absent": "False False", "off": "True False", "on": "True True"}


def write_llama(folder: Path) -> None:
    """A random Llama with a byte-level tokenizer and the published chat template."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={text: index for index, text in enumerate(letters)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=SPECIAL[0], eos_token="<|eot_id|>")
    tokenizer.chat_template = LLAMA3
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}
    config = LlamaConfig(vocab_size=len(letters) + len(SPECIAL), num_hidden_layers=2, **sizes)
    LlamaForCausalLM(config).half().save_pretrained(folder)


def write_data(folder: Path, hub: Path) -> None:
    """Two data sets as folders, and what the hub's cache would hold of the one that is described by its own file."""
    lines = [f"What is {i} and {i}?" for i in range(40)]
    talks = [[("system", "Count."), ("user", line), ("assistant", str(2 * i))] for i, line in enumerate(lines)]
    messages = [[{"role": role, "content": text} for role, text in talk] for talk in talks]
    spoken = [{"from": "human", "value": line} for line in lines]
    rows = {
        "system_chat": [{"messages": talk} for talk in messages],
        "kto_en_demo": [{"messages": talk[1:], "label": i % 2 == 0} for i, talk in enumerate(messages)],
        "dpo_en_demo": [
            {
                "conversations": [line],
                "chosen": {"from": "gpt", "value": "yes"},
                "rejected": {"from": "gpt", "value": "no"},
            }
            for line in spoken
        ],
    }
    (folder / DEMO).mkdir(parents=True)
    configs = [f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in rows]
    (folder / DEMO / "README.md").write_text(f"---\nconfigs:\n{''.join(configs)}---\n")
    for name, records in rows.items():
        write_lines(folder / DEMO / f"{name}.jsonl", records)
    roles = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    talked = {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": {**roles, "system_tag": "system"}}
    described = {
        "system_chat": talked,
        "kto_en_demo": {**talked, "columns": {"messages": "messages", "kto_tag": "label"}},
        "dpo_en_demo": {
            "formatting": "sharegpt",
            "ranking": True,
            "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
        },
    }
    info = {name: {"hf_hub_url": DEMO, "subset": name, **entry} for name, entry in described.items()}
    cached = hub / f"datasets--{DEMO.replace('/', '--')}"
    for path, text in (("refs/main", "0" * 40), (f"snapshots/{'0' * 40}/dataset_info.json", json.dumps(info))):
        (cached / path).parent.mkdir(parents=True)
        (cached / path).write_text(text)
    (folder / TINY).mkdir(parents=True)
    alpaca = [{"instruction": line, "input": "Now." * (i % 2), "output": str(2 * i)} for i, line in enumerate(lines)]
    write_lines(folder / TINY / "train.jsonl", alpaca)


def write_lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def environment(folder: Path, installed: bool) -> Path:
    """Makes a virtual environment with the packages of this one; returns its Python.

    The `.pth` files of a borrowed folder are not read: what they start here is absent there.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    borrowed = [path for path in sys.path if path.endswith("-packages") and Path(path).is_dir()]
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    if installed:
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", str(ROOT)]
        subprocess.run([*pip, "--force-reinstall"], check=True)
    return python


def outcomes(python: Path, work: Path, select: list[str], env: dict[str, str]) -> dict[str, str]:
    """Runs the tests; returns how each ended, with the kind of its error."""
    report = work / "report.xml"
    report.unlink(missing_ok=True)
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *select]
    done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, check=False)
    if not report.is_file():
        sys.exit((done.stdout + done.stderr)[-3000:])
    found = {}
    for case in ET.parse(report).getroot().iter("testcase"):
        ended = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        kind = "passed" if ended is None else ended.tag
        reason = "" if ended is None else (ended.get("message") or "").split("\n")[0].split(":")[0][:80]
        found[f"{case.get('classname')}::{case.get('name')}"] = f"{kind} {reason}".strip()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", type=Path, required=True, metavar="PATH", help="LLaMA-Factory's checkout")
    parser.add_argument("--select", nargs="+", default=["tests"], metavar="FOLDER", help="default: tests")
    arguments = parser.parse_args()
    found: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pythons = {"absent": environment(folder / "without", False), "on": environment(folder / "with", True)}
        pythons["off"] = pythons["on"]
        write_llama(folder / LLAMA)
        write_data(folder, folder / "hub")
        for state, active in STATES.items():
            dropped = ("PYTHONPATH", "LLAMAFACTORY_EXT")
            env = {key: value for key, value in os.environ.items() if key not in dropped}
            env |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_CACHE": str(folder / "hub")}
            env |= {"TINY_LLAMA3": str(folder / LLAMA), "DEMO_DATA": DEMO, "TINY_DATA": TINY}
            env |= {"LLAMAFACTORY_EXT": "0"} if state == "off" else {}
            env["HF_DATASETS_CACHE"] = str(folder / state / "cache")  # nothing that another run has converted
            work = folder / state / "work"
            shutil.copytree(arguments.tests / "tests", work / "tests")
            shutil.copytree(arguments.tests / "data", work / "data")
            (work / "stand_in").symlink_to(folder / "stand_in")
            told = subprocess.run([pythons[state], "-c", PROBE], env=env, capture_output=True, text=True, check=True)
            assert told.stdout.strip().endswith(active), f"{state}: {told.stdout}, expected {active}"
            found[state] = outcomes(pythons[state], work, arguments.select, env)
            counts = Counter(ended.split()[0] for ended in found[state].values())
            print(f"| {state} | {', '.join(f'{count} {kind}' for kind, count in counts.items())} |", flush=True)
    names = sorted(set().union(*found.values()))
    unlike = [name for name in names if len({found[state].get(name) for state in STATES}) > 1]
    for name in unlike:
        print(f"UNLIKE {name}: " + "; ".join(f"{state}: {found[state].get(name)}" for state in STATES))
    print(f"{len(names) - len(unlike)} of {len(names)} tests end the same way three times")
    return 1 if unlike or not names else 0


if __name__ == "__main__":
    sys.exit(main())
