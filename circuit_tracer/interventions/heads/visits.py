"""Writing changes of heads into a pass over several copies of the prompt, each an experiment; holding heads still in one.

Letters: B copies, P positions, H heads, d d_head.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from circuit_tracer.interventions.heads.resolve import HeadChange, by_head
from circuit_tracer.models.run import Visit


def head_visits(carried: Sequence[Sequence[HeadChange]], n_heads: int) -> dict[str, Visit]:
    """What makes the changes of each copy, by site."""
    found: dict[tuple[str, int], list[tuple[int, HeadChange]]] = {}
    for copy, changes in enumerate(carried):
        for change in changes:
            found.setdefault(change.place, []).append((copy, change))

    def write(site: str, layer: int, activation: Tensor) -> Tensor | None:
        here = found.get((site, layer))
        if here is None:
            return None
        written = activation.clone()
        by_query = written.transpose(1, 2) if site == "attn.hook_pattern" else by_head(written, n_heads)
        for copy, change in here:  # (B, P, H, d), or (B, P, H, P)
            by_query[copy, change.positions, change.edit.head] = change.value.to(written)
        return written

    return {site: partial(write, site) for site in {site for site, _ in found}}


def holding_heads(held_BLH: Tensor) -> Visit:
    """A visit at `attn.hook_z`: what held heads give is what they give in copy 0, at all positions."""

    def hold(layer: int, z_BPN: Tensor) -> Tensor | None:
        here = held_BLH[:, layer].to(z_BPN.device)
        if not here.any():
            return None
        z_BPHd = by_head(z_BPN, here.shape[1])
        return torch.where(here[:, None, :, None], z_BPHd[:1], z_BPHd).flatten(2)

    return hold
