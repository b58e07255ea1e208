"""Writing files so that nothing is lost: a temporary name first, moved into place when complete."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from circuit_tracer.errors import InputError, ResourceError


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; move it into place on success, remove it on failure.

    The old file stays intact until the new one is complete and on disk. Raises ResourceError, naming the path, when the
    operating system refuses (disk full, permission).
    """
    final = Path(path).absolute()
    require_writable_folder(final.parent)
    handle, name = tempfile.mkstemp(prefix=f".{final.name}.", suffix=".part", dir=final.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, final)
    except OSError as error:
        raise ResourceError(
            f"could not write {final}: {error.strerror or error}; the previous file, if any, is unchanged. "
            "Free some space or choose another path."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def require_writable_folder(folder: str | Path) -> Path:
    """Create ``folder`` if needed and prove that a file can be written there, before any work is spent.

    Raises InputError naming the folder and the reason.
    """
    folder = Path(folder).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"cannot write into the folder {folder}: {error.strerror or error}. Give a folder that you may write to."
        ) from error
    return folder


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
