"""Targets as people type them."""

from __future__ import annotations

from typing import Any

import pytest

from circuit_tracer import AttentionTarget, FeatureTarget
from circuit_tracer.attribution.target_text import parse_target
from circuit_tracer.errors import InputError
from circuit_tracer.models.indices import parse_head

UNDERSTOOD: dict[str, Any] = {
    " Austin": " Austin",
    "": "",
    "id:12": 12,
    "id:twelve": "id:twelve",
    "12": "12",
    "a:b": "a:b",
    "feature:3:-1:77": FeatureTarget(3, -1, 77),
    "attn:L5H3:7:4": AttentionTarget(5, 3, 7, 4),
    "attn:l5h3:-1:-4:2": AttentionTarget(5, 3, -1, -4, 2),
    "attn:L0H11:7:4:rest": AttentionTarget(0, 11, 7, 4, "rest"),
    "attn:L0H11:7:4::key": AttentionTarget(0, 11, 7, 4, None, "key"),
    "attn:L0H11:7:4:3:query": AttentionTarget(0, 11, 7, 4, 3, "query"),
}
REFUSED = {
    "attn:L5H3:7": "is not L5H3:QUERY:KEY",
    "attn:L5H3:7:4:3:key:2": "is not L5H3:QUERY:KEY",
    "attn:5.3:7:4": "names no head",
    f"attn:L{'9' * 5000}H3:7:4": "names no head",
    f"attn:L5H3:{'9' * 5000}:4": "no whole number",
    f"feature:1:2:{'9' * 5000}": "no whole number",
    "attn:L5H3:seven:4": "'seven' in .* is no whole number",
    "attn:L5H3:7:4:others": "'others' in .* is no whole number",
    "attn:L5H3:7:4:rest:left": "side 'left'",
    "feature:3:77": "is not feature:LAYER:POSITION:INDEX",
    "feature:3:x:77": "'x' in '3:x:77' is no whole number",
}


@pytest.mark.parametrize("text", UNDERSTOOD)
def test_what_a_text_means(text: str) -> None:
    assert parse_target(text) == UNDERSTOOD[text]
    assert type(parse_target(text)) is type(UNDERSTOOD[text])


@pytest.mark.parametrize("text", REFUSED)
def test_what_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=REFUSED[text]):
        parse_target(text)


def test_heads() -> None:
    assert parse_head("L12H0") == (12, 0)
    with pytest.raises(InputError, match="names no head"):
        parse_head("L12")
