"""How the Triton kernels are launched: configurations, and the precision of matrix products.

Imported by `triton.py` files only, when CUDA tensors come: triton is not installed everywhere. Under ``TRITON_INTERPRET=1``,
set before the import, kernels run on CPU tensors: slowly, for tests.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor

from circuit_tracer.kernels.tuning import Tuned

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on")

# a * b + c in one rounding, whatever the default of a Triton version is.
FUSED = {"enable_fp_fusion": True}


class Kernel(Protocol):
    """What Triton makes of a function. Its arguments are Triton's, which no type checker knows."""

    def __getitem__(self, grid: tuple[int, ...] | Callable[[dict[str, int]], tuple[int, ...]]) -> Callable[..., None]:
        """The launch on a grid of programs."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        """The call from another kernel."""


def kernel(function: Callable[..., Any]) -> Kernel:
    """Decorator: `triton.jit`, typed."""
    made: Kernel = triton.jit(function)
    return made


def unspecialized(*numbers: str) -> Callable[[Callable[..., Any]], Kernel]:
    """Decorator: a `kernel` that is not compiled anew when these arguments, numbers, have other values."""
    decorator: Callable[[Callable[..., Any]], Kernel] = triton.jit(do_not_specialize=list(numbers))
    return decorator


def tuned(
    configs: list[triton.Config],
    interpreted: triton.Config,
    key: Sequence[str],
    sizes: Sequence[str] = (),
    adds_to: Sequence[str] = (),
    counts_in: Sequence[str] = (),
) -> Callable[[Kernel], Kernel]:
    """Decorator: one of ``configs``, chosen as `kernels/tuning.py` says.

    ``interpreted``: the one for the interpreter; small, so that small tests have several blocks and ragged ones.
    """
    configs = [interpreted] if INTERPRETED else configs
    for config in configs:
        config.kwargs |= FUSED
    return lambda fn: Tuned(fn, configs, key, sizes, adds_to, counts_in)


def accumulator(*dtypes: torch.dtype) -> tl.dtype:
    """The dtype in which products of these are summed."""
    return tl.float64 if torch.float64 in dtypes else tl.float32


def product(left: torch.dtype, right: torch.dtype) -> str:
    """How `dot` multiplies these without losing bits of either.

    native: both of one half precision; tensor cores multiply them exactly.
    split: float32 by bfloat16; the left is cut into three bfloat16 of 8 bits each, three exact native products.
    tf32x3: the rest, in float32; each side is cut into two TF32 of 11 bits, three products, relative error about 2^-21.
    float64: if either is.
    """
    if torch.float64 in (left, right):
        return "float64"
    if left is right and left.itemsize == 2:
        return "native"
    return "split" if (left, right) == (torch.float32, torch.bfloat16) else "tf32x3"


# By product: elements of the summed axis in hand at once, as many as registers hold.
BLOCK_SUMMED = dict.fromkeys(("native", "split", "tf32x3", "float64"), 256)
if not INTERPRETED:
    BLOCK_SUMMED = {"native": 64, "split": 32, "tf32x3": 32, "float64": 16}

# The interpreter multiplies the bit patterns of bfloat16 as integers: it gets float32.
UPCAST = tl.constexpr(INTERPRETED)


@kernel
def cut(number: tl.tensor) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """float32 as a sum of three bfloat16, exactly; their sizes are 1, 2^-8 and 2^-16 of its own."""
    high = number.to(tl.bfloat16)
    below = number - high.to(tl.float32)
    middle = below.to(tl.bfloat16)
    low = (below - middle.to(tl.float32)).to(tl.bfloat16)
    return high, middle, low


@kernel
def dot(
    left: tl.tensor, right: tl.tensor, total: tl.tensor, rest: tl.tensor, PRODUCT: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """total + rest + left @ right as such a pair, multiplied as `product` says; `settled` makes one of it after the last."""
    if PRODUCT == "native":
        if UPCAST:
            left, right = left.to(tl.float32), right.to(tl.float32)
        total = tl.dot(left, right, total)
    if PRODUCT == "split":
        high, middle, low = cut(left)
        if UPCAST:
            high, middle, low = high.to(tl.float32), middle.to(tl.float32), low.to(tl.float32)
            right = right.to(tl.float32)
        total = tl.dot(high, right, total)
        rest = tl.dot(middle, right, tl.dot(low, right, rest))
    if PRODUCT == "tf32x3":
        total = tl.dot(left.to(tl.float32), right.to(tl.float32), total, input_precision="tf32x3")
    if PRODUCT == "float64":
        left, right = left.to(tl.float64), right.to(tl.float64)
        total = tl.dot(left, right, total, input_precision="ieee", out_dtype=tl.float64)
    return total, rest


@kernel
def settled(total: tl.tensor, rest: tl.tensor, PRODUCT: tl.constexpr) -> tl.tensor:
    """The sum that the pair of `dot` stands for."""
    if PRODUCT == "split":
        # an infinite factor leaves infinity or NaN in the total, where it belongs, and infinity less infinity in the rest
        total = tl.where(rest - rest == 0, total + rest, total)
    return total


def require_rows(**tensors: Tensor) -> None:
    """ValueError unless the last axis of each is contiguous."""
    for name, tensor in tensors.items():
        if tensor.numel() and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise ValueError(
                f"{name} has strides {tensor.stride()}; its last axis must be contiguous (stride 1). Call .contiguous() on it."
            )
