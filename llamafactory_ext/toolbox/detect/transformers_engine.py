"""The engine that is always there: our own model over transformers, in batches."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LogitsProcessorList

from llamafactory_ext.errors import UsageError
from llamafactory_ext.model import ChatTSProcessor, read_config
from llamafactory_ext.model.constrained import Grammars, Probabilities
from llamafactory_ext.model.weights import check_weights

from .engines import Answer, Question, Settings, chat_text


class TransformersEngine:
    """Answers with a checkpoint and, where there is one, an adapter on it.

    Raises:
        UsageError: no ChatTS checkpoint, or files that do not fit one another.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        try:
            config = read_config(settings.model)
            if config is None:
                raise ValueError(f"{settings.model} is no ChatTS checkpoint: its config.json has no `ts` section")
            check_weights(config, settings.model)
            self.model = self._load(config)
            self.processor = ChatTSProcessor.from_pretrained(settings.model)
        except (OSError, ValueError) as err:
            raise UsageError(str(err)) from err
        self.tokenizer = self.processor.tokenizer
        self.grammars = Grammars(self.tokenizer, self.model.config.vocab_size) if settings.constrained else None

    def _load(self, config: Any) -> Any:
        settings = self.settings
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = settings.dtype if settings.dtype != "auto" else ("float32" if device == "cpu" else "auto")
        more: dict[str, Any] = {"dtype": dtype}
        if device != "cpu" or settings.quantization_bit:
            more["device_map"] = device
        if settings.quantization_bit:
            from transformers import BitsAndBytesConfig

            more["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=settings.quantization_bit == 4,
                load_in_8bit=settings.quantization_bit == 8,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=getattr(torch, dtype) if dtype != "auto" else torch.float16,
            )
        model = AutoModelForCausalLM.from_pretrained(settings.model, config=config, **more)
        if settings.adapter:
            from peft import PeftModel

            from llamafactory_ext.model.adapters import check_adapter

            if not Path(settings.adapter).exists():
                raise UsageError(f"--adapter {settings.adapter}: no such folder")
            check_adapter(settings.adapter)
            model = PeftModel.from_pretrained(model, settings.adapter)
        return model.eval()

    def ask(self, questions: Sequence[Question], temperature: float = 0.0, seed: int = 0) -> list[Answer]:
        """Returns an answer to each question; see `Engine`."""
        answers: list[Answer] = []
        for start in range(0, len(questions), self.settings.batch):
            answers += self._batch(questions[start : start + self.settings.batch], temperature, seed + start)
        return answers

    def _batch(self, questions: Sequence[Question], temperature: float, seed: int) -> list[Answer]:
        texts = [chat_text(question.prompt, self.settings.system) for question in questions]
        series = [one for question in questions for one in question.series]
        inputs = self.processor(texts, series, padding=True, add_special_tokens=False).to(self.model.device)
        length = inputs["input_ids"].shape[1]
        placed = getattr(self.model.config, "max_position_embeddings", None)
        if placed is not None and length + 1 > placed:
            raise ValueError(f"a question of {length:,} tokens; the model places {placed:,}: use shorter windows")
        wanted = self.settings.max_new_tokens if placed is None else min(self.settings.max_new_tokens, placed - length)
        end = self.tokenizer.convert_tokens_to_ids("<|im_end|>")
        ends = {end, self.tokenizer.eos_token_id} - {None}
        chosen = LogitsProcessorList()
        if self.grammars:
            chosen.append(self.grammars.processor([question.points for question in questions]))
        noted = Probabilities()
        chosen.append(noted)
        sampling = (
            {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
            if temperature > 0
            else {"do_sample": False}
        )
        with torch.random.fork_rng(devices=[self.model.device] if self.model.device.type == "cuda" else []):
            torch.manual_seed(seed)
            found = self.model.generate(
                **inputs,
                generation_config=GenerationConfig(
                    max_new_tokens=wanted,
                    eos_token_id=sorted(ends),
                    pad_token_id=self.tokenizer.pad_token_id,
                    use_cache=True,
                    repetition_penalty=1.0,  # whatever the checkpoint's own file says
                    **sampling,
                ),
                logits_processor=chosen,
            )
        noted.note(found)
        taken = torch.stack(noted.taken, dim=1) if noted.taken else torch.zeros(len(questions), 0)
        return [
            self._answer(ids, logprobs, ends)
            for ids, logprobs in zip(found[:, length:].tolist(), taken.tolist(), strict=True)
        ]

    def _answer(self, ids: list[int], logprobs: list[float], ends: set[int]) -> Answer:
        stop = next((place for place, one in enumerate(ids) if one in ends), len(ids))
        tokens = pieces(self.tokenizer, ids[:stop])
        return Answer("".join(tokens), tuple(tokens), tuple(logprobs[:stop]), stop < len(ids))


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Returns the text that each token adds; a character of several tokens comes with its last one."""
    found, held = [], []
    for one in ids:
        held.append(one)
        text = tokenizer.decode(held, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if text.endswith("\ufffd") and len(held) < 4:  # bytes of UTF-8: at most four
            found.append("")
            continue
        found.append(text)
        held = []
    if held:
        found[-1] = tokenizer.decode(held, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return found
