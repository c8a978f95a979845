"""The head in CPU memory: its weights come to the device piece by piece, once a step (ChatTS-14B: 1.45 GiB).

For the loss each piece is read once. The gradient of the hidden states is the mean of the head's rows by their
probabilities, less the label's row; like a softmax, a mean by probabilities can be taken piece after piece. What is
due to the label itself is kept apart from all others, so that both loss and gradient keep their digits where the
model is sure: with ``o`` the logarithm of the others' sum and ``t`` the label's logit, loss ``softplus(o - t)``, and
gradient ``sigmoid(o - t) * (mean of the others' rows - the label's row)``. No logits are kept.

Price: 1.45 GiB over the bus for a step of a record (0.12 s at 12 GB/s, of which most is beside computing), and for
each token of an answer.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from .copying import Copier, pin


_PIECE = 2**26  # bytes of the weight: two of them lie on the card at a time
_LOGITS_AT_ONCE = 2**23  # elements, of some labels by a piece: 32 MiB in float32
_FINE = 2.0**8  # keeps small probabilities from becoming zero in float16; a mean of weights stays in its range


class StreamedHead(nn.Linear):  # type: ignore[misc]
    """A frozen head without bias whose weight stays in CPU memory, wherever the model goes."""

    _copier: Copier | None = None

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "StreamedHead":
        """As upstream's for a change of type; a change of device does not reach the weight (torch 2.11)."""

        def stay(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(fn(tensor.new_empty(0)).dtype)

        super()._apply(stay, recurse)
        return self

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns the logits, ``[..., vocabulary]``; for a gradient the weights come a second time."""
        logits: torch.Tensor = _Logits.apply(hidden.to(_compute_dtype(hidden, self.weight)), self)
        return logits

    def summed_loss(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Returns the summed next-token loss of ``[labels, hidden_size]``, float32; the weights come once."""
        loss: torch.Tensor = _Loss.apply(hidden, targets, self)
        return loss

    def pieces(self, device: torch.device) -> Iterator[tuple[int, torch.Tensor]]:
        """Yields the first row's number and some rows, on the device, until all have been there.

        Rows are written over when the next ones are asked for.
        """
        rows = self.rows_at_once
        if self._copier is None or self._copier.device != device:
            self._copier = Copier(device)
        for number, part in enumerate(self._copier.one_ahead(self.weight.detach().split(rows))):
            yield number * rows, part

    @property
    def rows_at_once(self) -> int:
        """Rows of the weight in a piece."""
        return max(1, _PIECE // int(self.in_features * self.weight.element_size()))


def stream_head(model: Any) -> int:
    """Puts a :class:`StreamedHead` in place of the model's head.

    Returns:
        The bytes that no longer lie on the device.

    Raises:
        ValueError: the head shares the embedding's weight, has a bias, or is quantised.
    """
    head = model.get_output_embeddings()
    if head.weight is model.get_input_embeddings().weight or type(head) is not nn.Linear or head.bias is not None:
        raise ValueError("`stream_head` needs a head of its own, in 16 or 32 bit and without a bias; remove the key.")
    streamed = StreamedHead(head.in_features, head.out_features, bias=False, device="meta")
    streamed.weight = nn.Parameter(head.weight.detach().to("cpu"), requires_grad=head.weight.requires_grad)
    pin([streamed.weight], model.device)
    model.set_output_embeddings(streamed.train(head.training))
    return int(streamed.weight.numel() * streamed.weight.element_size())


def _compute_dtype(hidden: torch.Tensor, weight: torch.Tensor) -> torch.dtype:
    kind = hidden.device.type
    dtype: torch.dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    return dtype


class _Logits(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, head: StreamedHead) -> torch.Tensor:
        ctx.head = head
        logits = hidden.new_empty(*hidden.shape[:-1], head.out_features)
        for start, weight in head.pieces(hidden.device):
            logits[..., start : start + len(weight)] = nn.functional.linear(hidden, weight.to(hidden.dtype))
        return logits

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        found = gradient.new_zeros(*gradient.shape[:-1], ctx.head.in_features, dtype=torch.float32)
        for start, weight in ctx.head.pieces(gradient.device):
            found += gradient[..., start : start + len(weight)] @ weight.to(gradient.dtype)
        return found.to(gradient.dtype), None


class _Loss(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, targets: torch.Tensor, head: StreamedHead) -> torch.Tensor:
        dtype = _compute_dtype(hidden, head.weight)
        labels = [_Labels(*part) for part in _in_parts(hidden.to(dtype), targets, head)]
        for start, weight in head.pieces(hidden.device):
            for part in labels:
                part.see(start, weight.to(dtype), ctx.needs_input_grad[0])
        # A label's share of all, from its logit: precise where it is nearly everything.
        odds = torch.cat([part.others - part.own for part in labels])
        if ctx.needs_input_grad[0]:
            gradient = torch.cat([part.mean - part.row for part in labels]) * odds.sigmoid()[:, None]
            ctx.save_for_backward(gradient)
            ctx.dtype = hidden.dtype
        return nn.functional.softplus(odds).sum()

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * slope).to(ctx.dtype), None, None


def _in_parts(
    hidden: torch.Tensor, targets: torch.Tensor, head: StreamedHead
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Some labels at a time, so that their logits by a piece of the weight fit 32 MiB."""
    size = max(1, _LOGITS_AT_ONCE // min(head.rows_at_once, head.out_features))
    return zip(hidden.split(size), targets.split(size), strict=True)


class _Labels:
    """What is known of some labels from the pieces seen so far.

    Attributes:
        own: the label's logit; row: the label's row of the weight.
        others: logarithm of the summed exponentials of all other logits; mean: the mean of their rows by these.
    """

    def __init__(self, hidden: torch.Tensor, targets: torch.Tensor) -> None:
        self.hidden, self.targets = hidden, targets
        self.own = hidden.new_zeros(len(hidden), dtype=torch.float32)
        self.others = torch.full_like(self.own, -torch.inf)
        self.row = self.mean = hidden.new_zeros(hidden.shape, dtype=torch.float32)

    def see(self, start: int, weight: torch.Tensor, wants_gradient: bool) -> None:
        """Takes in rows of the weight, the first of which is number ``start``."""
        logits = nn.functional.linear(self.hidden, weight).float()
        here = (self.targets >= start) & (self.targets < start + len(weight))
        place = (self.targets - start).clamp(0, len(weight) - 1)
        self.own = torch.where(here, logits.gather(1, place[:, None]).squeeze(1), self.own)
        # Without the label's own: only where it is in this piece.
        logits.scatter_(1, place[:, None], logits.gather(1, place[:, None]).masked_fill(here[:, None], -torch.inf))
        sums = logits.logsumexp(1)
        together = torch.logaddexp(self.others, sums)
        if wants_gradient:
            shares = torch.exp(logits.sub_(sums[:, None])).nan_to_num_(nan=0.0).mul_(_FINE).to(weight.dtype)
            mean = (shares @ weight).float() / _FINE
            before, now = ((one - together).exp().nan_to_num(nan=0.0) for one in (self.others, sums))
            self.mean = self.mean * before[:, None] + mean * now[:, None]
            self.row = torch.where(here[:, None], weight[place].float(), self.row)
        self.others = together
