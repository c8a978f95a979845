"""The embedding table in CPU memory: it is only looked up, and takes 1.45 GiB of a card with ChatTS-14B.

A step looks up a few thousand rows; they are copied to the card, some 14 MB for 1,400 tokens of width 5120. The table
must be frozen. Whoever moves the model (Trainer, accelerate, ``model.to``) leaves it where it is.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .streamed_head import StreamedHead


class HostEmbedding(nn.Embedding):  # type: ignore[misc]
    """An embedding whose weight stays in CPU memory; ids may be on any device, rows come to theirs."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "HostEmbedding":
        """As upstream's for a change of type; a change of device does not reach the weight.

        ``Module._apply`` is what ``to``, ``cuda``, ``half`` and the like come down to (torch 2.11).
        """

        def stay(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(fn(tensor.new_empty(0)).dtype)

        super()._apply(stay, recurse)
        return self

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = super().forward(input_ids.to(self.weight.device))
        return rows.to(input_ids.device)


_KEYS = {HostEmbedding: ("embedding_on_cpu", "embedding"), StreamedHead: ("stream_head", "head")}


def move_embedding_to_cpu(model: Any) -> int:
    """Puts a :class:`HostEmbedding` in place of the model's input embedding.

    Returns:
        The bytes that no longer lie on the model's device.

    Raises:
        ValueError: the head shares its weight, so that it is needed on the card.
    """
    embedding: nn.Embedding = model.get_input_embeddings()
    head = model.get_output_embeddings()
    if head is not None and head.weight is embedding.weight:
        raise ValueError("the head shares the embedding's weight and needs it on the card; it can't lie on the CPU")
    moved = HostEmbedding(
        embedding.num_embeddings,
        embedding.embedding_dim,
        padding_idx=embedding.padding_idx,
        _weight=embedding.weight.detach().to("cpu"),
        _freeze=not embedding.weight.requires_grad,
    )
    model.set_input_embeddings(moved.train(embedding.training))
    return int(moved.weight.numel() * moved.weight.element_size())


def keep_out_of_ddp(model: nn.Module) -> None:
    """Tells DistributedDataParallel to pass over weights that lie in CPU memory; it wants all on one kind of device.

    Of streamed layers all 4-bit weights: what stands in for one has no memory that could be written to.

    Raises:
        ValueError: such a weight is to be trained.
    """
    names = []
    for path, module in model.named_modules():
        if isinstance(module, HostEmbedding | StreamedHead):
            if module.weight.requires_grad:
                key, part = _KEYS[type(module)]
                raise ValueError(f"`{key}` needs a frozen {part}, but this run trains it; remove the key")
            names.append(f"{path}.weight")
    names += [name for name, weight in model.named_parameters() if weight.stride() and not any(weight.stride())]
    # Not public in name, but the documented way, and the only one (torch 2.11).
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
