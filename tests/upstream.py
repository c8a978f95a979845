"""LLaMA-Factory as tests need it: its source, changed copies of it, processes that import it.

``python tests/upstream.py`` prints the digests of the installed version, to be recorded in ``plugin/test_seams.py``.
``python tests/upstream.py --diff OLD NEW`` shows what moved of all that is watched, between two source trees or two
``site-packages``; exit status 1 where something did.
"""

import argparse
import ast
import difflib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


# What each seam builds on, in LLaMA-Factory's own files: what is wrapped or subclassed, and who calls it.
SOURCES: dict[str, tuple[str, ...]] = {
    "llamafactory.data.converter:register_dataset_converter": (
        "data/converter.py:register_dataset_converter",
        "data/converter.py:AlpacaDatasetConverter",
        "data/converter.py:SharegptDatasetConverter",
        "data/converter.py:align_dataset",
    ),
    "llamafactory.data.mm_plugin:register_mm_plugin": (
        "data/mm_plugin.py:register_mm_plugin",
        "data/mm_plugin.py:get_mm_plugin",
        "data/mm_plugin.py:BasePlugin",
    ),
    "llamafactory.data.template:register_template": ("data/template.py:register_template",),
    "llamafactory.data.parser:DatasetAttr.join": ("data/parser.py:DatasetAttr",),
    "llamafactory.data.loader:_load_single_dataset": ("data/loader.py:_load_single_dataset",),
    "llamafactory.data.loader:_get_preprocessed_dataset": (
        "data/loader.py:_get_preprocessed_dataset",
        "data/loader.py:_get_dataset_processor",
    ),
    "llamafactory.hparams.parser:_TRAIN_ARGS": (
        "hparams/parser.py:_TRAIN_ARGS",
        "hparams/parser.py:_INFER_ARGS",
        "hparams/parser.py:_EVAL_ARGS",
        "hparams/parser.py:_parse_train_args",
    ),
    "llamafactory.hparams.parser:_parse_train_args": (
        "hparams/parser.py:_parse_train_args",
        "hparams/parser.py:get_train_args",
    ),
    "llamafactory.hparams.parser:_parse_infer_args": (
        "hparams/parser.py:_parse_infer_args",
        "hparams/parser.py:get_infer_args",
    ),
    "llamafactory.hparams.parser:_verify_model_args": (
        "hparams/parser.py:_verify_model_args",
        "hparams/parser.py:get_train_args",
        "hparams/parser.py:get_infer_args",
        "hparams/parser.py:get_eval_args",
    ),
    "llamafactory.hparams.parser:get_last_checkpoint": ("hparams/parser.py:get_train_args",),
    "llamafactory.model.loader:_get_init_kwargs": (
        "model/loader.py:_get_init_kwargs",
        "model/loader.py:load_tokenizer",
        "model/loader.py:load_model",
    ),
    "llamafactory.model.loader:load_config": (
        "model/loader.py:load_config",
        "model/loader.py:_get_init_kwargs",
        "model/loader.py:load_model",
    ),
    "llamafactory.model.loader:AutoProcessor": ("model/loader.py:load_tokenizer",),
    "llamafactory.model.adapter:patch_target_modules": (
        "model/model_utils/visual.py:patch_target_modules",
        "model/adapter.py:_setup_lora_tuning",
    ),
    "llamafactory.model.adapter:get_forbidden_modules": (
        "model/model_utils/visual.py:get_forbidden_modules",
        "model/adapter.py:_setup_full_tuning",
        "model/adapter.py:_setup_freeze_tuning",
    ),
    "llamafactory.model.loader:init_adapter": (
        "model/adapter.py:init_adapter",
        "model/loader.py:load_model",
        "model/patcher.py:patch_model",
        "model/model_utils/checkpointing.py:prepare_model_for_training",
    ),
    "llamafactory.train.sft.trainer:create_custom_optimizer": (
        "train/trainer_utils.py:create_custom_optimizer",
        "train/sft/trainer.py:CustomSeq2SeqTrainer.create_optimizer",
    ),
    "llamafactory.train.sft.workflow:CustomSeq2SeqTrainer": (
        "train/sft/workflow.py:run_sft",
        "train/sft/trainer.py:CustomSeq2SeqTrainer",
        "train/callbacks.py:LogCallback",
        "extras/ploting.py:plot_loss",
    ),
    "llamafactory.train.kto.workflow:CustomKTOTrainer": (
        "train/kto/workflow.py:run_kto",
        "train/kto/trainer.py:CustomKTOTrainer",
        "data/collator.py:KTODataCollatorWithPadding",
    ),
    "llamafactory.train.dpo.trainer:CustomDPOTrainer": (
        "train/dpo/workflow.py:run_dpo",
        "train/dpo/trainer.py:CustomDPOTrainer",
    ),
    "llamafactory.train.rm.workflow:PairwiseTrainer": (
        "train/rm/workflow.py:run_rm",
        "train/rm/trainer.py:PairwiseTrainer",
        "train/callbacks.py:fix_valuehead_checkpoint",
    ),
    "llamafactory.train.pt.workflow:CustomTrainer": (
        "train/pt/workflow.py:run_pt",
        "train/pt/trainer.py:CustomTrainer",
    ),
    "llamafactory.launcher:launch": ("launcher.py:launch", "hparams/parser.py:read_args"),
    "llamafactory.api.app:create_app": (
        "api/app.py:create_app",
        "api/app.py:run_api",
        "api/chat.py:create_chat_completion_response",
        "api/chat.py:create_stream_chat_completion_response",
        "api/chat.py:_process_request",
        "api/protocol.py:ChatCompletionRequest",
        "api/protocol.py:ChatMessage",
        "api/protocol.py:MultimodalInputItem",
        "api/common.py:SAFE_MEDIA_PATH",
        "api/common.py:ALLOW_LOCAL_FILES",
        "chat/hf_engine.py:HuggingfaceEngine",
    ),
    "llamafactory.chat.chat_model:run_chat": ("chat/chat_model.py:run_chat", "chat/chat_model.py:ChatModel"),
}
# Where one of our modules leans on what another package does not document: what it leans on, in that package's files.
LEANINGS: dict[str, tuple[str, tuple[str, ...]]] = {
    "llamafactory_ext.training.encoder:optimizer_with_encoder_lr": (
        "transformers",
        (
            "trainer.py:Trainer.get_decay_parameter_names",
            "trainer.py:Trainer.get_optimizer_cls_and_kwargs",
            "trainer.py:Trainer.create_optimizer",
        ),
    ),
    "llamafactory_ext.training.engines:known_faults": (
        "transformers",
        ("trainer.py:Trainer.create_accelerator_and_postprocess",),
    ),
    "llamafactory_ext.training.trainers:install_sft": (
        "transformers",
        ("trainer.py:Trainer.save_model", "trainer.py:Trainer._save", "trainer_seq2seq.py:Seq2SeqTrainer.predict"),
    ),
    "llamafactory_ext.model.modeling:ChatTSMixin": (
        "transformers",
        (
            "generation/utils.py:GenerationMixin._expand_inputs_for_generation",
            "models/qwen2/modeling_qwen2.py:Qwen2ForCausalLM",
            "models/qwen3/modeling_qwen3.py:Qwen3ForCausalLM",
            "loss/loss_utils.py:ForCausalLMLoss",
        ),
    ),
    "llamafactory_ext.model.attention:sdpa_repeated": (
        "transformers",
        ("integrations/sdpa_attention.py:sdpa_attention_forward",),
    ),
    "llamafactory_ext.toolbox.session.recipe:arguments": (
        "llamafactory",
        (
            "hparams/parser.py:_TRAIN_ARGS",
            "hparams/parser.py:get_train_args",
            "data/parser.py:get_dataset_list",
            "data/parser.py:DatasetAttr",
        ),
    ),
    "llamafactory_ext.toolbox.session.framework:load": ("llamafactory", ("data/loader.py:_load_single_dataset",)),
    "llamafactory_ext.toolbox.session.framework:load_tokenizer": (
        "llamafactory",
        ("model/loader.py:load_tokenizer", "data/template.py:get_template_and_fix_tokenizer"),
    ),
    "llamafactory_ext.toolbox.session.framework:tokenise": (
        "llamafactory",
        ("data/loader.py:_get_preprocessed_dataset", "data/loader.py:_get_dataset_processor"),
    ),
    "llamafactory_ext.toolbox.session.framework:validation_rows": (
        "llamafactory",
        ("data/data_utils.py:merge_dataset", "data/data_utils.py:split_dataset"),
    ),
    "llamafactory_ext.toolbox.plan.data:read_data": ("llamafactory", ("data/loader.py:get_dataset",)),
    "llamafactory_ext.toolbox.plan.steps:count_steps": (
        "transformers",
        ("trainer.py:Trainer.set_initial_training_values",),
    ),
    "llamafactory_ext.model.last_layer:read_rows_only": (
        "transformers",
        ("modeling_layers.py:GradientCheckpointingLayer",),
    ),
    "llamafactory_ext.model.host_embedding:HostEmbedding": (
        "torch",
        ("nn/modules/module.py:Module._apply", "nn/modules/sparse.py:Embedding"),
    ),
    "llamafactory_ext.model.host_embedding:keep_out_of_ddp": (
        "torch",
        ("nn/parallel/distributed.py:DistributedDataParallel._set_params_and_buffers_to_ignore_for_model",),
    ),
}


