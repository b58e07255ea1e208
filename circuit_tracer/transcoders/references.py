"""References to transcoders: a local folder, or `org/repo[/sub/folder][@revision]` on the Hugging Face hub.

Either may end with a selection, `:width=16k,l0=small`, where it holds several dictionaries (selection.py).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlparse

from circuit_tracer.errors import InputError
from circuit_tracer.files import near_names
from circuit_tracer.transcoders.selection import Selection, parse_selection, selection_text, split_selection

ALIASES = {
    "gemma": "mwhanna/gemma-scope-transcoders",
    "llama": "mntss/transcoder-Llama-3.2-1B",
}
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]*")


class HubReference(NamedTuple):
    """``repo_id`` is org/repo; ``path`` a folder (for a file URI, a file) inside it; ``revision`` None means main.

    ``selection``: which of its dictionaries is meant, as text; None where there is but one.
    """

    repo_id: str
    path: str | None
    revision: str | None
    selection: str | None = None

    @property
    def scan(self) -> str:
        """circuit-tracer's name for where feature pages are found: `repo//sub@rev`."""
        return self._named("//")

    def __str__(self) -> str:
        return self._named("/")

    def _named(self, separator: str) -> str:
        where = self.repo_id if self.path is None else f"{self.repo_id}{separator}{self.path}"
        where = where if self.revision is None else f"{where}@{self.revision}"
        return where if self.selection is None else f"{where}:{self.selection}"


def parse_reference(reference: str | Path) -> Path | HubReference:
    """A folder that exists wins, relative ones included; then aliases, `hf://` URIs and hub names.

    Raises InputError for a path that does not exist and for what is neither path nor hub name.
    """
    return resolve(reference)[0]


def resolve(reference: str | Path, select: str | Selection | None = None) -> tuple[Path | HubReference, Selection]:
    """As `parse_reference`, with the selection that the reference ends with or that is given; of a hub name it is part.

    Raises InputError too for two selections, or one that is not understood.
    """
    text, selection = str(reference), parse_selection(select)
    if not os.path.isdir(Path(text).expanduser()):
        text, said = split_selection(text)
        if said and selection:
            raise InputError(
                f"{reference} says {selection_text(said)}, and {selection_text(selection)} is given too; choose."
            )
        selection = said or selection
    place = _place(text, isinstance(reference, Path))
    if isinstance(place, HubReference) and selection:
        place = place._replace(selection=selection_text(selection))
    return place, selection


def _place(text: str, is_path: bool) -> Path | HubReference:
    path = Path(text).expanduser()
    # os.path answers False where pathlib raises: names too long, or with a zero byte.
    if text and os.path.isdir(path):
        return path
    if os.path.isfile(path):
        raise InputError(f"{path} is a file; give the folder of the transcoder's files.")
    if is_path or path.is_absolute() or text.startswith((".", "~", "\\")):
        raise InputError(
            f"no such folder: {path}. {near_names(path, folders=True) or 'Give an existing folder, or org/repo of the hub.'}"
        )
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
        near = near_names(text, folders=True) if len(parts) == 1 else ""
        raise InputError(
            f"{text!r} is neither an existing folder nor a hub name. {near}{' ' * bool(near)}"
            f"Expected org/repo[/sub/folder][@revision][:facet=value], a folder, or one of: {', '.join(ALIASES)}."
        )
    return HubReference("/".join(parts[:2]), "/".join(parts[2:]) or None, revision)
