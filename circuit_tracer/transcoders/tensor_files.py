"""Tensor files opened without reading them: safetensors and .npz as tables of memory-mapped tensors.

Only headers are read on opening. A tensor is then a read-only view of the file; touching a row reads that row's pages.
Nothing of a file is executed: no pickle, no object arrays.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuit_tracer.errors import FileFormatError, InputError

_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NPZ_ERRORS = (
    zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, ValueError, TypeError, KeyError, RuntimeError,
)  # fmt: skip
_LARGEST_HEADER = 100 * 2**20  # safetensors' own limit


@dataclass(frozen=True)
class _Entry:
    """Where a tensor lies: ``start`` bytes into ``path``; ``fortran`` says that the file holds its transpose."""

    path: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int
    fortran: bool = False
    compressed: bool = False


@dataclass(frozen=True)
class TensorFile:
    """The tensors of one file, or of several that belong to one layer (see `join`)."""

    path: Path
    entries: dict[str, _Entry]
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape, from the headers."""
        return {name: entry.shape for name, entry in self.entries.items()}

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def tensor(self, name: str) -> Tensor:
        """Tensor ``name`` as a read-only view of the file (copied only if it is compressed there)."""
        if name not in self.entries:
            raise FileFormatError(f"{self.path} has no tensor {name!r}; found {self.describe()}.")
        entry = self.entries[name]
        if entry.compressed:
            try:
                with np.load(entry.path, allow_pickle=False) as archive:
                    return torch.from_numpy(archive[name])
            except _NPZ_ERRORS as error:
                raise FileFormatError(f"{entry.path}: {name!r} cannot be read: {error}. Copy it again.") from error
        return _map_tensor(entry)

    def scalar(self, name: str) -> float:
        """The one number in tensor ``name``."""
        tensor = self.tensor(name)
        if tensor.numel() != 1:
            raise FileFormatError(f"{self.path}: {name!r} must hold one number, found shape {tuple(tensor.shape)}.")
        return float(tensor.reshape(()))

    def describe(self) -> str:
        """Names and shapes, for messages; shortened when there are many."""
        named = [f"{name} {shape}" for name, shape in list(self.shapes.items())[:12]]
        more = len(self.entries) - len(named)
        return ", ".join(named) + (f" and {more} more" if more > 0 else "") if named else "no tensors"

    @property
    def paths(self) -> set[Path]:
        """The files that the tensors lie in."""
        return {self.path, *(entry.path for entry in self.entries.values())}


