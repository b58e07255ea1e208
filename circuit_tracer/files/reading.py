"""Bytes of files, under limits: regular files alone, no more than was asked for, gzip and zlib that cannot explode."""

from __future__ import annotations

import os
import stat
import zlib
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from circuit_tracer.errors import FileFormatError, InputError

MIB = 2**20
LARGEST_JSON = 1024 * MIB
LARGEST_YAML = MIB // 4  # a configuration has some kilobytes; PyYAML needs a second for 100 kB
UNPACKED = 48 * MIB  # what any packed file may become; as JSON, it takes thirty times as much memory at worst
RATIO = 100  # beyond that, how often its own size. Text packs to a tenth or less, bombs to a thousandth
_STEP = MIB
_LOOKED_AT = 5000  # names of a folder, at most


def near_names(path: str | Path, folders: bool = False) -> str:
    """What stands beside where nothing is, in words.

    Args:
        path: A path at which there is nothing.
        folders: Folders are names too, not only files.

    Returns:
        A question or a remark; "" where no name there is like it.
    """
    wanted = Path(path)
    try:
        there = {each.name: each for each in islice(wanted.parent.iterdir(), _LOOKED_AT)}
        found = get_close_matches(wanted.name, [name for name, each in there.items() if folders or each.is_file()], 3)
    except (OSError, ValueError):
        return "" if wanted.parent.is_dir() else f"There is no folder {wanted.parent}."
    return f"Did you mean {' or '.join(str(wanted.parent / name) for name in found)}?" if found else ""


def open_file(path: str | Path) -> BinaryIO:
    """A regular file opened for reading, in binary.

    Never waits: a pipe without a writer is refused like any other.

    Args:
        path: The file.

    Returns:
        The open file.

    Raises:
        InputError: If there is none, it is a folder, pipe or device, or the operating system refuses.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        file = os.fdopen(os.open(path, flags), "rb")
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return file
        file.close()
    except FileNotFoundError as error:
        raise InputError(f"no such file: {path}. {near_names(path) or 'Check the path.'}") from error
    except IsADirectoryError as error:
        raise InputError(f"{path} is a folder; expected a file.") from error
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror or error}. Check the path and its permissions."
        ) from error
    except ValueError as error:  # a zero byte, or a character that file names cannot have
        raise InputError(f"{str(path)!r} cannot be the name of a file: {error}.") from error
    raise InputError(f"{path} is a pipe or a device; expected a file.")


def read_bytes(path: str | Path, largest: int) -> bytes:
    """The bytes of a file. InputError if it cannot be opened (see `open_file`), FileFormatError beyond ``largest`` bytes.

    Args:
        path: The file.
        largest: The most bytes that are read.

    Returns:
        Its bytes.

    Raises:
        InputError: If it cannot be opened (`open_file`).
        FileFormatError: Beyond `largest` bytes.
    """
    parts: list[bytes] = []
    with open_file(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            if size <= largest:
                # room is made for all that is asked for: for the file as it is, then for what it may have grown by
                parts, size = [file.read(size or _STEP)], 0  # some files have no size before they are read
                while size <= largest and parts[-1]:
                    size += len(parts[-1])
                    parts.append(file.read(_STEP))
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}. Copy it again.") from error
    if size > largest:
        raise FileFormatError(f"{path} has {size:,} bytes; at most {largest:,} are read of such a file.")
    return b"".join(parts)


def read_text(path: str | Path, largest: int) -> str:
    """The text of a UTF-8 file, without a byte-order mark; line ends become \\n. Errors as `read_bytes`'s.

    Args:
        path: The file.
        largest: The most bytes that are read.

    Returns:
        Its text.

    Raises:
        InputError: If it cannot be opened (`open_file`).
        FileFormatError: Beyond `largest` bytes, or if it is not UTF-8.
    """
    return decoded(read_bytes(path, largest), path).replace("\r\n", "\n").replace("\r", "\n")


def decoded(data: bytes, source: str | Path, halves: bool = False) -> str:
    """UTF-8 as text, without a byte-order mark; FileFormatError says where it is not UTF-8. halves: of surrogate pairs too."""
    try:
        return data.decode("utf-8-sig", "surrogatepass" if halves else "strict")
    except UnicodeDecodeError as error:
        raise FileFormatError(
            f"{source} is not text in UTF-8: byte {error.start} is {data[error.start : error.start + 1].hex()}. "
            "Save it as UTF-8, or copy it again."
        ) from error


def unpack(data: bytes, source: str | Path, largest: int | None = None) -> bytes:
    """What gzip or zlib packed, if it is at most ``largest`` bytes; FileFormatError if it is more, damaged or cut short.

    Args:
        data: What was packed.
        source: What errors name: the file or what stands for it.
        largest: As a rule 48 MiB, or a hundred times the packed size if that is more (1 GiB at most), which no text that
            anybody wrote exceeds.

    Returns:
        What was packed.

    Raises:
        FileFormatError: If it is more, damaged or cut short.
    """
    if largest is None:
        largest = min(LARGEST_JSON, max(UNPACKED, RATIO * len(data)))
    parts: list[bytes] = []
    room, rest = largest, data
    while rest:  # gzip files may be several, one after the other
        unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # either header
        try:
            while not unpacker.eof:
                part = unpacker.decompress(rest, min(_STEP, room + 1))
                rest = unpacker.unconsumed_tail
                room -= len(part)
                parts.append(part)
                if room < 0:
                    raise FileFormatError(
                        f"{source} unpacks to more than {largest:,} bytes, from {len(data):,}; it is not read."
                    )
                if not part and not rest and not unpacker.eof:
                    raise FileFormatError(f"{source} is cut short: its packed data have no end. Copy it again.")
        except zlib.error as error:
            raise FileFormatError(f"{source} is not packed by gzip or zlib, or it is damaged: {error}.") from error
        rest = unpacker.unused_data.lstrip(b"\0")  # padding, as of tapes
    if not parts:
        raise FileFormatError(f"{source} is empty; expected packed data.")
    return b"".join(parts)
