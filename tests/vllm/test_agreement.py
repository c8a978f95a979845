"""vLLM against our transformers model, float32: the same tokens, probabilities and answers, asked all at once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_vllm import FAMILIES, chat, checkpoints, open_llm  # noqa: F401

from llamafactory_ext.series import FloatArray


TOKENS = 24


def walks(seed: int, *lengths: int) -> list[FloatArray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(0, 10 ** rng.uniform(-2, 4), length).cumsum() for length in lengths]


# A blank before a marker is one token with the bracket behind it.
ASKED: list[tuple[str, list[FloatArray]]] = [
    ("what is wrong with <ts><ts/>?", walks(0, 1)),
    ("<ts><ts/> <ts><ts/> which rises", walks(1, 7, 300)),
    ("请找出异常区间：<ts><ts/>", walks(2, 5000)),
    ("a <ts><ts/> b <ts><ts/> c\n<ts><ts/>d<ts><ts/>", walks(3, 1, 8, 9, 64)),
    ("<ts><ts/><ts><ts/><ts><ts/>", walks(4, 16, 15, 999)),
    ("hello", []),
    (" <ts><ts/>\n\n", walks(5, 2000)),
    ("x<ts><ts/>", [np.ones(50)]),
]


def expected(folder: Path, adapter: Path | None = None) -> list[tuple[list[int], torch.Tensor, list[int]]]:
    """For each question the prompt's tokens, their log-probabilities, and the greedy answer."""
    from transformers import AutoModelForCausalLM

    from llamafactory_ext.model import ChatTSProcessor, read_config

    model = AutoModelForCausalLM.from_pretrained(folder, config=read_config(str(folder)), dtype=torch.float32).eval()
    if adapter is not None:
        add_adapter(model, adapter)
    processor, found = ChatTSProcessor.from_pretrained(str(folder)), []
    for text, series in ASKED:
        inputs = processor(chat(text), series)
        ids = inputs["input_ids"][0]
        with torch.no_grad():
            logprobs = model(**inputs).logits[0].log_softmax(-1)[:-1].gather(1, ids[1:, None])[:, 0]
            answer = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False, use_cache=True)[0, len(ids) :]
        found.append((ids.tolist(), logprobs, answer.tolist()))
    return found


def ask(llm: Any, lora: Any = None, prompt_logprobs: int | None = 0) -> list[Any]:
    from vllm import SamplingParams

    prompts = [
        {"prompt": chat(text), **({"multi_modal_data": {"audio": series}} if series else {})} for text, series in ASKED
    ]
    outputs: list[Any] = llm.generate(
        prompts,
        SamplingParams(temperature=0, max_tokens=TOKENS, prompt_logprobs=prompt_logprobs),
        lora_request=lora,
        use_tqdm=False,
    )
    return outputs


def check(outputs: list[Any], reference: list[tuple[list[int], torch.Tensor, list[int]]]) -> None:
    for output, (ids, logprobs, answer) in zip(outputs, reference, strict=True):
        assert output.prompt_token_ids == ids
        rows = zip(output.prompt_logprobs[1:], ids[1:], strict=True)
        found = torch.tensor([row[token].logprob for row, token in rows])
        assert float((found - logprobs).abs().max()) < 1e-5
        assert list(output.outputs[0].token_ids) == answer


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def llm(family: str, checkpoints: dict[str, Path]) -> Any:
    return open_llm(checkpoints[family])


@pytest.fixture(scope="module")
def reference(family: str, checkpoints: dict[str, Path]) -> Any:
    return expected(checkpoints[family])


def test_tokens_probabilities_and_answers_agree(llm: Any, reference: Any) -> None:
    assert len({tuple(answer) for _, _, answer in reference}) > 5  # the series make the difference
    check(ask(llm), reference)
    check(ask(llm), reference)  # the second time from vLLM's caches


def test_mixed_batches_of_an_adapter(
    family: str, reference: Any, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """Requests with and without an adapter in one batch: each as if alone. Answers only: vLLM's CPU code has no
    probabilities of prompts beside adapters."""
    from vllm.lora.request import LoRARequest

    write_adapter(tmp_path, checkpoints[family])
    plain = [answer for _, _, answer in reference]
    changed = [answer for _, _, answer in expected(checkpoints[family], tmp_path)]
    assert sum(one != other for one, other in zip(changed, plain, strict=True)) > 4
    llm, lora = (
        open_llm(checkpoints[family], enable_lora=True, max_loras=2, max_lora_rank=8),
        LoRARequest("a", 1, str(tmp_path)),
    )

    def answers(lora: Any) -> list[list[int]]:
        return [list(output.outputs[0].token_ids) for output in ask(llm, lora, None)]

    assert answers(lora) == changed
    mixed = [lora if place % 2 else None for place in range(len(ASKED))]
    assert answers(mixed) == [(changed if place % 2 else plain)[place] for place in range(len(ASKED))]
    assert answers(None) == plain


def write_adapter(folder: Path, checkpoint: Path, name: str = "model.layers.0.self_attn.q_proj") -> None:
    """A LoRA adapter as PEFT writes it, on one matrix."""
    import json

    from safetensors.torch import load_file, save_file

    rows, columns = load_file(checkpoint / "model.safetensors")[f"{name}.weight"].shape
    generator = torch.Generator().manual_seed(1)
    weights = {
        f"base_model.model.{name}.lora_A.weight": torch.randn(8, columns, generator=generator) * 0.3,
        f"base_model.model.{name}.lora_B.weight": torch.randn(rows, 8, generator=generator) * 0.3,
    }
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": [name.rsplit(".")[-1]], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def add_adapter(model: Any, folder: Path) -> None:
    """Merges what `write_adapter` wrote, by the formula."""
    from safetensors.torch import load_file

    weights = load_file(folder / "adapter_model.safetensors")
    first, second = sorted(weights)
    name = first.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
    model.get_submodule(name).weight.data += weights[second] @ weights[first]
