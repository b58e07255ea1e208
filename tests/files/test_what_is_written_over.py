"""What is there already where a file is to be written: a link is followed, and what is no file is left alone."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from circuit_tracer.errors import InputError
from circuit_tracer.files import atomic_write, require_writable_file


@pytest.mark.parametrize("there", [True, False], ids=["to a file", "to nothing yet"])
def test_a_link_is_followed(there: bool, tmp_path: Path) -> None:
    real, link = tmp_path / "elsewhere" / "real.txt", tmp_path / "link.txt"
    real.parent.mkdir()
    if there:
        real.write_text("old")
    link.symlink_to(real)
    with atomic_write(require_writable_file(link)) as path:
        path.write_text("new")
    assert link.is_symlink()
    assert real.read_text() == "new"


def _device(path: Path) -> None:
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))  # another /dev/null
    except PermissionError:
        pytest.skip("only root makes devices")


def _socket(path: Path) -> None:
    os.chdir(path.parent)  # the names of sockets are short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)


NO_FILES: dict[str, Callable[[Path], None]] = {
    "a device": _device,
    "a pipe": os.mkfifo,
    "a socket": _socket,
    "a folder": os.mkdir,
    "a link to itself": lambda path: path.symlink_to(path),
}


@pytest.mark.skipif(os.name != "posix", reason="devices, pipes and sockets have names on POSIX systems alone")
@pytest.mark.parametrize("linked", [False, True], ids=["itself", "behind a link"])
@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_is_refused_and_stays(
    kind: str, linked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = tmp_path / "made"
    NO_FILES[kind](made)
    before = os.lstat(made)
    path = tmp_path / "link" if linked else made
    if linked:
        path.symlink_to(made)
    for write in (require_writable_file, lambda path: atomic_write(path).__enter__()):
        with pytest.raises(InputError, match=f"{path.name} is {kind}; give the name of a file"):
            write(path)
    after = os.lstat(made)
    assert (after.st_mode, after.st_ino) == (before.st_mode, before.st_ino)
    assert not list(tmp_path.glob(".*.part"))
