"""Which path an operation takes: CUDA tensors the Triton kernels, all others torch. Nothing switches silently."""

from __future__ import annotations

from importlib.util import find_spec

from torch import Tensor

from circuit_tracer.errors import CompatibilityError

_TRITON = find_spec("triton") is not None  # does not import it: other platforms do without


def on_gpu(tensor: Tensor) -> bool:
    """Whether the Triton kernels compute this; CompatibilityError if they should and triton is not installed."""
    if tensor.device.type != "cuda":
        return False
    if not _TRITON:
        raise CompatibilityError(
            f"tensors on {tensor.device} are computed by Triton kernels, and the package triton is not installed: pip install "
            "triton (triton-windows on Windows), or run on the CPU."
        )
    return True
