"""JSON documents (and YAML ones) that notice damage: a digest of what they hold, kept in two of their own keys.

`digest` is of everything else in the same object; `digest_of` says so in words, and is there so that damage to either name
leaves the other behind: a document has both or neither. The digest is of the values, not of the text: a file that was
indented anew, or whose keys were sorted, is the same. What people change by hand is theirs to change: without both keys a
document is read as any other, and every error says so.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from circuit_tracer.errors import FileFormatError

DIGEST, DIGEST_OF = "digest", "digest_of"
KEYS = (DIGEST, DIGEST_OF)
ALL_ELSE = "everything else in this object"
_WHOLE_FLOAT = re.compile(r"(?<=[:,\[])-?(\d+)\.0(?=[,\]}])")
_HEX = 32  # digits of a digest: 128 bits


def digest_of(value: Any) -> str:
    """Digest of a JSON value; 1.0 counts as 1, as JavaScript writes it."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return "sha256:" + hashlib.sha256(_WHOLE_FLOAT.sub(r"\1", text).encode()).hexdigest()[:_HEX]


def sealed(document: Mapping[str, Any], beside: Any = None) -> dict[str, Any]:
    """The object with its digest; ``beside``: what else the digest is to cover, such as other files."""
    plain = {key: value for key, value in document.items() if key not in KEYS}
    return {**plain, DIGEST: digest_of(plain if beside is None else [plain, beside]), DIGEST_OF: ALL_ELSE}


def is_sealed(document: Mapping[str, Any], source: str) -> bool:
    """Whether it has a digest; FileFormatError when half of it is missing."""
    present = [key for key in KEYS if key in document]
    if len(present) == 1:
        raise FileFormatError(
            f"{source} is damaged: it has the key {present[0]!r} without {(set(KEYS) - set(present)).pop()!r}. "
            "Restore it, or, if you changed it yourself, remove both."
        )
    return bool(present)


def unsealed(document: Mapping[str, Any], source: str, remedy: str | None = None, beside: Any = None) -> dict[str, Any]:
    """The object without its digest, which must be right.

    remedy: given for files that nobody changes by hand, which must have a digest: what to do about a damaged one. Raises
    FileFormatError, naming ``source``.
    """
    plain = {key: value for key, value in document.items() if key not in KEYS}
    if not is_sealed(document, source):
        if remedy is not None:
            raise FileFormatError(f"{source} is damaged: it has no {DIGEST}. {remedy}")
    elif document[DIGEST] != digest_of(plain if beside is None else [plain, beside]):
        raise FileFormatError(
            f"{source} is not what was written: its {DIGEST} does not fit what it holds. "
            + (remedy or f"Restore it; if you changed it yourself, remove its keys {DIGEST} and {DIGEST_OF}.")
        )
    return plain
