"""Safetensors files that notice damage, also when they are mapped and only some rows are ever read.

Two keys of the file's metadata: `crc32_16k` holds a CRC-32 of every 16 KiB of every tensor (tensors by name, base64 of
little-endian uint32), `header_digest` a SHA-256 of names, dtypes, shapes and all other metadata. A file has both or neither, so
that damage to one name leaves the other behind. The header is checked when a file is opened; a block of a tensor when it is
first read, once for each opened file. `file_name` is what a file of a numbered series was called, so that two that were
swapped are noticed. Other readers of safetensors see three more strings of metadata.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuit_tracer.errors import FileFormatError

BLOCK = 2**14  # bytes that are checked together: 0.02 % more file, and little is read for a row
CHECKSUMS, HEADER_DIGEST, FILE_NAME = "crc32_16k", "header_digest", "file_name"
_NUMBER = re.compile(r"\d+")
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ATTRIBUTE = "_circuit_tracer_blocks"  # of the storage of a mapped tensor, which all views of it share

Described = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, name: str | None = None
) -> None:
    """Write a safetensors file with checksums; equal tensors and metadata give equal bytes (the library orders metadata by
    chance). name: what the file will be called, if `path` is a temporary name. Raises OSError when the disk is full.
    """
    plain = {key: tensors[key].detach().cpu().contiguous() for key in sorted(tensors)}
    data = {key: _bytes_of(tensor) for key, tensor in plain.items()}
    described = {key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in plain.items()}
    checksums = b"".join(_checksums(each).tobytes() for each in data.values())
    kept = {**(metadata or {}), FILE_NAME: name or path.name, CHECKSUMS: base64.b64encode(checksums).decode()}
    header: dict[str, Any] = {"__metadata__": {**kept, HEADER_DIGEST: _header_digest(described, kept)}}
    # the largest numbers first, so that all are aligned
    order = sorted(plain, key=lambda key: (-plain[key].element_size(), key))
    end = 0
    for key in order:
        start, end = end, end + len(data[key])
        dtype, shape = described[key]
        header[key] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key in order:
            file.write(data[key])


def opened(path: Path, described: Described, metadata: Mapping[str, str]) -> dict[str, Blocks]:
    """Checksums of every tensor of a file; {} for a file without. Raises FileFormatError for a damaged header."""
    present = [key for key in (CHECKSUMS, HEADER_DIGEST) if key in metadata]
    if not present:
        return {}
    kept = {key: value for key, value in metadata.items() if key != HEADER_DIGEST}
    if len(present) == 1 or metadata[HEADER_DIGEST] != _header_digest(described, kept):
        raise _damaged(path, "its header is not what was written")
    _require_own_name(path, metadata.get(FILE_NAME, path.name))
    try:
        packed = np.frombuffer(base64.b64decode(metadata[CHECKSUMS], validate=True), "<u4")
    except (binascii.Error, ValueError) as error:
        raise _damaged(path, f"its checksums cannot be read ({error})") from error
    sizes = {name: _n_blocks(described[name]) for name in sorted(described)}
    if sum(sizes.values()) != len(packed):
        raise _damaged(path, f"it has {len(packed)} checksums for {sum(sizes.values())} blocks")
    parts = np.split(packed, np.cumsum(list(sizes.values()))[:-1]) if sizes else []
    return {name: Blocks(path, name, part) for name, part in zip(sizes, parts, strict=True)}


def plain_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """What was given to `write_tensors`."""
    return {key: value for key, value in metadata.items() if key not in (CHECKSUMS, HEADER_DIGEST, FILE_NAME)}


class Blocks:
    """The blocks of one tensor in a file: their checksums, and which were found right. Any thread may ask."""

    def __init__(self, path: Path, name: str, checksums: np.ndarray) -> None:
        self._path, self._name, self._checksums = path, name, checksums
        self._right = np.zeros(len(checksums), bool)
        self._whole = len(checksums) == 0

    def check(self, data: memoryview, blocks: np.ndarray | slice) -> None:
        """Compare ``blocks`` of the tensor's bytes ``data``; FileFormatError for one that is not what was written."""
        if self._whole:
            return
        unread = np.arange(len(self._right))[blocks][~self._right[blocks]]
        for block, expected in zip(unread.tolist(), self._checksums[unread].tolist(), strict=True):
            start = block * BLOCK
            if zlib.crc32(data[start : start + BLOCK]) != expected:
                end = min(start + BLOCK, len(data))
                raise _damaged(self._path, f"bytes {start} to {end} of {self._name!r} are not what was written")
        self._right[unread] = True
        self._whole = bool(self._right.all())


