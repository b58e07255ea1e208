"""What this machine can do, measured in well under a second: products, copies, and what memory and disk are free."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

PROBE_SECONDS = 0.12  # of each probe, after a first call that is not counted
PROBE_WIDTH = {"cuda": 8192, "cpu": 1024, "mps": 2048}
PROBE_COPY_BYTES = {"cuda": 2**30, "cpu": 2**28, "mps": 2**28}  # larger than the caches: 2^26 is not


@dataclass(frozen=True)
class Machine:
    """Rates as measured, and what is free to one process."""

    device: str
    flops: dict[str, float]  # FLOP/s of a matrix product, by number format
    bytes_per_second: float  # read and written by a copy, counted together
    device_free: int  # bytes; on a CPU the host's
    host_free: int
    disk_free: int  # below the run's folder
    cache_free: int = 0  # below the folder of cached activations, if there is one

    @property
    def on_host(self) -> bool:
        """Whether device and host share one memory."""
        return self.device.startswith(("cpu", "mps"))


def measure(
    device: torch.device,
    formats: Iterable[str],
    out: Path,
    threads: int | None = None,
    processes: int = 1,
    cache: Path | None = None,
) -> Machine:
    """Probe a device for the number formats named. ``processes`` of this machine share the host's memory; what a run left in
    its folder ``out`` counts as free, as the run replaces it, and so does what ``cache`` holds, which it uses."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        flops = {name: _product_rate(device, getattr(torch, name)) for name in sorted(set(formats))}
        rate = _copy_rate(device)
    finally:
        torch.set_num_threads(before)
    host = psutil.virtual_memory().available // processes
    return Machine(
        device=str(device),
        flops=flops,
        bytes_per_second=rate,
        device_free=torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else host,
        host_free=host,
        disk_free=_free_below(out),
        cache_free=0 if cache is None else _free_below(cache),
    )


def local_processes() -> int:
    """Processes of this run on this machine, as torchrun says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _free_below(folder: Path) -> int:
    return shutil.disk_usage(_existing(folder)).free + _size(folder)


def _existing(path: Path) -> Path:
    path = path.absolute()
    return path if path.exists() else _existing(path.parent)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


def _product_rate(device: torch.device, dtype: torch.dtype) -> float:
    width = PROBE_WIDTH.get(device.type, 1024)
    left, right = (torch.ones(width, width, dtype=dtype, device=device) for _ in range(2))
    return 2 * width**3 / _seconds(lambda: left @ right, device)


def _copy_rate(device: torch.device) -> float:
    source = torch.ones(PROBE_COPY_BYTES.get(device.type, 2**26) // 4, device=device)
    target = torch.empty_like(source)
    return 2 * 4 * source.numel() / _seconds(lambda: target.copy_(source), device)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Time of one call, the fastest of as many as fit the probe's time."""
    times: list[float] = []
    work()
    _wait(device)
    while sum(times) < PROBE_SECONDS:
        start = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - start)
    return min(times)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()
