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
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuit_tracer.errors import FileFormatError, InputError
from circuit_tracer.files.checksums import DTYPES, HEADER_DIGEST, Blocks, attach, opened, verified

_NPZ_ERRORS = (
    zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, ValueError, TypeError, KeyError, RuntimeError,
)  # fmt: skip
_LARGEST_HEADER = 100 * 2**20  # safetensors' own limit
_SMALL = 2**20  # bytes of a tensor that is compared with its checksums as soon as it is handed out


@dataclass(frozen=True)
class _Entry:
    """Where a tensor lies: ``start`` bytes into ``path``; ``fortran`` says that the file holds its transpose. blocks: its
    checksums, if the file has them.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int
    fortran: bool = False
    compressed: bool = False
    blocks: Blocks | None = None


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

    @property
    def digest(self) -> str | None:
        """Digest of the file's header, which holds the checksums of all else; None for a file without."""
        return self.metadata.get(HEADER_DIGEST)

    def read(self, name: str) -> Tensor:
        """Tensor ``name`` as a copy in memory, compared with its checksums."""
        return verified(self.tensor(name)).clone()

    def tensor(self, name: str) -> Tensor:
        """Tensor ``name`` as a read-only view of the file (copied only if it is compressed there).

        What is read of a large one is to go through `checksums.verified` or `MappedRows`.
        """
        if name not in self.entries:
            raise FileFormatError(f"{self.path} has no tensor {name!r}; found {self.describe()}.")
        entry = self.entries[name]
        if entry.compressed:
            try:
                with np.load(entry.path, allow_pickle=False) as archive:
                    return torch.from_numpy(archive[name])
            except _NPZ_ERRORS as error:
                raise FileFormatError(f"{entry.path}: {name!r} cannot be read: {error}. Copy it again.") from error
        mapped = _map_tensor(entry)
        return verified(mapped) if _bytes(entry) <= _SMALL else mapped

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

    @cached_property
    def config(self) -> dict[str, Any]:
        """``cfg.json`` beside the file (sparsify, SAELens); empty when there is none."""
        beside = self.path.parent / "cfg.json"
        if not beside.is_file():
            return {}
        try:
            config = json.loads(beside.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FileFormatError(f"{beside} is not readable JSON: {error}.") from error
        if not isinstance(config, dict):
            raise FileFormatError(f"{beside} must hold a JSON object, found {type(config).__name__}.")
        return config


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
    if entry.blocks is not None:
        attach(flat, entry.blocks, memoryview(mapped)[entry.start : entry.start + _bytes(entry)])
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
    return TensorFile(path, _with_checksums(path, entries, metadata, needed, size), metadata)


def _with_checksums(
    path: Path, entries: dict[str, _Entry], metadata: dict[str, str], needed: int, size: int
) -> dict[str, _Entry]:
    blocks = opened(path, {name: (entry.dtype, entry.shape) for name, entry in entries.items()}, metadata)
    if blocks and needed != size:
        raise FileFormatError(f"{path} is damaged: {size - needed} bytes were added to it. Copy it again.")
    return {name: replace(entry, blocks=blocks.get(name)) for name, entry in entries.items()}


def _safetensors_entry(path: Path, name: str, item: dict[str, Any], data_start: int) -> _Entry:
    shape = tuple(int(extent) for extent in item["shape"])
    begin, end = (int(offset) for offset in item["data_offsets"])
    if item["dtype"] not in DTYPES:
        raise FileFormatError(
            f"{path}: {name!r} is stored as {item['dtype']}, which is not supported; "
            f"known are {', '.join(DTYPES)}. Convert the file."
        )
    entry = _Entry(path, shape, DTYPES[item["dtype"]], data_start + begin)
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
                if member.filename.endswith(".npy")
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
