"""JSON and YAML documents that notice damage: the key `digest` of an object covers everything else in it.

The digest is of the values, not of the text: a file that was indented anew, or whose keys were sorted, is the same. What
people change by hand is theirs to change: labels and views are read with a warning then; elsewhere an object without the key
is read as any other, and the errors say so. Damage to the key's own name is noticed because it leaves a name that differs in
one bit.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from circuit_tracer.errors import FileFormatError, warn
from circuit_tracer.files.structured import read_json
from circuit_tracer.files.writing import atomic_write

DIGEST = "digest"


class ChangedFileWarning(UserWarning):
    """A file that people write in is not what was written: somebody changed it, or it is damaged."""


_WHOLE_FLOAT = re.compile(r"(?<=[:,\[])-?(\d+)\.0(?=[,\]}])")
_HEX = 32  # digits of a digest: 128 bits


def digest_of(value: Any) -> str:
    """Digest of a JSON value; 1.0 counts as 1, as JavaScript writes it."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(_WHOLE_FLOAT.sub(r"\1", text).encode()).hexdigest()[:_HEX]


def sealed(document: Mapping[str, Any], beside: Any = None) -> dict[str, Any]:
    """The object with its digest; ``beside``: what else the digest is to cover, such as other files."""
    plain = {key: value for key, value in document.items() if key != DIGEST}
    return {**plain, DIGEST: digest_of(plain if beside is None else [plain, beside])}


def is_sealed(document: Mapping[Any, Any], source: str) -> bool:
    """Whether it has a digest; FileFormatError when there is a key that one bit turns into it."""
    if damaged := next((key for key in document if isinstance(key, str) and _one_bit(key)), None):
        raise FileFormatError(f"{source} is damaged: it has the key {damaged!r}, which was {DIGEST!r}. Restore it.")
    return DIGEST in document


def unsealed(
    document: Mapping[str, Any], source: str, remedy: str | None = None, beside: Any = None, by_hand: bool = False
) -> dict[str, Any]:
    """The object without its digest, which must be right.

    by_hand: what people write in: a digest that is not right is a `ChangedFileWarning`. remedy: given for files that nobody
    changes by hand, which must have a digest: what to do about a damaged one. Raises FileFormatError, naming ``source``.
    """
    plain = {key: value for key, value in document.items() if key != DIGEST}
    if not is_sealed(document, source):
        if remedy is not None:
            raise FileFormatError(f"{source} is damaged: it has no {DIGEST}. {remedy}")
    elif not _fits(document[DIGEST], plain if beside is None else [plain, beside]):
        if by_hand:
            warn(
                f"{source} was changed since it was written, by hand or by damage; it is taken as it is now",
                ChangedFileWarning,
            )
            return plain
        raise FileFormatError(
            f"{source} is not what was written: its {DIGEST} does not fit what it holds. "
            + (remedy or f"Restore it; if you changed it yourself, remove its {DIGEST}.")
        )
    return plain


def read_sealed(path: Path, remedy: str) -> dict[str, Any]:
    """The object in a JSON file of `write_sealed`. InputError if it is missing, FileFormatError, with ``remedy``, if it is
    damaged.
    """
    try:
        found = read_json(path, halves=True)
        if not isinstance(found, dict):
            raise FileFormatError(f"{path} holds {type(found).__name__}, no object.")
    except FileFormatError as error:
        raise FileFormatError(f"{error} {remedy}") from error
    return unsealed(found, str(path), remedy)


def write_sealed(path: Path, document: Mapping[str, Any], **options: Any) -> None:
    """Write an object with its digest as JSON, moved into place when complete; ``options`` of `json.dumps`."""
    text = json.dumps(sealed(as_written(document)), allow_nan=False, **options)
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def as_written(value: Any) -> Any:
    """A value as it comes back from a JSON file: names are text, and half a surrogate pair is a question mark."""
    return json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))


def _one_bit(key: str) -> bool:
    """Whether a name differs from that of the digest in one bit."""
    found, name = key.encode("utf-8", "replace"), DIGEST.encode()
    return len(found) == len(name) and (int.from_bytes(found) ^ int.from_bytes(name)).bit_count() == 1


def _fits(digest: Any, value: Any) -> bool:
    try:
        return bool(digest == digest_of(value))
    except TypeError:  # YAML has keys that are no text, and cannot be sorted
        return False
