"""The dictionaries whose features a graph holds: one, or several, whose features are numbered one behind the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.errors import InputError

ATTENTION = "attention"
PLACES = ("mlp", ATTENTION)


@dataclass(frozen=True)
class DictionaryPart:
    """One of them. name: what people call it ("transcoder", "adapter", "lorsa", ...). place: what its features stand for: the
    output of MLPs, or of attention. first: the index of its first feature in every layer.
    """

    name: str
    place: str
    first: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


DEFAULT = (DictionaryPart("transcoder", "mlp", 0),)


def parts_of(given: Sequence[DictionaryPart | dict[str, Any]]) -> tuple[DictionaryPart, ...]:
    """Checked, or as they stand in a file; none: one dictionary. Raises InputError."""
    parts = tuple(each if isinstance(each, DictionaryPart) else _read(each) for each in given) or DEFAULT
    firsts = [part.first for part in parts]
    if firsts[0] != 0 or sorted(set(firsts)) != firsts or any(part.place not in PLACES for part in parts):
        raise InputError(
            f"parts of a dictionary are {[part.to_json() for part in parts]}; the first begins at 0, each behind the one "
            f"before it, and their places are {' or '.join(PLACES)}"
        )
    places = [part.place for part in parts]
    if ATTENTION in places[:-1] or len({part.name for part in parts}) < len(parts):
        raise InputError(
            f"parts of a dictionary have names of their own, and that of attention is the last; found {parts}"
        )
    return parts


def _read(given: Any) -> DictionaryPart:
    if not isinstance(given, dict) or set(given) != {"name", "place", "first"}:
        raise InputError(f"a part of a dictionary is {given!r}; it has name, place and first")
    if not isinstance(given["name"], str) or type(given["first"]) is not int:
        raise InputError(f"a part of a dictionary is {given!r}; its name is a text, its first feature a whole number")
    return DictionaryPart(**given)


def part_numbers(parts: Sequence[DictionaryPart], index_n: Tensor) -> Tensor:
    """Which part each feature (n,) belongs to."""
    firsts = torch.tensor([part.first for part in parts], device=index_n.device)
    return torch.searchsorted(firsts, index_n, right=True) - 1
