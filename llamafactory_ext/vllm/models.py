"""Both families: vLLM's own Qwen2 and Qwen3 with our encoder beside them.

Subclasses, not wrappers, so that weights and adapters keep their published names. ``SupportsMultiModal`` stands behind
the language model in the bases: before it, it would keep ``Module.__init__`` from being called.
"""

from collections.abc import Sequence
from typing import Any

import torch
from vllm.model_executor.models.interfaces import SupportsMultiModal
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM
from vllm.multimodal import MULTIMODAL_REGISTRY

from llamafactory_ext.model.encoder import TimeSeriesEncoder
from llamafactory_ext.model.limits import check_config
from llamafactory_ext.series import MARKER

from .adapters import check_lora
from .processing import SeriesDummyInputs, SeriesInfo, SeriesProcessor


class ChatTSMixin:
    """What both families share. Stands before the language model's class in the bases."""

    model: Any

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        config = vllm_config.model_config.hf_config
        check_config(config.to_dict())
        check_lora(vllm_config.lora_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self.ts_encoder = TimeSeriesEncoder(config.ts)

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str:
        """Returns what stands for a series in a chat's text."""
        return MARKER

    def get_language_model(self) -> Any:
        return self

    def embed_multimodal(self, timeseries: Any = None, **kwargs: object) -> Sequence[torch.Tensor]:
        """Encodes series.

        Arguments:
            timeseries: a tensor ``[2 * length, 1]`` a series, scaled values and mask alternating.

        Returns:
            The embeddings of each series' patches, ``[patches, hidden_size]``.
        """
        if timeseries is None or len(timeseries) == 0:
            return []
        batch = torch.nn.utils.rnn.pad_sequence(list(timeseries), batch_first=True)
        patches, counts = self.ts_encoder(batch)
        return list(patches.split(counts.tolist()))

    def embed_input_ids(
        self,
        input_ids: torch.Tensor,
        multimodal_embeddings: Sequence[torch.Tensor] | None = None,
        *,
        is_multimodal: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Returns the token embeddings ``[tokens, hidden_size]``, those at ``is_multimodal`` overwritten."""
        embeds: torch.Tensor = self.model.embed_input_ids(input_ids)
        if multimodal_embeddings is None or len(multimodal_embeddings) == 0 or is_multimodal is None:
            return embeds
        patches = torch.cat(list(multimodal_embeddings)).to(embeds.dtype)
        return embeds.masked_scatter(is_multimodal.to(embeds.device).unsqueeze(-1), patches)


_register = MULTIMODAL_REGISTRY.register_processor(SeriesProcessor, info=SeriesInfo, dummy_inputs=SeriesDummyInputs)


@_register
class Qwen2TSForCausalLM(ChatTSMixin, Qwen2ForCausalLM, SupportsMultiModal):  # type: ignore[misc]
    """ChatTS over Qwen2 and Qwen2.5 (ChatTS-14B)."""


@_register
class Qwen3TSForCausalLM(ChatTSMixin, Qwen3ForCausalLM, SupportsMultiModal):  # type: ignore[misc]
    """ChatTS over Qwen3 (ChatTS-8B)."""
