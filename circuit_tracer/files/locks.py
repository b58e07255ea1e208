"""Locks between processes, held by the operating system: one whose process has died, however it died, is free.

`locked` waits its turn, for what is read, changed and written again. `claimed` refuses at once, for what one process works on
for long, and leaves a hidden file that says which; it stays, since whoever removed it would let two in.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from circuit_tracer.errors import InputError, ResourceError, warn

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
    import msvcrt

_FILE = ".lock"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_NOT_OF_FOLDERS = {errno.EBADF, errno.EISDIR, errno.EINVAL}  # network file systems lock files only
_BUSY = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}
_held = threading.local()  # folders of this thread, which may ask again for what it has


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Inside, no other process and no other thread is in ``locked`` for the same folder, which must be there.

    Args:
        folder: Must be there.

    Raises:
        ResourceError: If it cannot be locked.
    """
    folder = Path(folder).absolute()
    counts: Counter[Path] = _held.__dict__.setdefault("counts", Counter())
    if counts[folder]:
        yield
        return
    handle = _locked_handle(folder)
    counts[folder] += 1
    try:
        yield
    finally:
        counts[folder] -= 1
        os.close(handle)


@contextmanager
def claimed(folder: str | Path, what: str) -> Iterator[None]:
    """Inside, the folder is this process' own for ``what`` ("trains in"); it must be there.

    Args:
        folder: The folder.
        what: What for, in words: "trains in".

    Raises:
        InputError: Naming the process, while another one has it.
    """
    folder = Path(folder).absolute()
    path = folder / _FILE
    handle = _opened(path, os.O_RDWR | os.O_CREAT)
    try:
        if not _lock(handle, path, wait=False):
            owner = os.read(handle, 200).decode("utf-8", "replace").strip()
            raise InputError(
                f"another process{f' ({owner})' if owner else ''} {what} {folder}. Wait until it has ended, end it, or choose "
                "another folder."
            )
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        os.close(handle)


def _locked_handle(folder: Path) -> int:
    if fcntl is not None:
        handle = _opened(folder, os.O_RDONLY)
        try:
            _lock(handle, folder, wait=True)
            return handle
        except OSError:
            os.close(handle)
    handle = _opened(folder / _FILE, os.O_RDWR | os.O_CREAT)
    try:
        _lock(handle, folder / _FILE, wait=True)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _opened(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags, 0o666)
    except OSError as error:
        raise ResourceError(
            f"cannot open {path}: {error.strerror or error}. It keeps apart the processes that write into that folder; choose "
            "one that you may write to."
        ) from error


def _lock(handle: int, path: Path, wait: bool) -> bool:
    """Whether the lock is had. A file system without locks has all for free, which is said.

    Raises OSError for a folder on a file system that locks files only.
    """
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        else:
            _lock_byte(handle, wait)
    except OSError as error:
        if error.errno in _NOT_OF_FOLDERS and path.is_dir():
            raise
        if error.errno in _NO_LOCKS:
            warn(f"the file system of {path} knows no locks: let one process at a time write there")
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