def open_tensor_file(path: str | Path) -> TensorFile:
    """Open a .safetensors or .npz file; InputError if it is missing, FileFormatError if it is damaged or foreign."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no such file: {path}. Give the path of a .safetensors or .npz file.")
    try:
        return _open_npz(path) if path.suffix == ".npz" else _open_safetensors(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}. Check its permissions.") from error


def join(files: Iterable[TensorFile]) -> TensorFile:
    """One table of the tensors of several files; the first file gives the path for messages."""
    parts = list(files)
    entries: dict[str, _Entry] = {}
    metadata: dict[str, str] = {}
    for part in parts:
        if twice := entries.keys() & part.entries.keys():
            raise FileFormatError(f"{part.path} has {', '.join(sorted(twice))}, which {parts[0].path} has too.")
        entries.update(part.entries)
        metadata.update(part.metadata)
    return TensorFile(parts[0].path, entries, metadata)


def _map_tensor(entry: _Entry) -> Tensor:
    count = math.prod(entry.shape)
    if count == 0:
        return torch.empty(entry.shape, dtype=entry.dtype)
    with open(entry.path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with warnings.catch_warnings():
        # torch warns that the buffer is read-only; that is the point: a private writable mapping of a file larger
        # than memory would be refused by the operating system.
        warnings.filterwarnings("ignore", message=".*not writable.*")
        flat = torch.frombuffer(mapped, dtype=entry.dtype, count=count, offset=entry.start)
    if entry.fortran:
        return flat.view(entry.shape[::-1]).permute(*reversed(range(len(entry.shape))))
    return flat.view(entry.shape)


def _open_safetensors(path: Path) -> TensorFile:
    size = path.stat().st_size
    with open(path, "rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise FileFormatError(f"{path} is not a safetensors file: {size} bytes, at least 8 are expected.")
        (header_bytes,) = struct.unpack("<Q", prefix)
        if header_bytes > _LARGEST_HEADER:
            raise FileFormatError(
                f"{path} is not a safetensors file: it would have a header of {header_bytes} bytes. Check the file."
            )
        if header_bytes > size - 8:
            raise FileFormatError(
                f"{path} is cut short: its header needs {8 + header_bytes} bytes, the file has {size}. Copy it again."
            )
        raw = file.read(header_bytes)
    try:
        header = json.loads(raw)
        metadata = {str(key): str(value) for key, value in header.pop("__metadata__", {}).items()}
        entries = {name: _safetensors_entry(path, name, item, 8 + header_bytes) for name, item in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileFormatError(
            f"{path} is not a safetensors file: its header is not understood ({error}). Check the file."
        ) from error
    needed = max((entry.start + _bytes(entry) for entry in entries.values()), default=8 + header_bytes)
    if needed > size:
        raise FileFormatError(
            f"{path} is cut short: its tensors need {needed} bytes, the file has {size}. Copy it again."
        )
    return TensorFile(path, entries, metadata)


def _safetensors_entry(path: Path, name: str, item: dict[str, Any], data_start: int) -> _Entry:
    shape = tuple(int(extent) for extent in item["shape"])
    begin, end = (int(offset) for offset in item["data_offsets"])
    if item["dtype"] not in _SAFETENSORS_DTYPES:
        raise FileFormatError(
            f"{path}: {name!r} is stored as {item['dtype']}, which is not supported; "
            f"known are {', '.join(_SAFETENSORS_DTYPES)}. Convert the file."
        )
    entry = _Entry(path, shape, _SAFETENSORS_DTYPES[item["dtype"]], data_start + begin)
    if begin < 0 or min(shape, default=0) < 0 or end - begin != _bytes(entry):
        raise FileFormatError(
            f"{path}: {name!r} of shape {shape} and dtype {item['dtype']} needs {_bytes(entry)} bytes, "
            f"the header gives it {end - begin}. The file is damaged."
        )
    return entry


def _bytes(entry: _Entry) -> int:
    return math.prod(entry.shape) * entry.dtype.itemsize


def _open_npz(path: Path) -> TensorFile:
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            entries = {
                member.filename.removesuffix(".npy"): _npz_entry(path, archive, file, member)
                for member in archive.infolist()
                if not member.is_dir()
            }
    except _NPZ_ERRORS as error:
        raise FileFormatError(f"{path} is not a readable .npz archive: {error}. Copy it again.") from error
    size = path.stat().st_size
    for name, entry in entries.items():
        if entry.start + _bytes(entry) > size and not entry.compressed:
            raise FileFormatError(
                f"{path} is damaged: {name!r} would end after the file's {size} bytes. Copy it again."
            )
    return TensorFile(path, entries)


def _npz_entry(path: Path, archive: zipfile.ZipFile, file: Any, member: zipfile.ZipInfo) -> _Entry:
    with archive.open(member) as stream:
        major, _ = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(stream)
        header_bytes = stream.tell()
    if dtype.hasobject or dtype.byteorder == ">":
        raise FileFormatError(f"{path}: {member.filename} holds {dtype}; only plain little-endian numbers are read.")
    torch_dtype = torch.from_numpy(np.empty(0, dtype)).dtype
    if member.compress_type != zipfile.ZIP_STORED:
        return _Entry(path, shape, torch_dtype, 0, compressed=True)
    # The name and extra field of the local header may differ in length from those of the directory at the end.
    file.seek(member.header_offset)
    name_bytes, extra_bytes = struct.unpack("<26x2H", file.read(30))
    start = member.header_offset + 30 + name_bytes + extra_bytes + header_bytes
    return _Entry(path, shape, torch_dtype, start, fortran)
