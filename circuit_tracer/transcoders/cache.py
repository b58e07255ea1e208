"""The local cache of transcoders in native files: `<cache>/<org>/<repo>[/sub][@revision][+selection]/`.

An entry is complete when it holds config.yaml, which is written last. The directory is the argument, else the
environment variable CIRCUIT_TRACER_CACHE_DIR, else ~/.cache/circuit_tracer. Names are circuit-tracer's.
"""

from __future__ import annotations

import os
from pathlib import Path

from circuit_tracer.errors import InputError
from circuit_tracer.transcoders.config import CONFIG_NAME, NATIVE_FILE
from circuit_tracer.transcoders.references import HubReference, parse_reference


def get_cache_dir(cache_dir: str | Path | None = None) -> Path:
    """The cache directory; it need not exist.

    Args:
        cache_dir: None: CIRCUIT_TRACER_CACHE_DIR, else ~/.cache/circuit_tracer.

    Returns:
        The folder.
    """
    chosen = cache_dir or os.environ.get("CIRCUIT_TRACER_CACHE_DIR")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "circuit_tracer"


def get_cached_path(hf_ref: str, cache_dir: str | Path | None = None) -> Path:
    """Where the entry of a hub reference is or would be; InputError for a local folder, which needs no cache.

    Args:
        hf_ref: Hub reference, `org/name[/subfolder][@revision]`.
        cache_dir: The cache; None: `get_cache_dir()`.

    Returns:
        The folder; it need not exist.

    Raises:
        InputError: For a local folder, which needs no cache.
    """
    # A colon is no character for a name of a folder everywhere; a plus is none of a hub name.
    return get_cache_dir(cache_dir) / str(hub_reference(hf_ref)).replace(":", "+")


def is_cached(hf_ref: str, cache_dir: str | Path | None = None) -> bool:
    """Whether a complete entry exists.

    Args:
        hf_ref: Hub reference, `org/name[/subfolder][@revision]`.
        cache_dir: The cache; None: `get_cache_dir()`.

    Returns:
        Whether it does.
    """
    return (get_cached_path(hf_ref, cache_dir) / CONFIG_NAME).is_file()


def empty_cache(hf_ref: str | None = None, cache_dir: str | Path | None = None) -> None:
    """Delete the entry of ``hf_ref``, or every entry; only files that this cache writes are removed.

    Args:
        hf_ref: None: every entry.
        cache_dir: The cache; None: `get_cache_dir()`.
    """
    base = get_cache_dir(cache_dir)
    root = base if hf_ref is None else get_cached_path(hf_ref, cache_dir)
    folders = [root, *(path for path in root.rglob("*") if path.is_dir())] if hf_ref is None else [root]
    for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
        if not folder.is_dir():
            continue
        for path in folder.iterdir():
            if path.name == CONFIG_NAME or NATIVE_FILE.fullmatch(path.name):
                path.unlink()
        if folder != base and not any(folder.iterdir()):
            folder.rmdir()


def hub_reference(hf_ref: str) -> HubReference:
    """What names an entry; InputError for a local folder."""
    reference = parse_reference(hf_ref)
    if isinstance(reference, Path):
        raise InputError(f"{reference} is a local folder: it is read where it lies and needs no cache.")
    return reference
