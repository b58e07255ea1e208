"""Memory: what a process holds, what is free, and what running out of it looks like."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil
import torch

Result = TypeVar("Result")
Way = TypeVar("Way")

# cgroups of version 2 and 1: what a container may hold, what it holds, and which of that are cached pages of files
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", r"^(?:in)?active_file (\d+)$"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        r"^total_(?:in)?active_file (\d+)$",
    ),
)
_NO_MEMORY = "can't allocate memory|not enough memory|out of memory|ALLOC_FAILED"


def held_bytes(device: torch.device) -> int:
    """What this process holds already where a trace would run: libraries, model, transcoders.

    On a CPU its resident set, which counts the pages of weights that are mapped from their file; on CUDA what torch allocated.
    """
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def free_bytes(device: torch.device) -> int:
    """What this process can have beyond that: of the machine, or of the container that it runs in.

    Memory that torch keeps for reuse on CUDA is free to it.
    """
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + int(reserved)
    return int(min(psutil.virtual_memory().available, _free_in_container()))


def _free_in_container() -> float:
    """What the limit of a container leaves, pages of files counted as free; infinity where there is no limit."""
    for limit, used, cached in _CGROUPS:
        try:
            pages = re.findall(cached, Path(used).with_name("memory.stat").read_text(), re.MULTILINE)
            return max(0, int(Path(limit).read_text()) - int(Path(used).read_text()) + sum(map(int, pages)))
        except (OSError, ValueError):  # no such cgroup, or "max"
            continue
    return math.inf


def retrying(
    attempt: Callable[[Way], Result], way: Way, smaller: Callable[[Way, Exception], Way | None], device: torch.device
) -> tuple[Result, Way]:
    """attempt(way); whenever an allocation fails, once more in a smaller way. Also returns the way that worked.

    smaller(way, error): what to try next; None when nothing is left to give up, and the error passes through.
    """
    while True:
        try:
            return attempt(way), way
        except (MemoryError, RuntimeError) as error:
            less = smaller(way, error) if is_out_of_memory(error) else None
            if less is None:
                raise
        way = less
        release_cached(device)  # here the error is gone, and with it the frames that held what is to be freed


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: on the host, where torch raises a plain RuntimeError, or on a device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(re.search(_NO_MEMORY, str(error)))


def release_cached(device: torch.device) -> None:
    """Give back what torch keeps for reuse, after an allocation failed."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
