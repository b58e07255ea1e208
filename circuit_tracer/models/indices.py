"""Layers, heads and positions as people name them: read, and refused where a model or a prompt has none such."""

from __future__ import annotations

import re

from circuit_tracer.arguments import whole
from circuit_tracer.errors import InputError, shortened

Head = tuple[int, int]  # layer, head
_HEAD = re.compile(r"L(\d{1,9})H(\d{1,9})", re.ASCII | re.IGNORECASE)


def parse_head(text: str) -> Head:
    """(layer, head) of a text such as L5H3. Raises InputError."""
    found = _HEAD.fullmatch(text.strip())
    if found is None:
        raise InputError(f"{text!r} names no head; write layer and head as L5H3")
    return int(found[1]), int(found[2])


def require_layer(layer: int, n_layers: int) -> int:
    """The layer. Raises InputError for one that does not exist."""
    if not 0 <= whole(layer, "layer") < n_layers:
        raise InputError(f"layer {layer} does not exist; the model has layers 0 to {n_layers - 1}")
    return int(layer)


def require_head(layer: int, head: int, n_layers: int, n_heads: int) -> Head:
    """(layer, head). Raises InputError for one that does not exist."""
    layer, head = whole(layer, "layer"), whole(head, "head")
    if not (0 <= layer < n_layers and 0 <= head < n_heads):
        raise InputError(
            f"there is no head L{layer}H{head}; the model has layers 0 to {n_layers - 1}, each with heads 0 to {n_heads - 1}"
        )
    return layer, head


def checked_head(given: object, n_layers: int, n_heads: int) -> Head:
    """(layer, head) of a pair. Raises InputError for what is none, and for a head that does not exist."""
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise InputError(f"{shortened(given)} is no head; give (layer, head)")
    layer, head = given
    return require_head(layer, head, n_layers, n_heads)


def require_position(position: int, n_pos: int, name: str = "position") -> int:
    """The position, counted from the front. Raises InputError for one that the prompt does not have."""
    if not 0 <= whole(position, name) < n_pos:
        raise InputError(f"{name} {position} does not exist; the prompt has positions 0 to {n_pos - 1}")
    return int(position)


def from_the_front(position: int, n_pos: int, name: str = "position") -> int:
    """The position, given from the front or as -1, -2, ... from the end. Raises InputError for one that does not exist."""
    position = whole(position, name)
    return require_position(position + n_pos if -n_pos <= position < 0 else position, n_pos, name)
