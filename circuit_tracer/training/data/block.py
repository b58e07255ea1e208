"""The rows that wait to be trained on: a block of fixed size, allocated once and refilled in place.

Letters: N rows (tokens) of the block, S source layers, D width.
"""

from __future__ import annotations

import copy
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from circuit_tracer.errors import InputError, ResourceError
from circuit_tracer.files import require_writable_folder

Place = Literal["device", "pinned", "disk"]


@dataclass(frozen=True)
class RowLayout:
    """What a row consists of: `names` tensors (S, D) of one dtype."""

    names: tuple[str, ...]  # x; y unless it is x; direction and derivative for Jacobian matching
    n_layers: int
    width: int
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return len(self.names) * self.n_layers * self.width * self.dtype.itemsize


class Block:
    """N rows beside the model (`device`), in the host's pinned memory, or in a file of `folder` that is mapped into memory
    and vanishes with the process. Contents are undefined until written.

    Raises ResourceError when memory or disk do not suffice, InputError for pinned memory without CUDA.
    """

    def __init__(
        self, layout: RowLayout, n_rows: int, device: torch.device, place: Place = "device", folder: Path | None = None
    ):
        if place == "pinned" and device.type != "cuda":
            raise InputError(
                f"data.buffer_place is 'pinned', memory that CUDA copies from, but the model is on {device}; use 'device'"
            )
        self.layout, self.n_rows, self.device, self.place = layout, n_rows, device, place
        self._staged = {name: _Staged() for name in layout.names}
        shape = (n_rows, layout.n_layers, layout.width)
        try:
            self._tensors = {name: self._allocate(shape, folder) for name in layout.names}
        except (OSError, RuntimeError) as error:  # torch's errors for memory are RuntimeErrors
            raise ResourceError(
                f"a buffer of {n_rows} tokens needs {n_rows * layout.row_bytes / 2**30:.1f} GiB ({place}): {error}. "
                "Lower data.buffer_tokens, use data.buffer_dtype bfloat16, or data.buffer_place disk."
            ) from error

    def head(self, n_rows: int) -> Block:
        """The first rows as a block of their own, in the same memory."""
        part = copy.copy(self)
        part.n_rows, part._tensors = n_rows, {name: tensor[:n_rows] for name, tensor in self._tensors.items()}
        return part

    def write(self, start: int, values: dict[str, list[Tensor]], index: Tensor) -> None:
        """Put rows `index` (m,) of S activations (n, D) under each name at `start`, rounded to the block's dtype."""
        end = start + len(index)
        for name, layers in values.items():
            target = self._tensors[name][start:end]
            if target.device == layers[0].device:
                for layer, activation in enumerate(layers):
                    target[:, layer] = activation.index_select(0, index)
            else:  # one copy of whole rows instead of S strided ones
                target.copy_(torch.stack([one.index_select(0, index).to(target.dtype) for one in layers], dim=1))

    def rows(self, name: str, start: int, end: int) -> Tensor:
        """A view of rows as they lie, to read or to fill."""
        return self._tensors[name][start:end]

    def put(self, index: Tensor, rows: Block) -> None:
        """Copy the first rows of another block to rows `index` (m,)."""
        for name, target in self._tensors.items():
            target.index_copy_(0, index.to(target.device), rows.rows(name, 0, len(index)).to(target.device))

    def take(self, name: str, index: Tensor) -> Tensor:
        """Rows `index` (m,) as float32 (m, S, D) on the model's device; a copy."""
        source = self._tensors[name]
        if self.place != "pinned":
            return source.index_select(0, index.to(source.device)).to(self.device, torch.float32)
        return self._staged[name].take(source, index.cpu(), self.device).float()

    def _allocate(self, shape: tuple[int, ...], folder: Path | None) -> Tensor:
        if self.place == "device":
            return torch.empty(shape, dtype=self.layout.dtype, device=self.device)
        if self.place == "pinned":
            return torch.empty(shape, dtype=self.layout.dtype, pin_memory=True)
        return _mapped(shape, self.layout.dtype, require_writable_folder(folder or Path(tempfile.gettempdir())))


class _Staged:
    """Rows on their way from pinned memory to a device: two buffers by turns, each used again once it has been copied."""

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self._copied: list[torch.cuda.Event] = []

    def take(self, source: Tensor, index: Tensor, device: torch.device) -> Tensor:
        """Rows `index` (m,) of pinned memory, on the device."""
        if not self._buffers or len(self._buffers[0]) < len(index):
            shape = (len(index), *source.shape[1:])
            self._buffers = [torch.empty(shape, dtype=source.dtype, pin_memory=True) for _ in range(2)]
            self._copied = [torch.cuda.Event() for _ in range(2)]
        self._buffers.reverse()
        self._copied.reverse()
        staged = self._buffers[0][: len(index)]
        self._copied[0].synchronize()
        torch.index_select(source, 0, index, out=staged)
        found = staged.to(device, non_blocking=True)
        self._copied[0].record()
        return found


def _mapped(shape: tuple[int, ...], dtype: torch.dtype, folder: Path) -> Tensor:
    """A tensor in a file without a name. Its room is reserved first: a write to a full disk would kill the process."""
    n_elements = torch.Size(shape).numel()
    handle, name = tempfile.mkstemp(prefix=".buffer-", dir=folder)
    try:
        _reserve(handle, n_elements * dtype.itemsize)
        return torch.from_file(name, shared=True, size=n_elements, dtype=dtype).view(shape)
    finally:
        os.close(handle)
        Path(name).unlink()


def _reserve(handle: int, n_bytes: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, n_bytes)
        return
    zeros = bytes(2**20)
    for start in range(0, n_bytes, len(zeros)):
        os.write(handle, zeros[: n_bytes - start])
