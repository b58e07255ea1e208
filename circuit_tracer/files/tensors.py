"""Tensor files opened without reading them: safetensors, .npz and torch's archives as tables of memory-mapped tensors.

Only headers are read on opening. A tensor is then a read-only view of the file; touching a row reads that row's pages.
Nothing of a file is executed: no object arrays, of torch's pickles only tensors and plain values.
"""

from __future__ import annotations

import lzma
import math
import mmap
import os
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from circuit_tracer.errors import FileFormatError, InputError, shortened
from circuit_tracer.files.checksums import DTYPES, HEADER_DIGEST, Blocks, attach, opened, plain_metadata, verified
from circuit_tracer.files.reading import open_file
from circuit_tracer.files.structured import parse_json
from circuit_tracer.files.torch_archive import load_torch_archive

_NPZ_ERRORS = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, tokenize.TokenError, SyntaxError, OSError, EOFError,
    ValueError, TypeError, LookupError, RuntimeError, ArithmeticError, MemoryError, AttributeError,
)  # of zipfile and numpy # fmt: skip
_LARGEST_HEADER = 100 * 2**20  # safetensors' own limit
_SMALL = 2**20  # bytes of a tensor that is compared with its checksums as soon as it is handed out
_MOST_AXES = 16
_MAPPING = "_circuit_tracer_mapping"  # of the storage of a mapped tensor, which all views of it share
_DEFLATE = 1032  # nothing is packed better than that


@dataclass(frozen=True)
class _Entry:
    """Where a tensor lies: ``start`` bytes into ``path``; ``fortran`` says that the file holds its transpose. blocks: its
    checksums, if the file has them. held: the tensor, of a file that torch has mapped.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int
    fortran: bool = False
    compressed: bool = False
    blocks: Blocks | None = None
    held: Tensor | None = None


@dataclass(frozen=True)
class TensorFile:
    """The tensors of one file, or of several that belong to one layer (see `join`).

    metadata: what the file says besides. digest: of the header of one file that has checksums; it covers all else.
    """

    path: Path
    entries: dict[str, _Entry]
    metadata: dict[str, str] = field(default_factory=dict)
    digest: str | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape, from the headers."""
        return {name: entry.shape for name, entry in self.entries.items()}

    def __contains__(self, name: str) -> bool:
        return name in self.entries

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
        if entry.held is not None:
            return entry.held
        if entry.compressed:
            return _read_packed(entry, name)
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

    @property
    def paths(self) -> set[Path]:
        """The files that the tensors lie in."""
        return {self.path, *(entry.path for entry in self.entries.values())}


def open_tensor_file(path: str | Path) -> TensorFile:
    """Open a .safetensors, .npz, .npy or torch (.pt, .pth) file; the one tensor of a .npy is named "".

    InputError if it is missing, FileFormatError if it is damaged or foreign.
    """
    path = Path(path)
    with open_file(path) as file:
        return _OPENERS.get(path.suffix, _open_safetensors)(path, file)


