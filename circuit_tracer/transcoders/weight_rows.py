"""Rows of a weight matrix by index, wherever the matrix lives: in memory, or mapped from a file and read on demand.

A decoder of a cross-layer transcoder may be far larger than memory while a prompt needs a few hundred of its rows.
Letters: F features a layer, T target layers (slots), D d_model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from circuit_tracer.files.checksums import verified, verify_rows
from circuit_tracer.files.tensors import release_pages
from circuit_tracer.kernels.device import sent


class WeightRows(Protocol):
    """A tensor (F, D) or (F, T, D) of which rows are wanted."""

    @property
    def shape(self) -> torch.Size: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    def rows(self, index: Tensor, slot: int | None = None) -> Tensor:
        """Copy of rows ``index`` (n,): (n, D) or (n, T, D); with ``slot``, (n, D) at that slot of T only."""

    def block(self, start: int, stop: int) -> Tensor:
        """Rows start ... stop - 1; may share memory with the store: do not write."""

    def whole(self) -> Tensor:
        """Everything, as a tensor that may be written unless the store is in memory already."""


class MemoryRows:
    """Rows of a tensor in memory (of any device)."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor.detach()

    @property
    def shape(self) -> torch.Size:
        return self._tensor.shape

    @property
    def dtype(self) -> torch.dtype:
        return self._tensor.dtype

    @property
    def device(self) -> torch.device:
        return self._tensor.device

    def rows(self, index: Tensor, slot: int | None = None) -> Tensor:
        view = self._tensor if slot is None else self._tensor[:, slot]
        return view.index_select(0, sent(index, view.device))

    def block(self, start: int, stop: int) -> Tensor:
        return self._tensor[start:stop]

    def whole(self) -> Tensor:
        return self._tensor


class MappedRows:
    """Rows of a tensor mapped from a file, handed out on ``device`` in ``dtype`` (default: as stored).

    Any view of a mapped tensor will do (transposed, or sliced along T): only the pages touched are read. Rows asked
    for twice are read once, in ascending order, which is what a disk likes, and their pages are let go of: a process whose rows
    are from all over a dictionary would soon hold all of it. Of a file with checksums, what is read for the first time is
    compared with them.
    """

    def __init__(self, mapped: Tensor, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> None:
        self._mapped = mapped
        self._example = torch.empty(0, device=device, dtype=dtype or mapped.dtype)

    @property
    def mapped(self) -> Tensor:
        """The tensor as the file has it."""
        return self._mapped

    @property
    def shape(self) -> torch.Size:
        return self._mapped.shape

    @property
    def dtype(self) -> torch.dtype:
        return self._example.dtype

    @property
    def device(self) -> torch.device:
        return self._example.device

    def apply(self, function: Callable[[Tensor], Tensor]) -> None:
        """Follow a module's `.to`, `.cuda`, `.double`, ...: later rows come as ``function`` would return them."""
        self._example = function(self._example)

    def rows(self, index: Tensor, slot: int | None = None) -> Tensor:
        view = self._mapped if slot is None else self._mapped[:, slot]
        unique, place = torch.unique(index.cpu(), return_inverse=True)
        verify_rows(view, unique)
        rows = sent(view.index_select(0, unique).to(self.dtype), self.device)
        release_pages(view)
        if torch.equal(place, torch.arange(unique.numel())):
            return rows
        return rows.index_select(0, sent(place, rows.device))

    def by_slot(self, index: Tensor) -> Iterator[Tensor]:
        """Rows ``index`` (n,), best ascending, (n, D) of one slot of T after the other; pages stay until the last."""
        index = index.cpu()
        verify_rows(self._mapped, index.unique())
        for view in self._mapped.unbind(1):
            yield view.index_select(0, index).to(self._example)
        release_pages(self._mapped)

    def block(self, start: int, stop: int) -> Tensor:
        return verified(self._mapped[start:stop]).to(self._example)

    def whole(self) -> Tensor:
        # A copy: the mapping is read-only memory, and writing to it would end the process.
        return verified(self._mapped).to(self._example, copy=True).contiguous()


def by_slot(store: WeightRows, index: Tensor) -> Iterator[Tensor]:
    """Rows ``index`` (n,), best ascending, of a tensor (F, T, D): (n, D) of one slot of T after the other.

    On a CPU no more of them exist at once, so that they are used while they lie in its cache.
    """
    if isinstance(store, MappedRows) and store.device.type == "cpu":
        yield from store.by_slot(index)
    elif isinstance(store, MemoryRows):
        index = sent(index, store.device)
        yield from (store.rows(index, slot) for slot in range(store.shape[1]))
    else:
        unique, inverse = torch.unique(index, return_inverse=True)
        rows, inverse = store.rows(unique), sent(inverse, store.device)
        yield from (rows[:, slot].index_select(0, inverse) for slot in range(store.shape[1]))
