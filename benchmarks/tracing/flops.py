"""Floating-point operations of a set of attribution rows, whatever the engine.

A row for a target at (layer l_t, position p_t) sees positions 0..p_t and layers below l_t only; with d d_model,
h d_head, H heads, G key/value heads, P' = p_t + 1, and C_l(p) decoder rows of active features that write to layer l at
positions <= p:

    read off at every layer l < l_t        2 d (C_l(p_t) + P')      features and errors
    attention at every layer l <= l_t      2 P' d h (H + G)         W_O and W_V
                                           + H h P' (P' + 1)        the causal pattern
      but at the row's first layer its gradient stands at one position: W_O and the pattern once, W_V at P' positions
    token columns                          2 d P'

This is the plain way down. An engine that finds a shorter one (ours goes through the first layer's attention with a table of
tokens) is credited with the plain one: what is compared is rows a second, in units of the machine.

One multiplication and one addition are two operations. Norms, copies and the selection of rows count as nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Sizes:
    n_layers: int
    d_model: int
    d_head: int
    n_heads: int
    n_key_value_heads: int


def decoder_rows(active: Array, n_layers: int, n_pos: int, cross_layer: bool) -> Array:
    """C (L, P): how many decoder rows of active features (N, 3) write to layer l at positions <= p."""
    counts = np.zeros((n_layers, n_pos))
    np.add.at(counts, (active[:, 0], active[:, 1]), 1)
    if cross_layer:
        counts = counts.cumsum(0)
    return counts.cumsum(1)


def row_flops(sizes: Sizes, active: Array, layer: Array, position: Array, cross_layer: bool, n_pos: int) -> float:
    """Operations for the targets at `layer` (n_layers: a logit) and `position`, each (T,)."""
    d, h, H, G = sizes.d_model, sizes.d_head, sizes.n_heads, sizes.n_key_value_heads
    written = decoder_rows(active, sizes.n_layers, n_pos, cross_layer)
    below = np.vstack([np.zeros((1, n_pos)), written.cumsum(0)])  # (L+1, P): decoder rows in all layers < l
    P = position + 1.0
    contract = 2 * d * (below[layer, position] + layer * P) + 2 * d * P
    first = 2 * d * h * H + 2 * H * h * P + 2 * P * d * h * G
    full = 2 * P * d * h * (H + G) + H * h * P * (P + 1)
    attention_layers = np.minimum(layer + 1, sizes.n_layers)
    return float((contract + first + (attention_layers - 1) * full).sum())
