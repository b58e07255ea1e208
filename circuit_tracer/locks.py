"""Locks between processes, held by the operating system: one whose process has died, however it died, is free.

`locked` waits its turn, for what is read, changed and written again. `claimed` refuses at once, for what one process works on
for long. Both lie in a hidden file beside what they guard, which stays: whoever removed it would let two in.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from circuit_tracer.errors import InputError, ResourceError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
    import msvcrt

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_BUSY = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}
_held = threading.local()  # locks of this thread, which may ask again for what it has


@contextmanager
def locked(folder: str | Path, name: str) -> Iterator[None]:
    """Inside, no other process and no other thread is in ``locked`` for the same folder and name.

    The folder must be there. Raises ResourceError if the lock's file cannot be written.
    """
    path = lock_path(Path(folder), name)
    counts: Counter[Path] = _held.__dict__.setdefault("counts", Counter())
    if counts[path]:
        yield
        return
    handle = _opened(path)
    try:
        _lock(handle, path, wait=True)
        counts[path] += 1
        try:
            yield
        finally:
            counts[path] -= 1
    finally:
        os.close(handle)


@contextmanager
def claimed(folder: str | Path, name: str, what: str) -> Iterator[None]:
    """Inside, the folder is this process' own for ``what`` ("trains here").

    Raises InputError, naming the process, while another one has it.
    """
    path = lock_path(Path(folder), name)
    handle = _opened(path)
    try:
        if not _lock(handle, path, wait=False):
            owner = os.pread(handle, 200, 0).decode("utf-8", "replace") if hasattr(os, "pread") else ""
            raise InputError(
                f"another process{f' ({owner.strip()})' if owner.strip() else ''} {what} {Path(folder).absolute()}. Wait "
                "until it has ended, end it, or choose another folder."
            )
        os.truncate(handle, 0)
        os.write(handle, f"{os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        os.close(handle)


def lock_path(folder: Path, name: str) -> Path:
    """The file of a lock."""
    return folder.absolute() / f".{name}.lock"


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ResourceError(
            f"cannot write {path}: {error.strerror or error}. It keeps processes apart that write into that folder; choose "
            "one that you may write to."
        ) from error


def _lock(handle: int, path: Path, wait: bool) -> bool:
    """Whether the lock is had. A file system without locks has all for free, which is said."""
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        else:
            _lock_byte(handle, wait)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            warnings.warn(
                f"the file system of {path.parent} knows no locks: let one process at a time write there", stacklevel=4
            )
            return True
        if not wait and error.errno in _BUSY:
            return False
        raise ResourceError(f"cannot lock {path}: {error.strerror or error}") from error
    return True


def _lock_byte(handle: int, wait: bool) -> None:
    """Windows: a byte far behind the end, so that the owner's name can be read."""
    os.lseek(handle, 2**30, os.SEEK_SET)
    while True:
        try:
            msvcrt.locking(handle, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
            break
        except OSError:  # after ten seconds of waiting
            if not wait:
                raise
    os.lseek(handle, 0, os.SEEK_SET)
