"""Files of a folder and nothing else, whatever a request asks for."""

from __future__ import annotations

from pathlib import Path

from circuit_tracer.viewer.server.problems import NotThere


def file_inside(folder: Path, name: str) -> Path:
    """The file `name` of a folder, with all links followed.

    Raises NotThere, in the same words for a file that does not exist and for one that may not be seen: an absolute path, one
    that leads out of the folder by ``..`` or by a link, a hidden one, or no file.
    """
    missing = NotThere(f"no file {name[:200]!r} here")
    parts = name.split("/")
    if "\0" in name or "\\" in name or any(part in ("", "..") or part.startswith(".") for part in parts):
        raise missing
    try:
        root = folder.resolve(strict=True)
        found = root.joinpath(*parts).resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise missing from error
    if not (found.is_relative_to(root) and found.is_file()):
        raise missing
    return found
