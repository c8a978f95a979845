"""The published way of computing a ChatTS training step, written from its description, to compare with.

Two marker tokens a series are in the input. Inside ``forward`` the series are patched one after the other. The
sequence of embeddings is built anew, with a series' patches in place of its two markers, and so are labels, attention
mask and position ids. Logits are computed at every position, cast to float32, shifted and compared with all labels.
Weights have the names that the native model gives them, so that both load the same state dict.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen2ForCausalLM, Qwen3ForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from llamafactory_ext.model import Qwen2TSConfig, Qwen3TSConfig


_IGNORED = -100


class PublishedEncoder(nn.Module):
    """Patches each series by itself; all patches then go through the MLP together."""

    def __init__(self, section: dict[str, Any]) -> None:
        super().__init__()
        self.patch_size: int = section["patch_size"]
        self.filled_up: int = section["max_sequence_length"]  # the index of places that were not measured
        hidden, width = section["hidden_size"], self.patch_size * (1 + section["embedding_dim"])
        self.position_embedding = nn.Embedding(self.filled_up + 1, section["embedding_dim"])
        layers: list[nn.Module] = [nn.Linear(width, hidden)]
        for _ in range(section["num_layers"] - 1):
            layers += [nn.GELU(), nn.Linear(hidden, hidden)]
        self.mlp = nn.Sequential(*layers)

    def forward(self, timeseries: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
        """Encodes ``[series, 2 * longest, 1]``; returns ``[patches, hidden_size]`` and each series' patches."""
        pairs = timeseries.reshape(len(timeseries), -1, 2)
        inputs, counts = [], []
        for values, mask in zip(*pairs.unbind(-1), strict=True):
            length = int(mask.long().sum())
            count = -(-length // self.patch_size)
            missing = count * self.patch_size - length
            filled = torch.cat([values[:length], values[length - 1 : length].expand(missing)])
            places = torch.arange(length, device=values.device)
            places = torch.cat([places, places.new_full((missing,), self.filled_up)])
            embedded = self.position_embedding(places.reshape(count, self.patch_size)).flatten(1)
            inputs.append(torch.cat([filled.reshape(count, self.patch_size).to(embedded.dtype), embedded], dim=1))
            counts.append(count)
        return self.mlp(torch.cat(inputs)), counts


class PublishedMixin:
    """What both families share. Stands before the language model's class in the bases."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.ts_encoder = PublishedEncoder(config.ts)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        timeseries: torch.Tensor,
        **kwargs: Any,  # PEFT's
    ) -> CausalLMOutputWithPast:
        """Returns loss and logits.

        Arguments:
            input_ids: ``[batch, length]``, filled up on the right, two markers for each series.
            timeseries: all series of the batch, ``[series, 2 * longest, 1]``.
        """
        embeds = self.get_input_embeddings()(input_ids)
        patches, counts = self.ts_encoder(timeseries)
        embeds, attention_mask, position_ids, labels = self._merge(
            embeds.to(patches.dtype), input_ids, attention_mask, labels, list(patches.split(counts))
        )
        outputs = self.model(
            inputs_embeds=embeds, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        )
        logits = self.lm_head(outputs.last_hidden_state).float()
        shifted = logits[:, :-1].contiguous().view(-1, self.config.vocab_size)
        loss = nn.functional.cross_entropy(shifted, labels[:, 1:].contiguous().view(-1), ignore_index=_IGNORED)
        return CausalLMOutputWithPast(loss=loss, logits=logits)

    def _merge(
        self,
        embeds: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        series: list[torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns embeddings, mask, position ids and labels in which each series' patches stand for its markers."""
        rows, row_labels, waiting = [], [], iter(series)
        for embed, ids, mask, label in zip(embeds, input_ids, attention_mask.bool(), labels, strict=True):
            embed, ids, label = embed[mask], ids[mask], label[mask]
            starts = (ids == self.config.ts_token_start_index).nonzero().flatten().tolist()
            parts, part_labels, end = [], [], 0
            for start in starts:
                patches = next(waiting)
                parts += [embed[end:start], patches]
                part_labels += [label[end:start], label.new_full((len(patches),), _IGNORED)]
                end = start + 2
            rows.append(torch.cat([*parts, embed[end:]]))
            row_labels.append(torch.cat([*part_labels, label[end:]]))
        merged_mask = pad_sequence([row.new_ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
        position_ids = (merged_mask.cumsum(1) - 1).masked_fill(merged_mask == 0, 1)
        merged_labels = pad_sequence(row_labels, batch_first=True, padding_value=_IGNORED)
        return pad_sequence(rows, batch_first=True), merged_mask, position_ids, merged_labels


class PublishedQwen2(PublishedMixin, Qwen2ForCausalLM):
    """The published way over Qwen2."""

    config_class = Qwen2TSConfig


class PublishedQwen3(PublishedMixin, Qwen3ForCausalLM):
    """The published way over Qwen3."""

    config_class = Qwen3TSConfig
