"""Attention as transformers hands it over: one function for every architecture, that records or replays patterns.

A configuration whose attention implementation is `NAME` makes every layer of a transformers model call `_attention` with
queries and keys after rotary embedding and head norms, values, mask, scaling, softcap and sinks; `models/run.py` lets its own
passes, and no others, find it there. Recording keeps the pattern of each layer, or for long prompts what it is made of;
replaying uses a kept pattern with live values, which is what a frozen-attention intervention needs. Places within attention
(`models/sites.py`) are visited here.

Letters: B batch, H heads, K key/value heads, P positions, d d_head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from circuit_tracer.errors import InputError, UnsupportedModelError
from circuit_tracer.kernels.attend_back import Scores
from circuit_tracer.models.mixing import Scales
from circuit_tracer.models.whose import tape_of

NAME = "circuit_tracer"
QUERIES_A_TILE = 128  # rows of the pattern that exist at once when patterns are not kept, and are gone over in cache


class Scoring(NamedTuple):
    """What makes a score, and a pattern, of queries and keys: cap(scaling * <q, k>) for first[q] <= k <= q, and sinks."""

    scaling: float
    softcap: float | None
    sinks: Tensor | None  # (H,)
    first: Tensor  # (P,) the first key that each query sees


@dataclass
class AttentionTape:
    """Patterns by layer, each (H, P, P) with rows = queries; with `recompute`, the scores they can be made from instead.

    `replay` makes the forward pass use the patterns instead of its own; scores that are visited then are what the softmax would
    be taken of, and what a visit makes of them does nothing. Scales of values and of what the heads give are recorded and
    replayed with the patterns. keep: whether anything of these is recorded. visits: by (site,
    layer), what is called with an activation on its way and may return another (models/run.py). scoring: by layer, how scores
    are made, where a dictionary is given for it.
    """

    patterns: dict[int, Tensor] = field(default_factory=dict)
    replay: bool = False
    recompute: bool = False
    scores: dict[int, Scores] = field(default_factory=dict)
    keep: bool = True
    visits: Mapping[tuple[str, int], Callable[[int, Tensor], Tensor | None]] = field(default_factory=dict)
    several: bool = False  # patterns are (B, H, P, P), of all sequences, and scales (B * P, ...)
    scales: dict[int, Scales] = field(default_factory=dict)  # by layer, where there is more than a pattern
    ungated: dict[int, Tensor] = field(
        default_factory=dict
    )  # by layer, on its way: what the heads give before their gate
    scoring: dict[int, Scoring] | None = None
    masks: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # that were looked at, by identity
    gated: frozenset[int] = frozenset()  # layers whose heads are multiplied by a gate, which is to be found out

    def visited(self, visits: Mapping[tuple[str, int], Callable[[int, Tensor], Tensor | None]]) -> AttentionTape:
        """This tape, with visits. Raises InputError for those of patterns that never exist as a whole."""
        for site, layer in visits:
            if self.recompute and site in ("attn.hook_scores", "attn.hook_pattern"):
                raise InputError(
                    f"{site} of layer {layer} does not exist in a pass that makes patterns tile by tile; keep patterns"
                )
        return replace(self, visits=visits)

    def looked_at(self, mask: Tensor | None, n_pos: int) -> tuple[Tensor, Tensor]:
        """A mask, which layers share, and the first key that each query sees (`_first_keys`)."""
        if mask is None or id(mask) not in self.masks:
            first = _first_keys(mask, n_pos)
            self.masks[id(mask)] = (cast(Tensor, mask), first)
        return self.masks[id(mask)]

    def gate(self, layer: int, given_BPO: Tensor) -> Tensor:
        """What enters the output projection of a gated layer, (B, P, O), in whose attention ones stood in for what the heads
        give: so what comes here is the gate, which is recorded, or replayed.
        """
        mixed_BPO = self.ungated.pop(layer).flatten(2)
        if self.replay:
            held = self.scales[layer].output
            return mixed_BPO if held is None else mixed_BPO * held.to(mixed_BPO)
        dtype = torch.promote_types(given_BPO.dtype, torch.float32)
        self.scales[layer] = Scales(output=self.kept(given_BPO.to(dtype)))
        return mixed_BPO * given_BPO

    def kept(self, made_BPX: Tensor) -> Tensor:
        """Of all sequences, one after the other, or of the one that there is."""
        return (made_BPX.flatten(0, 1) if self.several else made_BPX[0]).detach()

    def visit(self, name: str, layer: int, activation: Tensor) -> Tensor:
        """The activation at `attn.hook_{name}`, or what stands in for it."""
        visit = self.visits.get((f"attn.hook_{name}", layer))
        new = None if visit is None else visit(layer, activation)
        return activation if new is None else new.to(activation.dtype).reshape(activation.shape)


_UNHEARD = AttentionTape(keep=False)


@cache
def register() -> None:
    """Make this module's attention known to transformers as `NAME`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, eager_mask)