def installed_root(package: str = "llamafactory") -> Path:
    """Returns the folder of the installed package, without importing it."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)))


def installed_version(package: str = "llamafactory") -> str:
    return importlib.metadata.version(package)


def source_of(root: Path, place: str) -> str:
    """Returns the source of ``file.py:name`` or ``file.py:Class.name`` as it stands in the file.

    Raises:
        LookupError: there is no such definition.
    """
    file, _, names = place.partition(":")
    text = (root / file).read_text("utf-8")
    node: Any = ast.parse(text)
    for name in names.split("."):
        node = next((child for child in node.body if _defines(child, name)), None)
        if node is None:
            raise LookupError(f"{place} is not there")
    return ast.get_source_segment(text, node) or ""


def _defines(node: ast.AST, name: str) -> bool:
    if isinstance(node, ast.Assign):
        return any(isinstance(target, ast.Name) and target.id == name for target in node.targets)
    return getattr(node, "name", None) == name


def digest(root: Path, places: Sequence[str]) -> str:
    """Returns the SHA-256 of what stands at these places, its first 16 digits."""
    text = "\n".join(source_of(root, place) for place in places)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def moved(old: Path, new: Path) -> dict[str, str]:
    """Returns a unified diff for each watched place whose source differs, by the place.

    Arguments:
        old, new: folders that hold packages, such as ``site-packages`` or a checkout's ``src``. A package that one of
            them lacks is passed over.

    Raises:
        FileNotFoundError: they have no watched package in common.
    """
    watched = {("llamafactory", place) for places in SOURCES.values() for place in places}
    watched |= {(package, place) for package, places in LEANINGS.values() for place in places}
    roots = {package: [_package_in(folder, package) for folder in (old, new)] for package, _ in watched}
    shared = {package: pair for package, pair in roots.items() if all(folder.is_dir() for folder in pair)}
    if not shared:
        raise FileNotFoundError(f"{old} and {new} have none of {', '.join(sorted(roots))} in common")
    diffs = {}
    for package, place in sorted(watched):
        texts = [_source_or_nothing(folder, place) for folder in shared.get(package, ())]
        if len(set(texts)) > 1:
            lines = difflib.unified_diff(*(text.splitlines() for text in texts), str(old), str(new), lineterm="", n=2)
            diffs[f"{package}/{place}"] = "\n".join(lines)
    return diffs


def _package_in(folder: Path, package: str) -> Path:
    source = folder / "src" / package
    return source if source.is_dir() else folder / package


def _source_or_nothing(root: Path, place: str) -> str:
    try:
        return source_of(root, place)
    except (LookupError, FileNotFoundError):
        return ""


def users_of(moved_place: str) -> list[str]:
    """Returns the seams and leanings that build on ``package/file.py:name``."""
    package, _, place = moved_place.partition("/")
    seams = [seam for seam, places in SOURCES.items() if package == "llamafactory" and place in places]
    return seams + [ours for ours, (theirs, places) in LEANINGS.items() if theirs == package and place in places]


def copy_with(folder: Path, replacements: Mapping[str, Sequence[tuple[str, str]]]) -> Path:
    """Copies LLaMA-Factory's package into ``folder``, changed; returns ``folder``, for ``PYTHONPATH``.

    Arguments:
        replacements: for each file the texts to replace, all occurrences; a file of the same name with ``->`` and a
            new name after it is renamed.
    """
    copy = folder / "llamafactory"
    shutil.copytree(installed_root(), copy, ignore=shutil.ignore_patterns("__pycache__"))
    for file, texts in replacements.items():
        old_name, _, new_name = file.partition("->")
        content = (copy / old_name).read_text("utf-8")
        for old, new in texts:
            assert old in content, f"{old!r} is not in {old_name}"
            content = content.replace(old, new)
        (copy / old_name).unlink()
        (copy / (new_name or old_name)).write_text(content, "utf-8")
    return folder


def run(arguments: Sequence[str | Path], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in ``folder`` as a user would: the plugin on, no access to any hub."""
    dropped = ("LLAMAFACTORY_EXT", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
    kept = {key: value for key, value in os.environ.items() if key not in dropped}
    kept |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [str(argument) for argument in arguments]
    return subprocess.run(
        command, cwd=folder, env=kept | environment, capture_output=True, text=True, timeout=300, check=False
    )


def run_json_each(codes: Sequence[str], folder: Path, **environment: str) -> list[Any]:
    """Runs pieces of Python code, none of which sees what another one did; returns what each printed, read as JSON.

    They run in forks of one process that has imported what takes long (torch, transformers) and nothing that matters.
    """
    driver = f"""
import os, sys
import datasets, peft, torch, transformers
assert not [name for name in sys.modules if name.split(".")[0] == "llamafactory"]
for code in {list(codes)!r}:
    sys.stdout.flush()
    if os.fork() == 0:
        exec(compile(code, "<test>", "exec"), {{"__name__": "__main__"}})
        sys.stdout.flush()
        os._exit(0)
    if os.wait()[1]:
        sys.exit(1)
"""
    done = run([sys.executable, "-c", driver], folder, **environment)
    assert done.returncode == 0, done.stderr[-4000:]
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith(("{", "["))]
    assert len(results) == len(codes), done.stdout
    return results


