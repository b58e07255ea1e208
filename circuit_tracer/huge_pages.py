"""Large arrays of the host in pages of 2 MiB, where the system gives them.

A decoder's row is longer than a page of 4 KiB: who reads a few columns of all rows looks up a page for each, and on a virtual
machine that takes as long as the numbers do. Measured (one thread of a Xeon): 768 bytes of each row came at 3.3 GB/s and whole
arrays at 5.6, in large pages at 5.4 and 10.9. Linux gives them to who asks (`madvise` in
/sys/kernel/mm/transparent_hugepage/enabled, the usual setting), elsewhere arrays are as torch makes them.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

LEAST_BYTES = 4 * 2**20  # of an array: smaller ones would leave much of their last page unused


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """`torch.empty`, in large pages if they can be had."""
    mapped = _mapped(shape, dtype, device)
    return torch.empty(*shape, dtype=dtype, device=device) if mapped is None else mapped


def zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """`torch.zeros`, in large pages if they can be had."""
    mapped = _mapped(shape, dtype, device)  # zero, as all memory that comes from the system
    return torch.zeros(*shape, dtype=dtype, device=device) if mapped is None else mapped


def _mapped(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> Tensor | None:
    size = math.prod(shape) * dtype.itemsize
    if torch.device(device).type != "cpu" or size < LEAST_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:  # there is no room: torch says so in its own words
        return None
    with suppress(OSError):  # a system that was built without
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(*shape)
