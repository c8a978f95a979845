"""Answers of a ChatTS checkpoint to records, greedy or drawn, and their scores; for the scripts beside."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


Record = dict[str, Any]

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


def answers(
    folder: Path, asked: Sequence[Record], temperature: float = 0.0, seed: int = 0, new: int = 110, batch: int = 64
) -> list[str]:
    """Answers records of one series each; greedy at temperature 0."""
    from llamafactory_ext.model import ChatTSProcessor, Qwen2TSForCausalLM

    model = Qwen2TSForCausalLM.from_pretrained(folder).eval()
    processor = ChatTSProcessor.from_pretrained(str(folder))
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    drawn = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    found: list[str] = []
    torch.manual_seed(seed)
    for start in range(0, len(asked), batch):
        some = asked[start : start + batch]
        prompts = [f"{SYSTEM}<|im_start|>user\n{one['input']}<|im_end|>\n<|im_start|>assistant\n" for one in some]
        inputs: Any = processor(prompts, timeseries=[one["timeseries"][0] for one in some], padding=True)
        with torch.no_grad():
            output = model.generate(
                **inputs, max_new_tokens=new, eos_token_id=end, pad_token_id=end, use_cache=True, **drawn
            )
        texts = processor.tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        found += [text.strip() for text in texts]
    return found


def exchanged(records: Sequence[Record], shift: int) -> list[Record]:
    """The same records, each with the series of the one so many further on."""
    count = len(records)
    return [{**one, "timeseries": records[(n + shift) % count]["timeseries"]} for n, one in enumerate(records)]


def scores(texts: Sequence[str], asked: Sequence[Record]) -> dict[str, Any]:
    """Scores of ``llamafactory-ext evaluate``."""
    from llamafactory_ext.toolbox.evaluate.predictions import Prediction
    from llamafactory_ext.toolbox.evaluate.scoring import evaluate

    lines = [
        Prediction(place, "", text, one["output"], (len(one["timeseries"][0]),))
        for place, (text, one) in enumerate(zip(texts, asked, strict=True))
    ]
    return dict(evaluate(lines, names=None).scores)
