"""Activations with structure, for timing training steps: the same numbers for every engine. Imports torch only.

A layer's input is a sum of a few of many random directions, rarer ones stronger, which drift from layer to layer; its output is
what a random MLP makes of it. So features fire as unevenly as on text, and there is something to learn.

Letters: B tokens, S layers, D width, C concepts.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CONCEPTS = 2048
PRESENT = 24  # concepts in a token
DRIFT = 0.3  # share of a direction that is new in the next layer


class SyntheticActivations:
    """Batches of inputs and outputs (B, S, D), float32, of mean about 0 and variance about 1."""

    def __init__(self, n_layers: int, width: int, seed: int = 0, device: str = "cpu") -> None:
        self.n_layers, self.width = n_layers, width
        self.generator = torch.Generator(device).manual_seed(seed)
        self.device = device
        self.rarity_C = torch.arange(1, CONCEPTS + 1, device=device, dtype=torch.float32) ** -0.7
        self.directions_CD = self._normal(CONCEPTS, width)
        self.fresh_SDD = [self._normal(width, width) / width**0.5 for _ in range(n_layers)]
        self.mlp_SDD = [(self._normal(width, width), self._normal(width, width)) for _ in range(n_layers)]

    def batches(self, n_rows: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Ever new tokens."""
        while True:
            yield self._batch(n_rows)

    def _batch(self, n_rows: int) -> tuple[Tensor, Tensor]:
        present_BP = torch.multinomial(self.rarity_C.expand(n_rows, -1), PRESENT, generator=self.generator)
        strength_BP = self.rarity_C[present_BP] ** -0.25 * self._normal(n_rows, PRESENT).abs()
        stream_BD = torch.zeros(n_rows, self.width, device=self.device)
        for slot in range(PRESENT):
            stream_BD += strength_BP[:, slot, None] * self.directions_CD[present_BP[:, slot]]
        x_BSD = torch.empty(n_rows, self.n_layers, self.width, device=self.device)
        y_BSD = torch.empty_like(x_BSD)
        for layer in range(self.n_layers):
            stream_BD = _scaled((1 - DRIFT) * stream_BD + DRIFT * stream_BD @ self.fresh_SDD[layer])
            first_DD, second_DD = self.mlp_SDD[layer]
            x_BSD[:, layer] = stream_BD
            y_BSD[:, layer] = _scaled(torch.relu(stream_BD @ first_DD) @ second_DD)
        return x_BSD, y_BSD

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, device=self.device)


def _scaled(rows_BD: Tensor) -> Tensor:
    """Mean 0 and variance 1 over tokens and dimensions."""
    centred_BD = rows_BD - rows_BD.mean(0)
    return centred_BD / centred_BD.square().mean().sqrt()
