"""Attention as transformers hands it over: one function for every architecture, that records or replays patterns.

`model.set_attn_implementation(NAME)` makes every layer of a transformers model call `_attention` with queries and keys after
rotary embedding and head norms, values, mask, scaling, softcap and sinks. Recording keeps the pattern of each layer;
replaying uses a kept pattern with live values, which is what a frozen-attention intervention needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

NAME = "circuit_tracer"


@dataclass
class AttentionTape:
    """Patterns by layer, each (H, P, P) with rows = queries. `replay` makes the forward pass use them instead of its own."""

    patterns: dict[int, Tensor] = field(default_factory=dict)
    replay: bool = False


_tape: ContextVar[AttentionTape | None] = ContextVar("attention_tape", default=None)


@contextmanager
def attention_tape(tape: AttentionTape) -> Iterator[AttentionTape]:
    """Record into (or replay from) `tape` every attention pattern computed inside the block."""
    token = _tape.set(tape)
    try:
        yield tape
    finally:
        _tape.reset(token)


def install(model: Any) -> None:
    """Route a transformers model's attention through this module."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, eager_mask)
    model.set_attn_implementation(NAME)


def attention_pattern(
    query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """Softmax weights (B, H, P, K) in at least float32; with sinks (H,) the rows sum to less than one."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    groups = query.shape[1] // key.shape[1]
    query, key = query.to(dtype), key.to(dtype).repeat_interleave(groups, dim=1)
    scores = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask[..., : key.shape[-2]].to(dtype)
    if sinks is None:
        return torch.softmax(scores, dim=-1)
    sink = sinks.to(dtype).reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
    return torch.softmax(torch.cat([scores, sink], dim=-1), dim=-1)[..., :-1]


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention function registered with transformers: (B, H, P, d) queries -> (B, P, H, d) outputs."""
    tape = _tape.get()
    if tape is not None and tape.replay:
        pattern = tape.patterns[module.layer_idx][None].to(query.device)
    else:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        pattern = attention_pattern(query, key, attention_mask, scale, softcap, s_aux)
        if tape is not None:
            tape.patterns[module.layer_idx] = pattern[0].detach()
    values = value.to(pattern.dtype).repeat_interleave(query.shape[1] // value.shape[1], dim=1)
    return torch.matmul(pattern, values).to(value.dtype).transpose(1, 2).contiguous(), None
