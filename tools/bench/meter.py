"""How the benchmark reads memory: of this process on Linux, or of torch's allocator on a card. Bytes."""

import ctypes
import gc
from contextlib import suppress
from pathlib import Path

import torch


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


class ProcessMeter:
    """Reads resident memory of this process; its peak can be reset.

    glibc keeps freed blocks of up to 32 MiB in the hope that the next one fits. That is fast, but the peak is then
    what its heap happened to hold. So memory is measured while larger blocks leave with their tensors, and time after.
    """

    def be_exact(self) -> None:
        """Let freed tensors leave the process at once; to be called before there are any."""
        _call_glibc("mallopt", _M_MMAP_THRESHOLD, 128 * 2**10)  # where glibc itself begins

    def be_fast(self) -> None:
        """Let glibc keep freed blocks as it does by itself, a few steps into a run."""
        _call_glibc("mallopt", _M_MMAP_THRESHOLD, 32 * 2**20)
        _call_glibc("mallopt", _M_TRIM_THRESHOLD, 64 * 2**20)

    def settle(self) -> None:
        """Give back what is free."""
        gc.collect()
        _call_glibc("malloc_trim", 0)

    def now(self) -> int:
        return _status("VmRSS")

    def reset_peak(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        return _status("VmHWM")


class CudaMeter:
    """Reads what torch's allocator has handed out on the current card, to the byte."""

    def be_exact(self) -> None:
        """It is, and fast as well."""

    be_fast = be_exact

    def settle(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()

    def now(self) -> int:
        return torch.cuda.memory_allocated()

    def reset_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated()


def _call_glibc(name: str, *arguments: int) -> None:
    with suppress(OSError, AttributeError):  # another C library: it counts what it keeps
        getattr(ctypes.CDLL("libc.so.6"), name)(*arguments)


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) * 1024
