"""Files packed whole (.gz, .bz2, .xz, .zst), unpacked as they are read, so that no more is in memory than is asked for.

A place in such a file counts unpacked bytes; to get there, what lies before it is unpacked again.
"""

from __future__ import annotations

import bz2
import io
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from circuit_tracer.errors import CircuitTracerError, FileFormatError, InputError, ResourceError, first_line

SKIPPED_AT_A_TIME = 2**20  # bytes
_ERRORS = (EOFError, zlib.error, lzma.LZMAError)


class _Gzip(io.RawIOBase):
    """What gzip packed, one part or more. The library's own reader follows zeros behind the last one byte by byte."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw, self._packed, self._unpacker = raw, b"", zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        self._begun = False  # within a packed part

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Unpack into the buffer. Raises EOFError for a part that has no end, zlib.error for damage."""
        while True:
            self._packed = self._packed or self._raw.read(SKIPPED_AT_A_TIME)
            if not self._packed:
                if self._begun:
                    raise EOFError("its packed data have no end")
                return 0
            part = self._unpacker.decompress(self._packed, len(buffer))
            self._begun, self._packed = True, self._unpacker.unconsumed_tail
            if self._unpacker.eof:
                self._packed = self._behind(self._unpacker.unused_data)
                self._unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
                self._begun = False
            if part:
                buffer[: len(part)] = part
                return len(part)

    def _behind(self, rest: bytes) -> bytes:
        """What follows the zeros that may stand behind a part."""
        found = (rest + self._raw.read(SKIPPED_AT_A_TIME)).lstrip(b"\0")
        if not found and self._raw.read(1):
            raise zlib.error("there is more than padding behind its end")
        return found


def _zstd(raw: BinaryIO) -> BinaryIO:
    if sys.version_info >= (3, 14):
        from compression.zstd import ZstdFile

        return cast(BinaryIO, ZstdFile(raw))
    try:
        import zstandard
    except ImportError as error:
        raise CircuitTracerError(
            "files that end in .zst need the package 'zstandard': pip install 'circuit-tracing[zstd]'"
        ) from error
    reader: Any = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
    return cast(BinaryIO, io.BufferedReader(reader, SKIPPED_AT_A_TIME))


UNPACKERS: dict[str, Callable[[BinaryIO], BinaryIO]] = {
    ".gz": lambda raw: cast(BinaryIO, io.BufferedReader(_Gzip(raw), SKIPPED_AT_A_TIME)),
    ".bz2": lambda raw: cast(BinaryIO, bz2.BZ2File(raw)),
    ".xz": lambda raw: cast(BinaryIO, lzma.LZMAFile(raw)),  # noqa: SIM115
    ".zst": _zstd,
}


def without_packing(name: str) -> tuple[str, str | None]:
    """(the name of what is packed, the ending that says how): `a.jsonl.gz` is `a.jsonl`, packed by `.gz`; None: it is not."""
    for suffix in UNPACKERS:
        if name.endswith(suffix):
            return name.removesuffix(suffix), suffix
    return name, None


def skip(file: BinaryIO, n_bytes: int, source: str) -> None:
    """Read past the first ``n_bytes``. Raises FileFormatError for a file that has fewer."""
    while n_bytes:
        read = len(file.read(min(n_bytes, SKIPPED_AT_A_TIME)))
        if not read:
            raise FileFormatError(
                f"{source} ends {n_bytes} bytes before the place where the run stood: it was replaced."
            )
        n_bytes -= read


@contextmanager
def reading(source: str, stored: bool = False) -> Iterator[None]:
    """Errors of unpacking become FileFormatErrors, those of the operating system InputErrors. stored: what is read comes from
    a store, whose library may raise anything: a ResourceError.
    """
    try:
        yield
    except CircuitTracerError:
        raise
    except Exception as error:
        if isinstance(error, _ERRORS) or type(error).__name__ == "ZstdError":  # of a library that need not be installed
            raise _damaged(source, error) from error
        if stored:
            raise ResourceError(
                f"reading {source} broke off: {first_line(error)}. Checkpoints keep the place: try again and resume the run."
            ) from error
        if not isinstance(error, OSError):
            raise
        if error.errno is None:  # of bz2
            raise _damaged(source, error) from error
        raise InputError(f"cannot read {source}: {error.strerror}. Check the file and its permissions.") from error


def _damaged(source: str, error: Exception) -> FileFormatError:
    return FileFormatError(f"{source} is damaged or cut short: {error}. Copy it again.")
