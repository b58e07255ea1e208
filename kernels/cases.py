"""What an operation says of itself to the tests that all operations must pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Dtypes = tuple[torch.dtype, ...]
Calls = Mapping[str, tuple[Any, ...]]  # function -> arguments


@dataclass(frozen=True)
class Cases:
    """Arguments of one operation, the package `circuit_tracer.kernels.<name>`.

    calls(dtypes, *shape): for each function of that name in the package and in its `triton.py`, arguments on the CPU. A name
    that ends with an underscore updates its first argument in place and returns nothing; in `naive.py` it has no underscore
    and returns a new tensor.
    shapes: small and odd, for comparison.
    torch, triton: by dtypes, the relative RMS error that is allowed on a CPU and of the kernel, against the specification in
    float64; integers must be equal.
    compiled: dtypes and shapes in which the kernels are compiled for GPUs, in all their configurations.
    """

    name: str
    calls: Callable[..., Calls]
    shapes: Sequence[tuple[Any, ...]]
    torch: Mapping[Dtypes, float]
    triton: Mapping[Dtypes, float]
    compiled: Sequence[tuple[Dtypes, tuple[Any, ...]]]
