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
from circuit_tracer.errors import InputError, shortened
from circuit_tracer.models.indices import parse_head


def parse_target(text: str) -> Target:
    """The target that a text names; what begins with none of the words above is a token. Raises InputError."""
    word, colon, rest = text.partition(":")
    read = _FORMS.get(word) if colon else None
    return text if read is None else read(rest)


def parse_attention(text: str) -> AttentionTarget:
    """The target of a text such as L5H3:7:4 or L5H3:-1:4:rest:key, what stands behind attn: above. Raises InputError."""
    parts = text.split(":")
    if not 3 <= len(parts) <= 5:
        raise InputError(f"the score {text!r} is not L5H3:QUERY:KEY, with :OTHER and :SIDE if wanted")
    (layer, head), query, key = parse_head(parts[0]), _number(parts[1], text), _number(parts[2], text)
    other = parts[3] if len(parts) > 3 else ""
    versus = other if other == REST else _number(other, text) if other else None
    side = parts[4] if len(parts) > 4 else "both"
    if side not in SIDES:
        raise InputError(f"side {side!r} of the score {text!r} is unknown; expected one of {', '.join(SIDES)}")
    return AttentionTarget(layer, head, query, key, versus, side)


def _token(text: str) -> Target:
    return int(text) if re.fullmatch(r"\d{1,18}", text) else f"id:{text}"


def _feature(text: str) -> Target:
    parts = text.split(":")
    if len(parts) != 3:
        raise InputError(f"target feature:{text} is not feature:LAYER:POSITION:INDEX")
    layer, position, index = (_number(part, text) for part in parts)
    return FeatureTarget(layer, position, index)


_FORMS: dict[str, Callable[[str], Target]] = {"id": _token, "feature": _feature, "attn": parse_attention}


def _number(part: str, text: str) -> int:
    if not re.fullmatch(r"-?\d{1,18}", part):
        raise InputError(f"{shortened(part)} in {shortened(text)} is no whole number, or none that a place can have")
    return int(part)
