"""Targets as people type them: on the command line, and in the page's dialog.

| text | target |
|---|---|
| ` Austin` | the token of that text |
| `id:1234` | the token of that id |
| `feature:LAYER:POSITION:INDEX` | a feature's pre-activation |
| `attn:L5H3:QUERY:KEY` | the score of layer 5's head 3, query looking at key |
| `attn:L5H3:QUERY:KEY:OTHER` | the same less the score of another key; `rest` for all others, by their attention |
| `attn:L5H3:QUERY:KEY:OTHER:SIDE` | one side of it, `query` or `key`; OTHER may be empty |

Positions are counted from 0, or from the end as -1, -2, ...
"""

from __future__ import annotations

import re
from collections.abc import Callable

from circuit_tracer.attribution.contrast import REST
from circuit_tracer.attribution.stream_targets import SIDES, AttentionTarget
from circuit_tracer.attribution.targets import FeatureTarget, Target
from circuit_tracer.errors import InputError

_HEAD = re.compile(r"L(\d+)H(\d+)", re.IGNORECASE)


def parse_target(text: str) -> Target:
    """The target that a text names; what begins with none of the words above is a token. Raises InputError."""
    word, colon, rest = text.partition(":")
    read = _FORMS.get(word) if colon else None
    return text if read is None else read(text, rest.split(":"))


def parse_head(text: str) -> tuple[int, int]:
    """(layer, head) of a text such as L5H3. Raises InputError."""
    found = _HEAD.fullmatch(text.strip())
    if found is None:
        raise InputError(f"{text!r} names no head; write layer and head as L5H3")
    return int(found[1]), int(found[2])


def _token(text: str, parts: list[str]) -> Target:
    return int(parts[0]) if len(parts) == 1 and parts[0].isdecimal() else text


def _feature(text: str, parts: list[str]) -> Target:
    if len(parts) != 3:
        raise InputError(f"target {text!r} is not feature:LAYER:POSITION:INDEX")
    layer, position, index = (_number(part, text) for part in parts)
    return FeatureTarget(layer, position, index)


def _attention(text: str, parts: list[str]) -> Target:
    if not 3 <= len(parts) <= 5:
        raise InputError(f"target {text!r} is not attn:L5H3:QUERY:KEY, with :OTHER and :SIDE if wanted")
    (layer, head), query, key = parse_head(parts[0]), _number(parts[1], text), _number(parts[2], text)
    other = parts[3] if len(parts) > 3 else ""
    versus = other if other == REST else _number(other, text) if other else None
    side = parts[4] if len(parts) > 4 else "both"
    if side not in SIDES:
        raise InputError(f"side {side!r} of target {text!r} is unknown; expected one of {', '.join(SIDES)}")
    return AttentionTarget(layer, head, query, key, versus, side)


_FORMS: dict[str, Callable[[str, list[str]], Target]] = {"id": _token, "feature": _feature, "attn": _attention}


def _number(part: str, text: str) -> int:
    if not re.fullmatch(r"-?\d+", part):
        raise InputError(f"{part!r} in target {text!r} is no whole number")
    return int(part)