def release_pages(view: Tensor) -> None:
    """Let go of what was read of the file that a tensor is a view of. Its pages stay in the system's cache, where they are read
    again; of this process' memory they are part no longer. Does nothing to other tensors.
    """
    mapped: mmap.mmap | None = getattr(view.untyped_storage(), _MAPPING, None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def unpack_tensors(data: bytes, source: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file that came as bytes. FileFormatError, naming ``source``, if they are none."""
    try:
        return load_safetensors(data)
    except (SafetensorError, ValueError, TypeError, LookupError, RuntimeError) as error:
        raise FileFormatError(f"{source} is not a safetensors file: {_first(error)}.") from error


def join(files: Iterable[TensorFile]) -> TensorFile:
    """One table of the tensors of several files; the first file gives the path for messages."""
    parts = list(files)
    entries: dict[str, _Entry] = {}
    metadata: dict[str, str] = {}
    for part in parts:
        if twice := entries.keys() & part.entries.keys():
            raise FileFormatError(f"{part.path} has {', '.join(sorted(twice))}, which {parts[0].path} has too.")
        if other := [name for name in metadata.keys() & part.metadata.keys() if metadata[name] != part.metadata[name]]:
            raise FileFormatError(
                f"{part.path} and {parts[0].path} have different metadata: {', '.join(sorted(other))}."
            )
        entries.update(part.entries)
        metadata.update(part.metadata)
    return TensorFile(parts[0].path, entries, metadata)


def _map_tensor(entry: _Entry) -> Tensor:
    count = math.prod(entry.shape)
    if count == 0:
        return torch.empty(entry.shape, dtype=entry.dtype)
    try:
        with open_file(entry.path) as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # an InputError, which is a ValueError, says no more than these
        raise InputError(f"cannot read {entry.path}: {error}. It was there when it was opened.") from error
    if entry.start + _bytes(entry) > len(mapped):
        raise FileFormatError(f"{entry.path} became shorter after it was opened. Copy it again.")
    _hear_that_it_is_read_only()
    flat = torch.frombuffer(mapped, dtype=entry.dtype, count=count, offset=entry.start)
    setattr(flat.untyped_storage(), _MAPPING, mapped)
    if entry.blocks is not None:
        attach(flat, entry.blocks, memoryview(mapped)[entry.start : entry.start + _bytes(entry)])
    if entry.fortran:
        return flat.view(entry.shape[::-1]).permute(*reversed(range(len(entry.shape))))
    return flat.view(entry.shape)


# ---- safetensors: 8 bytes of length, so much JSON, then the tensors one after the other without holes


def _open_safetensors(path: Path, file: BinaryIO) -> TensorFile:
    size = os.fstat(file.fileno()).st_size
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
    header = parse_json(file.read(header_bytes), f"{path} is not a safetensors file: its header")
    if not isinstance(header, dict):
        raise FileFormatError(f"{path} is not a safetensors file: its header is {shortened(header)}.")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FileFormatError(f"{path}: the metadata of its header are {shortened(metadata)}; expected texts by name.")
    entries = {name: _safetensors_entry(path, name, item, 8 + header_bytes) for name, item in header.items()}
    end = 8 + header_bytes
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, _bytes(item[1]))):
        if entry.start != end:
            raise FileFormatError(
                f"{path} is damaged: {shortened(name)} begins at byte {entry.start}, the tensor before it ends at {end}."
            )
        end += _bytes(entry)
    if end != size:
        what = "is cut short" if end > size else "is damaged"
        raise FileFormatError(f"{path} {what}: its tensors need {end} bytes, the file has {size}. Copy it again.")
    blocks = opened(path, {name: (entry.dtype, entry.shape) for name, entry in entries.items()}, metadata)
    entries = {name: replace(entry, blocks=blocks.get(name)) for name, entry in entries.items()}
    digest = metadata.get(HEADER_DIGEST)
    return TensorFile(path, entries, metadata if digest is None else plain_metadata(metadata), digest)


def _safetensors_entry(path: Path, name: str, item: Any, data_start: int) -> _Entry:
    match item:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]} if len(item) == 3 and all(
            type(number) is int and number >= 0 for number in (*shape, begin, end)
        ):
            pass
        case _:
            raise FileFormatError(
                f"{path} is not a safetensors file: its header says {shortened(item)} of {shortened(name)}; expected "
                "dtype, shape and two data_offsets."
            )
    if dtype not in DTYPES:
        raise FileFormatError(
            f"{path}: {shortened(name)} is stored as {shortened(dtype)}, which is not supported; "
            f"known are {', '.join(DTYPES)}. Convert the file."
        )
    entry = _Entry(path, tuple(shape), DTYPES[dtype], data_start + begin)
    _require_extents(path, name, shape)
    if end - begin != _bytes(entry):
        raise FileFormatError(
            f"{path}: {shortened(name)} of shape {tuple(shape)} and dtype {dtype} needs {_bytes(entry)} bytes, "
            f"the header gives it {end - begin}. The file is damaged."
        )
    return entry


def _require_extents(path: Path, name: str, shape: Iterable[int]) -> None:
    """That torch can describe the shape, also where a zero makes the number of elements none."""
    extents = tuple(shape)
    if len(extents) > _MOST_AXES or math.prod(max(extent, 1) for extent in extents) >= 2**62:
        raise FileFormatError(f"{path} is damaged: {shortened(name)} would have the shape {shortened(extents)}.")


def _bytes(entry: _Entry) -> int:
    return math.prod(entry.shape) * entry.dtype.itemsize


# ---- npz: a zip archive of .npy files


def _open_npz(path: Path, file: BinaryIO) -> TensorFile:
    size = os.fstat(file.fileno()).st_size
    entries: dict[str, _Entry] = {}
    try:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                if not member.filename.endswith(".npy"):
                    raise FileFormatError(f"{path} holds {shortened(member.filename)}; only .npy members are read.")
                name = member.filename.removesuffix(".npy")
                if name in entries:
                    raise FileFormatError(f"{path} is damaged: it has two members {shortened(name)}.")
                entries[name] = _npz_entry(path, archive, file, member, size)
    except _NPZ_ERRORS as error:
        raise FileFormatError(f"{path} is not a readable .npz archive: {_first(error)}. Copy it again.") from error
    return TensorFile(path, entries)


def _npz_entry(path: Path, archive: zipfile.ZipFile, file: BinaryIO, member: zipfile.ZipInfo, size: int) -> _Entry:
    shape, dtype, fortran, header_bytes = _npy_header(path, archive, member)
    name = member.filename.removesuffix(".npy")
    entry = _Entry(path, shape, dtype, 0, fortran, compressed=member.compress_type != zipfile.ZIP_STORED)
    _require_extents(path, name, shape)
    if header_bytes + _bytes(entry) != member.file_size:
        raise FileFormatError(
            f"{path} is damaged: {shortened(name)} of shape {shape} needs {header_bytes + _bytes(entry)} bytes, the archive "
            f"gives it {member.file_size}. Copy it again."
        )
    if entry.compressed:
        if member.file_size > _DEFLATE * member.compress_size:
            raise FileFormatError(
                f"{path} is damaged: {shortened(name)} would have {member.file_size} bytes, packed into {member.compress_size}."
            )
        return entry
    # The name and extra field of the local header may differ in length from those of the directory at the end.
    file.seek(member.header_offset)
    name_bytes, extra_bytes = struct.unpack("<26x2H", file.read(30))
    start = member.header_offset + 30 + name_bytes + extra_bytes + header_bytes
    if start + _bytes(entry) > size:
        raise FileFormatError(
            f"{path} is damaged: {shortened(name)} would end after the file's {size} bytes. Copy it again."
        )
    return replace(entry, start=start)


def _npy_header(
    path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo
) -> tuple[tuple[int, ...], torch.dtype, bool, int]:
    """(shape, dtype, Fortran order, bytes of the header)."""
    with archive.open(member) as stream:
        return _npy_layout(path, member.filename, stream)


def _npy_layout(path: Path, name: str, stream: IO[bytes]) -> tuple[tuple[int, ...], torch.dtype, bool, int]:
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(stream)
    header_bytes = stream.tell()
    if dtype.hasobject or dtype.byteorder == ">":
        raise FileFormatError(f"{path}: {shortened(name)} holds {dtype}; only plain little-endian numbers are read.")
    return shape, torch.from_numpy(np.empty(0, dtype)).dtype, fortran, header_bytes


def _open_npy(path: Path, file: BinaryIO) -> TensorFile:
    try:
        shape, dtype, fortran, header_bytes = _npy_layout(path, path.name, file)
    except _NPZ_ERRORS as error:
        raise FileFormatError(f"{path} is not a readable .npy file: {_first(error)}. Copy it again.") from error
    entry = _Entry(path, shape, dtype, header_bytes, fortran)
    _require_extents(path, path.name, shape)
    if (size := os.fstat(file.fileno()).st_size) != header_bytes + _bytes(entry):
        raise FileFormatError(
            f"{path} is damaged or cut short: it needs {header_bytes + _bytes(entry)} bytes, and has {size}. Copy it again."
        )
    return TensorFile(path, {"": entry})


def _read_packed(entry: _Entry, name: str) -> Tensor:
    """A compressed member of an npz archive; zipfile compares its checksum."""
    try:
        with open_file(entry.path) as file, np.load(file, allow_pickle=False) as archive:
            array = archive[name]
    except _NPZ_ERRORS as error:
        raise FileFormatError(
            f"{entry.path}: {shortened(name)} cannot be read: {_first(error)}. Copy it again."
        ) from error
    return torch.from_numpy(array)


# ---- torch: a dict of tensors and plain values, in a pickle that runs nothing (torch_archive.py)


def _open_torch(path: Path, file: BinaryIO) -> TensorFile:
    """Numbers count as tensors of one number, texts as metadata; a dict of dicts is read by names with a dot."""
    content = load_torch_archive(path, (), mapped=True)
    if not isinstance(content, dict):
        raise FileFormatError(f"{path} holds {type(content).__name__}; a dict of tensors is expected.")
    entries: dict[str, _Entry] = {}
    metadata: dict[str, str] = {}
    for name, value in _named(content):
        match value:
            case str():
                metadata[name] = value
            case Tensor() | bool() | int() | float():
                held = value.detach() if isinstance(value, Tensor) else torch.tensor(float(value), dtype=torch.float64)
                entries[name] = _Entry(path, tuple(held.shape), held.dtype, 0, held=held)
            case None:
                pass
            case _:
                raise FileFormatError(
                    f"{path}: {shortened(name)} is {shortened(value)}; tensors, numbers and texts are read."
                )
    return TensorFile(path, entries, metadata)


def _named(content: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _named(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


_OPENERS = {".npz": _open_npz, ".npy": _open_npy, ".pt": _open_torch, ".pth": _open_torch}


def _first(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


@cache
def _hear_that_it_is_read_only() -> None:
    """torch warns once a process that a buffer is read-only, which is the point: a private writable mapping of a file larger
    than memory would be refused by the operating system. Filters of warnings belong to all threads: they are touched once.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")
        torch.frombuffer(b"\0", dtype=torch.uint8)
