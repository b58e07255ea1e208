"""JSON documents of a run, with digests, so that damage is noticed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from circuit_tracer.errors import FileFormatError, shortened
from circuit_tracer.files import parse_json
from circuit_tracer.files.digests import sealed, unsealed
from circuit_tracer.many.runs.store import Store


def write_document(store: Store, name: str, document: Mapping[str, Any]) -> None:
    """Write an object. Equal objects give equal bytes."""
    store.write(name, (json.dumps(sealed(document), ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_document(store: Store, name: str, remedy: str) -> dict[str, Any]:
    """The object. Raises InputError if there is no such file, FileFormatError, with ``remedy``, if it is damaged."""
    where = store.where(name)
    try:
        found = parse_json(store.read(name), where)
    except FileFormatError as error:
        raise FileFormatError(f"{error} {remedy}") from error
    if not isinstance(found, dict):
        raise FileFormatError(f"{where} holds {shortened(found)}; expected an object. {remedy}")
    return unsealed(found, where, remedy)


def damaged(store: Store, name: str, error: object, remedy: str) -> FileFormatError:
    """The error for a document that says something else than it should."""
    return FileFormatError(f"{store.where(name)} is damaged: {error}. {remedy}")
