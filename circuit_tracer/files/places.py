"""Files by path, folder, pattern or address: on this machine, or wherever fsspec reaches (s3://, gs://, hf://, https://)."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from circuit_tracer.errors import CircuitTracerError, InputError, ResourceError, first_line
from circuit_tracer.files.packed import UNPACKERS, reading, skip, without_packing
from circuit_tracer.files.reading import open_file

COPIED_AT_A_TIME = 2**22  # bytes
_VERSIONS = ("ETag", "etag", "md5Hash", "blob_id", "sha256")  # what stores call a value that changes with the content


@dataclass(frozen=True)
class Place:
    """A file to read. name: its address or path. system: what opens it; None: this machine's."""

    name: str
    size: int
    system: Any = field(default=None, compare=False, repr=False)
    version: str | None = None  # changes with the content; None: nobody says

    def __str__(self) -> str:
        return self.name

    @property
    def file_name(self) -> str:
        """The last part of the name."""
        return PurePosixPath(self.name).name if self.system is not None else Path(self.name).name

    @property
    def suffix(self) -> str:
        """The ending that says what the file holds; that of packing is left out."""
        return PurePosixPath(without_packing(self.file_name)[0]).suffix

    @property
    def packing(self) -> str | None:
        """The ending that says how it is packed, if it is."""
        return without_packing(self.file_name)[1]

    @contextmanager
    def opened(self, start: int = 0) -> Iterator[BinaryIO]:
        """The file, unpacked, from byte ``start`` on. Errors inside that come from reading it become ours."""
        with reading(self.name, self.system is not None), self.raw() as raw:
            if self.packing is None:
                raw.seek(start)
                yield raw
            else:
                with UNPACKERS[self.packing](raw) as unpacked:
                    skip(unpacked, start, self.name)
                    yield unpacked

    def raw(self) -> BinaryIO:
        """The file as it is, packed or not, to be closed."""
        if self.system is None:
            return open_file(self.name)
        return cast(BinaryIO, self.system.open(self.name, "rb"))

    @contextmanager
    def on_disk(self) -> Iterator[Path]:
        """A path that holds the file, unpacked: its own, or that of a copy which goes afterwards (not before the last view of
        it, where the operating system allows that). Raises ResourceError when the disk is full.
        """
        if self.system is None and self.packing is None:
            yield Path(self.name)
            return
        with tempfile.TemporaryDirectory(prefix="circuit-tracer-", ignore_cleanup_errors=True) as folder:
            path = Path(folder) / without_packing(self.file_name)[0]
            with self.opened() as source, _to_disk(self.name, folder), open(path, "wb") as target:
                shutil.copyfileobj(source, target, COPIED_AT_A_TIME)
            yield path


@contextmanager
def _to_disk(name: str, folder: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        raise ResourceError(
            f"could not copy {name} to {folder}: {error.strerror or error}. Set TMPDIR to a folder with more room."
        ) from error


def is_address(path: str) -> bool:
    """Whether it is an address such as s3://bucket/file rather than a path of this machine."""
    return "://" in path


def find_places(path: str, suffixes: Sequence[str], what: str = "data.path") -> list[Place]:
    """The files that ``path`` names, sorted by name: one file, those of a folder with one of ``suffixes`` (packed ones too),
    or those of a pattern; on this machine, or at an address. what: how errors call it.

    Raises InputError when there are none or the store does not answer, CircuitTracerError when a package is missing.
    """
    if is_address(path):
        return _find_remote(path, suffixes, what)
    location = Path(path).expanduser()
    if location.is_file():
        return [_local(location)]
    if path and location.is_dir():
        found = (file for file in location.rglob("*") if _ends_in(file.name, suffixes) and file.is_file())
        reason = f"the folder {location} holds no file that ends in {', '.join(suffixes)}; name the files by a pattern"
    else:
        found = (file for name in glob.glob(str(location), recursive=True) if (file := Path(name)).is_file())
        reason = f"no file at {location}"
    return [_local(file) for file in sorted(found)] or _nothing(path, reason, what)


def _ends_in(name: str, suffixes: Sequence[str]) -> bool:
    return PurePosixPath(without_packing(name)[0]).suffix in suffixes


def _local(path: Path) -> Place:
    return Place(str(path), path.stat().st_size)


def _nothing(path: str, reason: str, what: str) -> list[Place]:
    raise InputError(
        f"{what} is {path!r}: {reason}. Give a file, a folder, a pattern such as texts/**/*.txt, or the address of one."
    )


def _find_remote(address: str, suffixes: Sequence[str], what: str) -> list[Place]:
    system, root = open_system(address)
    protocol = address.split("://", 1)[0]
    try:
        if glob.has_magic(root) and not protocol.startswith("http"):
            found = system.glob(root, detail=True)
            reason = f"no file at {address}"
        elif system.isfile(root):
            found, reason = {root: system.info(root)}, ""
        else:
            every = system.find(root, detail=True)
            found = {name: each for name, each in every.items() if _ends_in(name, suffixes)}
            reason = f"nothing there ends in {', '.join(suffixes)}; name the files by a pattern"
    except Exception as error:  # whatever a store's library raises
        raise InputError(
            f"{what} is {address!r}, where nothing can be read: {first_line(error)}. Check the address, the network and "
            "your credentials for it."
        ) from error
    files = [
        Place(
            name, int(each.get("size") or 0), system, next((str(each[key]) for key in _VERSIONS if each.get(key)), None)
        )
        for name, each in sorted(found.items())
        if each.get("type") == "file"
    ]
    return files or _nothing(address, reason, what)


def open_system(address: str) -> tuple[Any, str]:
    """(fsspec's file system, path in it) of an address. CircuitTracerError says which package is missing, InputError which
    protocols there are.
    """
    from fsspec.core import url_to_fs

    try:
        system, root = url_to_fs(os.path.expanduser(address))
    except ImportError as error:  # its message says what to install
        raise CircuitTracerError(f"{address} cannot be opened: {first_line(error)}") from error
    except Exception as error:
        raise InputError(
            f"{address} cannot be opened: {first_line(error)}. Addresses are those of fsspec, such as s3://, gs://, hf:// and "
            "https://."
        ) from error
    return system, root
