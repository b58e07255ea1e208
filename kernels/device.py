"""Where operations run: CUDA tensors take the Triton kernels, all others torch, and nothing switches silently; and how tensors
of the host come to a device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from torch import Tensor

from circuit_tracer.errors import CompatibilityError

_TRITON = find_spec("triton") is not None  # does not import it: other platforms do without
_kernels_on = {"cuda"}  # device types
STAGED = 2**16  # bytes that CUDA takes out of ordinary memory before it returns


def on_gpu(tensor: Tensor) -> bool:
    """Whether the Triton kernels compute this; CompatibilityError if they should and triton is not installed."""
    if tensor.device.type not in _kernels_on:
        return False
    if not _TRITON:
        raise CompatibilityError(
            f"tensors on {tensor.device} are computed by Triton kernels, and the package triton is not installed: pip install "
            "triton (triton-windows on Windows), or run on the CPU."
        )
    return True


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, where it may lie already. What comes from the host is not waited for, and may be let go of there.

    Of ordinary memory CUDA takes a little at once; what is more would have the host wait until the device has done all before
    it, so that goes by way of pinned memory. MPS copies late, and what has been let go of by then is lost: the host waits.
    """
    if device.type == "cuda" and tensor.device.type == "cpu" and tensor.nbytes > STAGED:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=tensor.device.type == "cpu" and device.type != "mps")


@contextmanager
def kernels_on(device_type: str) -> Iterator[None]:
    """Inside, tensors there take the path of a GPU, in this process: "cpu" under Triton's interpreter, for tests; "meta", which
    computes nothing, to count what a GPU would do."""
    _kernels_on.add(device_type)
    try:
        yield
    finally:
        _kernels_on.discard(device_type)
