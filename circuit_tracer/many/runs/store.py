"""The folder of a run, on this machine or wherever fsspec reaches (s3://, gs://, memory://): whole files by name.

A file is there entirely or not at all, also for whoever looks while it is written, and after a process was killed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from circuit_tracer.errors import InputError, ResourceError, first_line
from circuit_tracer.files import atomic_write, read_bytes, require_writable_folder, temporary_path
from circuit_tracer.files.places import is_address, open_system

LARGEST_FILE = 2**34  # bytes of a file of a run; graphs have megabytes
# Where a file appears when all of it has arrived. Elsewhere it is written under another name and moved into place.
_APPEARS_WHOLE = {"abfs", "abfss", "az", "gcs", "gs", "memory", "oci", "oss", "s3", "s3a"}
_OF_THIS_MACHINE = {"file", "local"}


@dataclass(frozen=True)
class Store:
    """Files below ``address``. Names have slashes, on every machine: `graphs/a.graph`. Cheap to make and safe to pickle.

    folder: where it lies, if on this machine; None: at an address.
    """

    address: str
    folder: Path | None
    _root: str = field(repr=False)
    _system: Any = field(default=None, compare=False, repr=False)

    @classmethod
    def at(cls, address: str | Path) -> Store:
        """The store at a folder's path or an address; it need not be there yet.

        Raises CircuitTracerError if a package for it is missing, InputError if nothing has such addresses.
        """
        address = str(address)
        if not is_address(address):
            folder = Path(address).expanduser().absolute()
            return cls(address, folder, str(folder))
        system, root = open_system(address)
        if _OF_THIS_MACHINE & _protocols(system):
            return cls(address, Path(root), root)
        return cls(address, None, root.rstrip("/"), system)

    def __str__(self) -> str:
        return self.address

    def where(self, name: str) -> str:
        """The path or address of a file, for messages and for opening it by other means."""
        _checked(name)
        return str(self.folder / name) if self.folder else f"{self.address.rstrip('/')}/{name}"

    def require_writable(self, folder: str) -> None:
        """Make a folder of it and prove that files can be written there, before any work; at an address nothing is tried.

        Clears what killed processes left. Raises InputError naming the folder and the reason.
        """
        if self.folder:
            require_writable_folder(self.folder / _checked(folder))

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises InputError if there is none, ResourceError if the store does not answer."""
        if self.folder:
            return read_bytes(self.folder / _checked(name), LARGEST_FILE)
        try:
            with self._answering("read", name, lacking=True):
                data: bytes = self._system.cat_file(self._path(name))
        except FileNotFoundError as error:
            raise InputError(f"no such file: {self.where(name)}. Check the address.") from error
        return data

    def write(self, name: str, data: bytes) -> None:
        """Write a file, over an older one if there is one. Raises ResourceError if it cannot be (a full disk, permission)."""
        if self.folder:
            with atomic_write(self.folder / _checked(name)) as path:
                path.write_bytes(data)
            return
        final = self._path(name)
        with self._answering("write", name):
            if _APPEARS_WHOLE & _protocols(self._system):
                self._system.pipe_file(final, data)
                return
            folder = final.rpartition("/")[0]
            self._system.makedirs(folder, exist_ok=True)
            temporary = f"{folder}/{temporary_path(Path(name)).name}"
            try:
                self._system.pipe_file(temporary, data)
                self._system.mv(temporary, final)
            except BaseException:
                with suppress(Exception):
                    self._system.rm_file(temporary)
                raise

    def remove(self, name: str) -> None:
        """Remove a file, if it is there. Raises ResourceError if it cannot be."""
        try:
            with self._answering("remove", name, lacking=True):
                if self.folder:
                    (self.folder / _checked(name)).unlink()
                else:
                    self._system.rm_file(self._path(name))
        except FileNotFoundError:
            pass

    def exists(self, name: str) -> bool:
        """Whether there is such a file. Raises ResourceError if the store does not answer."""
        if self.folder:
            return (self.folder / _checked(name)).is_file()
        with self._answering("look for", name):
            return bool(self._system.isfile(self._path(name)))

    def names(self, prefix: str = "") -> list[str]:
        """Names of the files that begin with ``prefix`` (`units/`), sorted, without hidden ones; none if nothing is there.

        Raises ResourceError if the store does not answer.
        """
        below = _checked(prefix).rpartition("/")[0]
        if self.folder:
            start = self.folder / below
            files = [file.relative_to(self.folder).as_posix() for file in start.rglob("*") if file.is_file()]
        else:
            try:
                with self._answering("list", below or ".", lacking=True):
                    cut = len(self._root) + bool(self._root)
                    files = [path[cut:] for path in self._system.find(self._path(below).rstrip("/"))]
            except FileNotFoundError:
                files = []
        return sorted(
            name for name in files if name.startswith(prefix) and not PurePosixPath(name).name.startswith(".")
        )

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """A path of this machine that holds a file: its own, or that of a copy which goes afterwards. Errors as `read`'s."""
        if self.folder:
            yield self.folder / _checked(name)
            return
        with _copy_of(name) as path:
            path.write_bytes(self.read(name))
            yield path

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A path of this machine to write to; what it holds at the end becomes the file. Errors as `write`'s.

        What is written there need not be atomic; if the block raises, nothing changes.
        """
        if self.folder:
            with atomic_write(self.folder / _checked(name)) as path:
                yield path
            return
        with _copy_of(name) as path:
            yield path
            self.write(name, path.read_bytes())

    def _path(self, name: str) -> str:
        return f"{self._root}/{_checked(name)}" if self._root else _checked(name)

    @contextmanager
    def _answering(self, action: str, name: str, lacking: bool = False) -> Iterator[None]:
        """Whatever a store's library raises becomes a ResourceError; lacking: but a FileNotFoundError, which stays one."""
        if self._system is not None:
            self._system.invalidate_cache()  # other machines write here too
        try:
            yield
        except Exception as error:
            if lacking and isinstance(error, FileNotFoundError):
                raise
            raise ResourceError(
                f"could not {action} {self.where(name)}: {first_line(error)}. Check the network, the room there and your "
                "credentials for it, then start again: what is finished is kept."
            ) from error


def _protocols(system: Any) -> set[str]:
    protocol = system.protocol
    return {protocol} if isinstance(protocol, str) else set(protocol)


def _checked(name: str) -> str:
    """A name that stays within the store. Raises InputError for one that does not."""
    if name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"):
        raise InputError(f"{name!r} cannot be the name of a file of a run: it leads out of its folder.")
    return name


@contextmanager
def _copy_of(name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="circuit-tracer-", ignore_cleanup_errors=True) as folder:
        yield Path(folder) / PurePosixPath(name).name
