"""Writing files so that nothing is lost: a temporary name first, moved into place when complete.

Temporary names carry machine and process, so that what a killed process left is known from what another one is writing.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import stat
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from circuit_tracer.errors import InputError, ResourceError

_PART = re.compile(r"\..*\.(?P<machine>[0-9a-f]{8})-(?P<process>\d+)\.[0-9a-f]{8}\.part")
_NAME_KEPT = 100  # characters of a name in its temporary one: file systems take 255 bytes
_ABANDONED = 7 * 24 * 3600.0  # seconds after which a temporary file of another machine is nobody's
_PROBE = 4096  # bytes written to find out whether there is room
_cleared: set[Path] = set()  # folders that this process has looked through


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; move it into place on success, remove it on failure.

    The old file stays intact until the new one is complete and on disk; where the path is a link, it is the file behind the
    link.

    Args:
        path: The file to write or replace.

    Yields:
        The temporary path, to be written to.

    Raises:
        InputError: If something that is no file is there (a device, a pipe, a folder), which moving a file into its place
            would remove.
        ResourceError: Naming the path, when the operating system refuses (disk full, permission).
    """
    final = _written(path)
    _make_folder(final.parent)
    if final.parent not in _cleared:
        clear_leftovers(final.parent)
    temporary = temporary_path(final)
    try:
        temporary.touch()
        yield temporary
        sync(temporary)
        os.replace(temporary, final)
    except (OSError, SafetensorError) as error:
        if isinstance(error, SafetensorError) and "os error" not in str(error):
            raise
        reason = error.strerror or error if isinstance(error, OSError) else error
        raise ResourceError(
            f"could not write {final}: {reason}; the previous file, if any, is unchanged. "
            "Free some space or choose another path."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """A file or folder on disk, so that a computer that loses power keeps it too. Windows cannot do that for folders.

    Args:
        path: A file or folder.
    """
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def temporary_path(final: Path) -> Path:
    """A free name beside ``final`` that says whose it is; what a killed process leaves under it is cleared later on.

    Args:
        final: The file to be.

    Returns:
        The path; nothing is there yet.
    """
    owner = f"{_machine()}-{os.getpid()}.{secrets.token_hex(4)}"
    return final.with_name(f".{final.name[:_NAME_KEPT]}.{owner}.part")


def clear_leftovers(folder: Path) -> None:
    """Remove the temporary files of processes that are gone."""
    _cleared.add(folder)
    with suppress(OSError):
        for entry in os.scandir(folder):
            if (match := _PART.fullmatch(entry.name)) and _is_gone(match["machine"], int(match["process"]), entry):
                with suppress(OSError):
                    os.unlink(entry.path)


def require_writable_folder(folder: str | Path) -> Path:
    """Create ``folder`` if needed and prove that a file can be written there, before any work is spent.

    Clears what killed processes left in it.

    Args:
        folder: Made if needed.

    Returns:
        The folder.

    Raises:
        InputError: Naming the folder and the reason.
    """
    folder = _make_folder(Path(folder).absolute())
    clear_leftovers(folder)
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(_PROBE))
    except OSError as error:
        raise _not_writable(folder, error) from error
    return folder


def require_writable_file(path: str | Path) -> Path:
    """`require_writable_folder` for the folder of a file; InputError also if the path is a folder or a device itself.

    Args:
        path: The file.

    Returns:
        The path.

    Raises:
        InputError: As `require_writable_folder`; also if the path is a folder or a device itself.
    """
    require_writable_folder(_written(path).parent)
    return Path(path)


def _written(path: str | Path) -> Path:
    """The file that a path means, behind links; InputError if something else is there."""
    final = Path(os.path.realpath(path))
    try:
        mode = os.lstat(final).st_mode
    except OSError:  # nothing there; what else is wrong is said when the file is written
        return final
    if stat.S_ISREG(mode):
        return final
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFLNK: "a link to itself",
    }
    raise InputError(f"{path} is {kinds.get(stat.S_IFMT(mode), 'a device')}; give the name of a file")


def _make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(folder, error) from error
    return folder


def _not_writable(folder: Path, error: OSError) -> InputError:
    return InputError(
        f"cannot write into the folder {folder}: {error.strerror or error}. Give a folder that you may write to, on a disk "
        "with room."
    )


def _machine() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _is_gone(machine: str, process: int, entry: os.DirEntry[str]) -> bool:
    """Whether nobody will finish a temporary file: its process has ended, or, where that cannot be told, long ago."""
    if machine != _machine() or os.name != "posix":
        return time.time() - entry.stat(follow_symlinks=False).st_mtime > _ABANDONED
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:  # of another user
        return False
    return False
