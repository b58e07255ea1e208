"""What surrounds a call must not change its numbers: autocast, inference mode, a default device of the user's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.utils import deterministic

NARROW = 256  # d_model
_AUTOCAST = ("cpu", "cuda", "mps", "xpu")


@contextmanager
def plain_torch() -> Iterator[None]:
    """Inside, torch computes in the dtypes of its operands, makes ordinary tensors, and makes them on the CPU unless it is told
    where. Whether gradients are recorded stays as it was. Of this thread alone; also a decorator, `@plain_torch()`.
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        for kind in _AUTOCAST:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


@contextmanager
def fitting_threads(d_model: int | None) -> Iterator[None]:
    """Inside, torch uses one CPU thread for a narrow model: its many operations are so short that threads mostly wait for each
    other, on a busy machine fifty times as long as the work takes. Others run as they were set.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if d_model is not None and d_model <= NARROW else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def reproducible(n_threads: int | None) -> Iterator[None]:
    """Deterministic algorithms and the asked-for number of CPU threads inside; what was set before, after.

    torch would also fill every array that is made without values, to make reads of them deterministic: nothing reads them.
    """
    before, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    if n_threads is not None:
        torch.set_num_threads(n_threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(strict, warn_only=warned)
        deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
