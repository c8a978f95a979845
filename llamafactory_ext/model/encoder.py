"""The time-series encoder: patches of a series to embeddings of the language model.

Parameter names are the published ones: ``position_embedding.weight`` ``[max_sequence_length + 1, embedding_dim]`` and
``mlp.{0,2,4,…}.{weight,bias}``.
"""

from typing import Any

import torch
from torch import nn


class TimeSeriesEncoder(nn.Module):  # type: ignore[misc]
    """Encodes all series of a batch at once.

    Arguments:
        section: the ``ts`` section of a ChatTS config.
    """

    def __init__(self, section: dict[str, Any]) -> None:
        super().__init__()
        self.patch_size: int = section["patch_size"]
        self.max_sequence_length: int = section["max_sequence_length"]
        width = self.patch_size
        self.position_embedding: nn.Embedding | None = None
        if section.get("use_position_embedding", False):
            # One row more than positions: the last one stands for "filled up, not measured".
            self.position_embedding = nn.Embedding(self.max_sequence_length + 1, section["embedding_dim"])
            width += self.patch_size * section["embedding_dim"]
        layers: list[nn.Module] = []
        for index in range(section["num_layers"]):
            layers += [nn.GELU()] if index else []
            layers.append(nn.Linear(width, section["hidden_size"]))
            width = section["hidden_size"]
        if section.get("use_layer_norm", False):
            layers.append(nn.LayerNorm(width))
        self.mlp = nn.Sequential(*layers)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights that read the input (LoRA's wrapper passes it on)."""
        weight: torch.Tensor = self.mlp[0].weight
        return weight.dtype

    def forward(self, timeseries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encodes patches.

        Arguments:
            timeseries: ``[series, 2 * longest, 1]``, scaled values and mask alternating (see ``series.encode``).

        Returns:
            The embeddings of all patches, series after series, ``[patches, hidden_size]``, and the number of patches
            of each series, ``[series]``.
        """
        values, mask = timeseries.reshape(timeseries.shape[0], -1, 2).unbind(-1)
        # Summed as integers: float16 can't count past 2048.
        lengths = mask.long().sum(dim=1)
        counts = (lengths + self.patch_size - 1) // self.patch_size
        room = -(-values.shape[1] // self.patch_size) * self.patch_size
        values = nn.functional.pad(values, (0, room - values.shape[1]))

        index = torch.arange(room, device=values.device).expand(len(values), room)
        real = index < lengths[:, None]
        last = values.gather(1, (lengths - 1).clamp(min=0)[:, None])
        values = torch.where(real, values, last)
        used = index[:, :: self.patch_size] < lengths[:, None]  # patches that hold at least one point

        inputs = self._patches(values)[used].to(self.dtype)
        if self.position_embedding is not None:
            positions = index.masked_fill(~real, self.max_sequence_length)
            embedded = self.position_embedding(self._patches(positions)[used]).flatten(1)
            inputs = torch.cat([inputs, embedded.to(inputs.dtype)], dim=1)
        return self.mlp(inputs), counts

    def _patches(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0], -1, self.patch_size)
