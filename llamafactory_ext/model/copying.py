"""Copies of weights from CPU memory to a device, on their way while the device computes."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class Copy:
    """Tensors on the device, perhaps on their way still."""

    tensors: list[torch.Tensor]
    arrived: Any = None

    def wait(self) -> list[torch.Tensor]:
        """Returns the tensors; what the device is given to do from now on finds them there."""
        if self.arrived is not None:
            torch.cuda.current_stream(self.tensors[0].device).wait_event(self.arrived)
        return self.tensors


class Copier:
    """Copies to one device; on a card beside what it computes, if the memory they come from is pinned."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def start(self, tensors: Sequence[torch.Tensor], rooms: Sequence[torch.Tensor] | None = None) -> Copy:
        """Begins to copy; on a CPU it is done when this returns.

        Arguments:
            rooms: tensors on the device to copy into; what the device was given to do with them is done before.
        """
        if rooms is None:
            # The main stream's memory, so that it is used again in that one's order.
            rooms = [torch.empty_like(tensor, device=self.device) for tensor in tensors]
        if self._stream is None:
            return Copy([room.copy_(tensor) for tensor, room in zip(tensors, rooms, strict=True)])
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            for tensor, room in zip(tensors, rooms, strict=True):
                room.copy_(tensor, non_blocking=True)
                room.record_stream(self._stream)
        return Copy(list(rooms), self._stream.record_event())

    def one_ahead(self, tensors: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yields copies in turn, none of them longer than the first; the next one asked for takes its room.

        The next one is on its way while one is worked with.
        """
        rooms = [torch.empty_like(tensor, device=self.device) for tensor in tensors[:2]]
        coming = self.start(tensors[:1], rooms[:1])
        for number in range(len(tensors)):
            now, following = coming, tensors[number + 1 : number + 2]
            if following:
                coming = self.start(following, [rooms[(number + 1) % 2][: len(following[0])]])
            yield now.wait()[0]


def pin(tensors: Iterable[torch.Tensor], device: torch.device) -> bool:
    """Pins memory where it lies, so that copies from it run beside the card's work; True where all of it is.

    ``Tensor.pin_memory`` would copy it into blocks of a power of two. Memory that can't be pinned (a limit of the
    system) is copied from all the same, but the card waits.
    """
    if device.type != "cuda":
        return False
    runtime = torch.cuda.cudart()
    results = [int(runtime.cudaHostRegister(one.data_ptr(), one.numel() * one.element_size(), 0)) for one in tensors]
    return not any(results)
