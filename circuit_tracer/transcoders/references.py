"""References to transcoders: a local folder, or `org/repo[/sub/folder][@revision]` on the Hugging Face hub."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlparse

from circuit_tracer.errors import InputError

ALIASES = {
    "gemma": "mwhanna/gemma-scope-transcoders",
    "llama": "mntss/transcoder-Llama-3.2-1B",
}
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]*")


class HubReference(NamedTuple):
    """``repo_id`` is org/repo; ``path`` a folder (for a file URI, a file) inside it; ``revision`` None means main."""

    repo_id: str
    path: str | None
    revision: str | None

    @property
    def scan(self) -> str:
        """circuit-tracer's name for where feature pages are found: `repo//sub@rev`."""
        where = self.repo_id if self.path is None else f"{self.repo_id}//{self.path}"
        return where if self.revision is None else f"{where}@{self.revision}"

    def __str__(self) -> str:
        where = self.repo_id if self.path is None else f"{self.repo_id}/{self.path}"
        return where if self.revision is None else f"{where}@{self.revision}"


def parse_reference(reference: str | Path) -> Path | HubReference:
    """A folder that exists wins, relative ones included; then aliases, `hf://` URIs and hub names.

    Raises InputError for a path that does not exist and for what is neither path nor hub name.
    """
    text = str(reference)
    path = Path(text).expanduser()
    # os.path answers False where pathlib raises: names too long, or with a zero byte.
    if text and os.path.isdir(path):
        return path
    if os.path.isfile(path):
        raise InputError(f"{path} is a file; give the folder of the transcoder's files.")
    if isinstance(reference, Path) or path.is_absolute() or text.startswith((".", "~", "\\")):
        raise InputError(f"no such folder: {path}. Give an existing folder, or org/repo of the Hugging Face hub.")
    text = ALIASES.get(text, text)
    return parse_hub_uri(text) if text.startswith("hf://") else _parse_hub_name(text)


def parse_hub_uri(uri: str) -> HubReference:
    """`hf://org/repo/path/to/file?revision=REV`."""
    parsed = urlparse(uri)
    parts = parsed.path.strip("/").split("/")
    if parsed.scheme != "hf" or not parts[0]:
        raise InputError(f"{uri!r} is not a hub URI; expected hf://org/repo/path?revision=REV.")
    revision = parse_qs(parsed.query).get("revision", [None])[0]
    return _checked([parsed.netloc, *parts], revision, uri)


def _parse_hub_name(text: str) -> HubReference:
    name, _, revision = text.partition("@")
    return _checked(name.split("/"), revision or None, text)


def _checked(parts: list[str], revision: str | None, text: str) -> HubReference:
    # Parts become folder names in the cache: `..` and the like must not pass.
    bad_revision = revision is not None and not all(map(_PART.fullmatch, revision.split("/")))
    if len(parts) < 2 or not all(map(_PART.fullmatch, parts)) or bad_revision:
        raise InputError(
            f"{text!r} is neither an existing folder nor a hub name. "
            f"Expected org/repo[/sub/folder][@revision], a folder, or one of: {', '.join(ALIASES)}."
        )
    return HubReference("/".join(parts[:2]), "/".join(parts[2:]) or None, revision)
