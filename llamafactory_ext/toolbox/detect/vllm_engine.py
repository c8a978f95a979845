"""The engine for many series: a stock vLLM in this process, which forms its own batches.

It wants an environment of its own (docs/serving.md). Checked with vLLM 0.32.0.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams
from vllm.exceptions import VLLMClientError
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform
from vllm.sampling_params import StructuredOutputsParams

from llamafactory_ext.errors import UsageError
from llamafactory_ext.gdsh.grammar import answer_grammar
from llamafactory_ext.model import read_config
from llamafactory_ext.model.adapters import check_adapter
from llamafactory_ext.vllm.adapters import refuse_encoder_weights

from .engines import Answer, Question, Settings, chat_text
from .transformers_engine import pieces


class VllmEngine:
    """Answers with a checkpoint and, where there is one, an adapter on its language model.

    Raises:
        UsageError: no ChatTS checkpoint, an adapter that vLLM can't apply, or a setting that it does not have.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        if settings.quantization_bit:
            raise UsageError("engine vllm takes a checkpoint in the bits that it has: leave --quantization-bit out")
        more: dict[str, Any] = {"limit_mm_per_prompt": {"audio": 8}, "dtype": settings.dtype}
        if current_platform.is_cpu():  # nothing is compiled there, which takes longer than it saves
            more |= {"enforce_eager": True, "dtype": "float32" if settings.dtype == "auto" else settings.dtype}
        try:
            if read_config(settings.model) is None:
                raise ValueError(f"{settings.model} is no ChatTS checkpoint: its config.json has no `ts` section")
            self.lora = self._adapter(more)
        except (OSError, ValueError) as err:
            raise UsageError(str(err)) from err
        self.llm = LLM(settings.model, **{**more, **dict(settings.more)})
        self.tokenizer = self.llm.get_tokenizer()
        self.ends = {self.tokenizer.convert_tokens_to_ids("<|im_end|>"), self.tokenizer.eos_token_id} - {None}

    def _adapter(self, more: dict[str, Any]) -> LoRARequest | None:
        folder = self.settings.adapter
        if not folder:
            return None
        if not Path(folder).is_dir():
            raise UsageError(f"--adapter {folder}: no such folder")
        check_adapter(folder)
        refuse_encoder_weights(folder)
        rank = json.loads(Path(folder, "adapter_config.json").read_text("utf-8")).get("r", 8)
        # One slot more than adapters: see `check_lora`.
        more |= {"enable_lora": True, "max_loras": 2, "max_lora_rank": next(r for r in _RANKS if r >= rank)}
        return LoRARequest("adapter", 1, folder)

    def ask(self, questions: Sequence[Question], temperature: float = 0.0, seed: int = 0) -> list[Answer]:
        """Returns an answer to each question; see `Engine`."""
        prompts = [
            {"prompt": chat_text(one.prompt, self.settings.system), "multi_modal_data": {"audio": list(one.series)}}
            for one in questions
        ]
        sampling = [self._sampling(one, temperature, seed + place) for place, one in enumerate(questions)]
        try:
            outputs = self.llm.generate(prompts, sampling, lora_request=self.lora, use_tqdm=False)
        except VLLMClientError as err:  # no ValueError, of which the pipeline knows that it names a question
            raise ValueError(str(err)) from err
        return [self._answer(output.outputs[0]) for output in outputs]

    def _sampling(self, question: Question, temperature: float, seed: int) -> SamplingParams:
        constraint = None
        if self.settings.constrained:
            constraint = StructuredOutputsParams(grammar=answer_grammar(question.points))
        return SamplingParams(
            temperature=temperature,
            seed=seed if temperature > 0 else None,
            max_tokens=self.settings.max_new_tokens,
            logprobs=0,
            stop_token_ids=sorted(self.ends),
            structured_outputs=constraint,
            detokenize=False,
        )

    def _answer(self, found: Any) -> Answer:
        ids = list(found.token_ids)
        logprobs = [row[token].logprob for row, token in zip(found.logprobs or (), ids, strict=True)]
        stop = next((place for place, one in enumerate(ids) if one in self.ends), len(ids))
        tokens = pieces(self.tokenizer, ids[:stop])
        return Answer("".join(tokens), tuple(tokens), tuple(logprobs[:stop]), found.finish_reason == "stop")


_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""That vLLM makes room for."""