def script(name: str) -> Path:
    """Returns a console script of this interpreter's environment, or of the one that it borrows packages from."""
    for folder in [
        Path(sys.executable).parent,
        *(Path(path).parents[2] / "bin" for path in sys.path if "site-" in path),
    ]:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{name} is not installed beside {sys.executable}")


def convert_in_child(converter: Any, record: dict[str, Any]) -> dict[str, Any]:
    """Runs a converter that came through pickle into a fresh process; tells what is registered there too."""
    converted = converter(record)
    from llamafactory.data.converter import DATASET_CONVERTERS
    from llamafactory.data.template import TEMPLATES

    own = DATASET_CONVERTERS["chatts"].func is type(converter)
    return {"converted": converted, "converter_is_registered": own, "template": "chatts" in TEMPLATES}


def expand_in_child(plugin: Any, messages: list[dict[str, str]], series: list[list[float]], processor: Any) -> Any:
    """Runs an mm-plugin that came through pickle into a fresh process."""
    from llamafactory.data.mm_plugin import PLUGINS

    expanded = plugin.process_messages(messages, [], [], series, processor)
    return {"expanded": expanded, "plugin_is_registered": PLUGINS.get("chatts") is type(plugin)}


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--diff", nargs=2, type=Path, metavar=("OLD", "NEW"), help="what moved between two folders")
    arguments = parser.parse_args(words)
    if arguments.diff is None:
        print(f'"{installed_version()}"')
        for seam, places in SOURCES.items():
            print(f'    "{seam}": "{digest(installed_root(), places)}",')
        for ours, (package, places) in LEANINGS.items():
            print(
                f'    "{ours}": "{digest(installed_root(package), places)}",  # {package} {installed_version(package)}'
            )
        return 0
    diffs = moved(*arguments.diff)
    for place, diff in diffs.items():
        print(f"{place}, which is built on by {', '.join(users_of(place))}\n{diff}\n")
    print(f"{len(diffs)} watched places moved")
    return 1 if diffs else 0


if __name__ == "__main__":
    sys.exit(main())
