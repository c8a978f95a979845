"""The next-token loss, taken where a label is kept and in pieces.

Logits are the largest thing in a step: over a vocabulary of 150,000 one label takes 0.6 MiB in float32, several times
over. So the head never runs for a prompt, and for an answer only on as many labels as fit 256 MiB at a time (half of
that in half precision). Their gradient is written where they lay, a few rows at a time: what is float32 in between
fits a processor's cache. A frozen head has the gradient of a piece taken at once, while its logits are there, and what
is kept is that gradient, ``[labels, hidden_size]``: nothing is computed twice. Where the head is trained, and with
ZeRO-3, each piece's logits but the last one's are computed again when their gradient is due: the head's matrix product
runs a third time. The result differs from the whole computation by float rounding only.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from transformers.integrations import is_deepspeed_zero3_enabled


_LOGITS_AT_ONCE = 2**26  # elements, 128 MiB in float16: with ChatTS-14B a layer's backward pass takes as much
_ROWS_AT_ONCE = 2**20  # elements, 4 MiB in float32
_FEWEST = 16  # labels: below, a GPU reads the head's weights more often than it is worth
_FINE_BITS = 8  # small probabilities stay above zero in float16, and 256 times a mean of weights within its range


def labels_at_once(vocab_size: int) -> int:
    """Returns the number of labels whose logits are computed together."""
    return max(_FEWEST, _LOGITS_AT_ONCE // vocab_size)


def summed_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns the summed cross entropy in float32, as torch's over ``logits.float()``.

    Arguments:
        logits: ``[labels, vocabulary]``; their gradient is written into them, so that nobody else may want them.
        targets: ``[labels]``, all of them kept.
    """
    loss: torch.Tensor = _CrossEntropy.apply(logits, targets)
    return loss


def summed_in_pieces(
    piece_loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    hidden: torch.Tensor,
    targets: torch.Tensor,
    vocab_size: int,
    head_is_trained: bool,
    divisor: float = 1.0,
) -> torch.Tensor:
    """Returns the sum of ``piece_loss(hidden, targets)`` over pieces of the labels.

    Arguments:
        piece_loss: head and loss of some labels, summed or divided by a number that is the same for all pieces.
        hidden: ``[labels, hidden_size]``; it may have no rows, and the loss is then zero with a gradient of zero.
        targets: ``[labels]``.
        head_is_trained: ZeRO-3 then takes all labels at once, since it reduces a weight's gradient only once.
        divisor: that number; only float16's range depends on it.
    """
    zero3 = is_deepspeed_zero3_enabled()
    size = max(1, len(targets)) if zero3 and head_is_trained else labels_at_once(vocab_size)
    # Equal ones: a piece of a few labels would read the head's whole weight, too.
    count = max(1, -(-len(targets) // size))
    if not (zero3 or head_is_trained) and torch.is_grad_enabled() and hidden.requires_grad:
        scale = 2.0 ** (_FINE_BITS + math.ceil(math.log2(max(1.0, divisor))))
        loss: torch.Tensor = _Summed.apply(hidden, targets, piece_loss, count, scale)
        return loss
    pieces = list(zip(hidden.tensor_split(count), targets.tensor_split(count), strict=True))
    # ZeRO-3 gathers the head's weights at each call, which all processes must make equally often.
    pieces = [(hidden[:0], targets[:0])] * (_most_of_all_processes(len(pieces), hidden.device) - len(pieces)) + pieces
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    for piece in pieces[:-1]:
        if torch.is_grad_enabled():
            # ZeRO-3 empties weights between the passes, which the other kind of checkpoint takes for a change.
            kept = checkpoint(piece_loss, *piece, use_reentrant=zero3, preserve_rng_state=False)
        else:
            kept = piece_loss(*piece)
        total = total + kept
    return total + piece_loss(*pieces[-1])  # its backward comes first: nothing would be saved


def _most_of_all_processes(count: int, device: torch.device) -> int:
    if not (is_deepspeed_zero3_enabled() and torch.distributed.is_initialized()):
        return count
    most = torch.tensor(count, device=device)
    torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
    return int(most)


class _Summed(torch.autograd.Function):  # type: ignore[misc]
    """The sum over pieces, whose gradients are taken along with them."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, targets: torch.Tensor, piece_loss: Any, count: int, scale: float
    ) -> Any:
        total, slopes = torch.zeros((), dtype=torch.float32, device=hidden.device), []
        for piece in zip(hidden.detach().tensor_split(count), targets.tensor_split(count), strict=True):
            loss, slope = _loss_and_slope(piece_loss, *piece, scale)
            total += loss
            slopes.append(slope)
        ctx.scale = scale
        ctx.save_for_backward(torch.cat(slopes))
        return total

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        (scaled,) = ctx.saved_tensors
        return (scaled.float() * (slope / ctx.scale)).to(scaled.dtype), None, None, None, None


def _loss_and_slope(
    piece_loss: Any, hidden: torch.Tensor, targets: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns a piece's loss and ``scale`` times its gradient, in a function of its own: its logits end with it."""
    with torch.enable_grad():
        hidden.requires_grad_()
        loss = piece_loss(hidden, targets)
    with torch.autocast(hidden.device.type, enabled=False):
        loss.backward(torch.full_like(loss, scale))
    return loss.detach(), hidden.grad


class _CrossEntropy(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(logits, targets)
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        for rows, own in _few_rows(logits, targets):
            total -= torch.log_softmax(rows.float(), dim=-1).gather(1, own).sum()
        return total

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits, targets = ctx.saved_tensors
        for rows, own in _few_rows(logits, targets):
            gradient = torch.softmax(rows.float(), dim=-1)
            gradient.scatter_add_(1, own, gradient.new_full(own.shape, -1))
            rows.copy_(gradient.mul_(slope))
        return logits, None


def _few_rows(logits: torch.Tensor, targets: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    count = max(1, _ROWS_AT_ONCE // logits.shape[-1])
    return zip(logits.split(count), targets.unsqueeze(-1).split(count), strict=True)
