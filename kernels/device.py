"""Which path an operation takes: CUDA tensors the Triton kernels, all others torch. Nothing switches silently."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from torch import Tensor

from circuit_tracer.errors import CompatibilityError

_TRITON = find_spec("triton") is not None  # does not import it: other platforms do without
_kernels_on = {"cuda"}  # device types


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


@contextmanager
def kernels_on(device_type: str) -> Iterator[None]:
    """Inside, tensors there take the path of a GPU, in this process: "cpu" under Triton's interpreter, for tests; "meta", which
    computes nothing, to count what a GPU would do."""
    _kernels_on.add(device_type)
    try:
        yield
    finally:
        _kernels_on.discard(device_type)