class _Mapped:
    """Blocks of a tensor together with its mapped bytes."""

    def __init__(self, blocks: Blocks, data: memoryview) -> None:
        self._blocks, self._data = blocks, data

    def check(self, blocks: np.ndarray | slice) -> None:
        self._blocks.check(self._data, blocks)


def attach(mapped: Tensor, blocks: Blocks, data: memoryview) -> None:
    """Let a mapped tensor, and every view of it, know the checksums of its bytes ``data``."""
    setattr(mapped.untyped_storage(), _ATTRIBUTE, _Mapped(blocks, data))


def verified(view: Tensor) -> Tensor:
    """The tensor, its bytes compared with the checksums of its file, if it is a view of a file that has them.

    Raises FileFormatError for damaged bytes.
    """
    mapped = _mapped(view)
    if mapped is not None and view.numel():
        size = view.element_size()
        start = view.storage_offset() * size
        mapped.check(slice(start // BLOCK, (start + _extent(view) - 1) // BLOCK + 1))
    return view


def verify_rows(view: Tensor, index: Tensor) -> None:
    """`verified` for the rows ``index`` (n,) of a view: only the blocks that they lie in are read."""
    mapped = _mapped(view)
    if mapped is None or not view.numel() or not len(index):
        return
    size = view.element_size()
    start = (view.storage_offset() + index.numpy() * view.stride(0)) * size
    first, last = start // BLOCK, (start + _extent(view[0]) - 1) // BLOCK
    steps = np.arange(int((last - first).max()) + 1)
    blocks = (first[:, None] + steps)[first[:, None] + steps <= last[:, None]]
    mapped.check(np.unique(blocks))


def _require_own_name(path: Path, written: str) -> None:
    """A file may be renamed, but not to another number of its series."""
    if written != path.name and _NUMBER.sub("#", written) == _NUMBER.sub("#", path.name):
        raise FileFormatError(
            f"{path} was written as {written}: files were swapped or renamed. Copy the folder again, or give it that name."
        )


def _mapped(view: Tensor) -> _Mapped | None:
    found: _Mapped | None = getattr(view.untyped_storage(), _ATTRIBUTE, None)
    return found


def _extent(view: Tensor) -> int:
    """Bytes from the first element to behind the last one, wherever its strides lead."""
    steps = sum((size - 1) * stride for size, stride in zip(view.shape, view.stride(), strict=True))
    return (steps + 1) * view.element_size()


def _n_blocks(described: tuple[torch.dtype, tuple[int, ...]]) -> int:
    dtype, shape = described
    return -(-int(np.prod(shape, dtype=np.int64)) * dtype.itemsize // BLOCK)


def _checksums(data: memoryview) -> np.ndarray:
    starts = range(0, len(data), BLOCK)
    return np.fromiter((zlib.crc32(data[start : start + BLOCK]) for start in starts), "<u4", len(starts))


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else memoryview(b"")


def _header_digest(described: Described, metadata: Mapping[str, str]) -> str:
    names = [[name, str(dtype), list(shape)] for name, (dtype, shape) in sorted(described.items())]
    return hashlib.sha256(json.dumps([names, sorted(metadata.items())]).encode()).hexdigest()


def _damaged(path: Path, problem: str) -> FileFormatError:
    return FileFormatError(f"{path} is damaged: {problem}. Copy it again, or write it anew.")
