"""Which of several dictionaries of a folder or repository is meant: `width=16k,l0=small`.

A repository often holds many dictionaries of one model, told apart by names of folders (`layer_3_width_16k_l0_small`). What
they differ in are *facets*; a selection fixes some of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from circuit_tracer.errors import InputError

Selection = Mapping[str, str]

# Facet -> what it is, for messages. `path` is any part of a file's path, for what has no facet.
FACETS = {
    "width": "number of features as the folder says it, such as 16k",
    "l0": "small, medium, big; or, where they are figures, a number (the closest of each layer is taken), smallest, largest",
    "affine": "yes or no",
    "expansion": "such as 8x",
    "k": "active features a token, such as 64",
    "layer": "some layers alone, such as 20, 5-8 or 5+9",
    "path": "a part of the path of the files",
}
_SUFFIX = re.compile(r"^(?P<name>[^:]+):(?P<selection>[A-Za-z_0-9]+=.+)$", re.DOTALL)


def split_selection(text: str) -> tuple[str, Selection]:
    """`org/repo:width=16k,l0=small` -> what stands before the colon, and the selection (empty without one)."""
    match = _SUFFIX.match(text)
    return (match["name"], parse_selection(match["selection"])) if match else (text, {})


def parse_selection(given: str | Selection | None) -> Selection:
    """A selection from `facet=value,facet=value` or a mapping, facets in the order of FACETS. Raises InputError."""
    if given is None:
        return {}
    if isinstance(given, str):
        pairs = [part.partition("=") for part in given.split(",")]
        if not all(name.strip() and equals and value.strip() for name, equals, value in pairs):
            raise InputError(f"selection {given!r} is not understood; write facet=value, as in width=16k,l0=small.")
        items = [(name.strip(), value.strip()) for name, _, value in pairs]
    else:
        items = [(str(name), str(value)) for name, value in given.items()]
    names = [name for name, _ in items]
    unknown = sorted(set(names) - set(FACETS))
    if unknown or len(set(names)) < len(names):
        known = "; ".join(f"{name}: {what}" for name, what in FACETS.items())
        what = f"no facet {', '.join(unknown)}" if unknown else "one value a facet"
        raise InputError(f"selection {given!r}: there is {what}. Facets are {known}.")
    chosen = dict(items)
    return {name: chosen[name] for name in FACETS if name in chosen}


def selection_text(selection: Selection) -> str:
    """As it is written: `width=16k,l0=small`."""
    return ",".join(f"{name}={value}" for name, value in selection.items())


def selected_layers(text: str) -> frozenset[int]:
    """The layers of `5+8-10`. Raises InputError."""
    found: set[int] = set()
    for part in text.split("+"):
        first, dash, last = part.partition("-")
        if not (first.isdecimal() and (last.isdecimal() or not dash)) or len(first + last) > 8:
            raise InputError(f"selection layer={text} is not understood; write layer=20, layer=5-8 or layer=5+9.")
        found.update(range(int(first), int(last if dash else first) + 1))
    return frozenset(found)