def attention_pattern(
    query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """Softmax weights (B, H, P, K) in at least float32; with sinks (H,) the rows sum to less than one."""
    return _softmax(_scores(query, key, mask, scaling, softcap), sinks)


def _softmax(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Of the last dimension; sinks (H,) take their share and are left out."""
    if sinks is None:
        return torch.softmax(scores, dim=-1)
    sink = sinks.to(scores.dtype).reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
    return torch.softmax(torch.cat([scores, sink], dim=-1), dim=-1)[..., :-1]


def _scores(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, softcap: float | None) -> Tensor:
    """What the softmax is taken of, (B, H, P, K) in at least float32."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    groups = query.shape[1] // key.shape[1]
    query, key = query.to(dtype), key.to(dtype).repeat_interleave(groups, dim=1)
    scores = torch.matmul(query, key.transpose(-1, -2)).mul_(scaling)
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    return scores if mask is None else scores.add_(mask[..., : key.shape[-2]].to(dtype))


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
    indices: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention function registered with transformers: (B, H, P, d) queries -> (B, P, H, d) outputs."""
    tape, layer = tape_of(module) or _UNHEARD, module.layer_idx
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if indices is not None:
        attention_mask = _only_chosen(attention_mask, indices, query, key.shape[2])
    if tape.scoring is not None:
        tape.scoring[layer] = Scoring(scale, softcap or None, s_aux, _first_keys(attention_mask, query.shape[2]))
    query, key, value = (tape.visit(name, layer, one) for name, one in (("q", query), ("k", key), ("v", value)))
    if tape.recompute:
        mask, first = tape.looked_at(attention_mask, query.shape[2])
        mixed, made_of = _in_tiles(query, key, value, mask, first, scale, softcap, s_aux)
        if tape.keep:
            tape.scores[layer] = made_of
        return _given(tape, layer, mixed.to(value.dtype)), None
    if tape.replay:
        if ("attn.hook_scores", layer) in tape.visits:
            tape.visit("scores", layer, _scores(query, key, attention_mask, scale, softcap))
        pattern = tape.patterns[layer].to(query.device).expand(len(query), -1, -1, -1)
    else:
        scores = tape.visit("scores", layer, _scores(query, key, attention_mask, scale, softcap))
        pattern = _softmax(scores, s_aux)
        if tape.keep:
            tape.patterns[layer] = (pattern if tape.several else pattern[0]).detach()
    pattern = tape.visit("pattern", layer, pattern)
    values = value.to(pattern.dtype).repeat_interleave(query.shape[1] // value.shape[1], dim=1)
    return _given(tape, layer, torch.matmul(pattern, values).to(value.dtype)), None


def _only_chosen(mask: Tensor | None, indices_BPn: Tensor, query: Tensor, n_keys: int) -> Tensor:
    """The mask, for queries that see only the keys which an indexer has chosen for each (DeepSeek V3.2)."""
    hidden = torch.ones(*indices_BPn.shape[:2], n_keys, dtype=torch.bool, device=indices_BPn.device)
    hidden = hidden.scatter(-1, indices_BPn.long(), False)[:, None]
    own = torch.zeros_like(hidden, dtype=query.dtype) if mask is None else mask[..., :n_keys]
    return own.masked_fill(hidden, torch.finfo(own.dtype).min)


def _given(tape: AttentionTape, layer: int, mixed_BHPd: Tensor) -> Tensor:
    """What the heads give, (B, P, H, d); ones in its place where a gate is to be found out (`AttentionTape.gate`)."""
    given = mixed_BHPd.transpose(1, 2).contiguous()
    if layer not in tape.gated:
        return given
    tape.ungated[layer] = given
    return torch.ones_like(given)


def _in_tiles(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    first: Tensor,
    scaling: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> tuple[Tensor, Scores]:
    """Outputs (1, H, P, d) of attention and the scores behind them; `QUERIES_A_TILE` rows of the pattern exist at once.
    first: of the keys that each query sees.
    """
    dtype, n_pos = torch.promote_types(query.dtype, torch.float32), query.shape[2]
    values = value.to(dtype).repeat_interleave(query.shape[1] // value.shape[1], dim=1)
    mixed, lse = torch.empty_like(query, dtype=dtype), torch.empty_like(query[0, :, :, 0], dtype=dtype)
    for start in range(0, n_pos, QUERIES_A_TILE):
        rows = slice(start, min(n_pos, start + QUERIES_A_TILE))
        seen = slice(int(first[start]), rows.stop)  # keys
        scores = _scores(query[:, :, rows], key[:, :, seen], None, scaling, softcap)
        # keys before the tile are seen by all of its queries, unless a window begins among them
        hidden = start if int(first[rows.stop - 1]) <= seen.start else seen.start
        scores[..., hidden - seen.start :].add_(mask[..., rows, hidden : seen.stop].to(dtype))
        largest = scores.amax(-1, keepdim=True)
        weight = scores.sub_(largest).exp_()
        total = weight.sum(-1, keepdim=True)
        lse[:, rows] = (largest + total.log())[0, ..., 0]
        if sinks is not None:
            lse[:, rows] = torch.logaddexp(lse[:, rows], sinks.to(dtype)[:, None])
            total = (lse[None, :, rows, None] - largest).exp_()
        mixed[:, :, rows] = torch.matmul(weight, values[:, :, seen]) / total
    return mixed, Scores(query[0].to(dtype), key[0].to(dtype), lse, first, scaling, softcap or None)


def _first_keys(mask: Tensor | None, n_pos: int) -> Tensor:
    """The first key (P,) that each query sees, from a mask (1, 1, P, P or more) that is 0 where it may look.

    Raises UnsupportedModelError unless each query sees all keys from there up to itself, and `first` does not fall.
    """
    if mask is None:
        raise UnsupportedModelError(
            "this model hands no mask to its attention; its patterns cannot be recomputed, so long prompts cannot be traced "
            "and scores not explained"
        )
    place, lows, others = torch.arange(n_pos, device=mask.device), [], []
    for start in range(0, n_pos, QUERIES_A_TILE):
        query = place[start : start + QUERIES_A_TILE, None]
        seen = mask[0, 0, start : start + QUERIES_A_TILE, :n_pos] == 0
        low = seen.to(torch.uint8).argmax(dim=1)
        lows.append(low)
        others.append((seen != ((place >= low[:, None]) & (place <= query))).any())
    found = torch.cat([*lows, torch.stack(others)]).cpu()  # a device is asked once
    first = found[:n_pos]
    if bool(found[n_pos:].any()) or bool((first.diff() < 0).any()):
        raise UnsupportedModelError(
            "this model's attention is neither causal nor causal within a window; its patterns cannot be recomputed, "
            f"so that long prompts (this one has {n_pos} tokens) cannot be traced and scores not explained"
        )
    return first
