"""Passes of the model, one after the other: what of a row a rank makes by itself, so that a thread may go ahead with it.

Letters: b sequences of a pass, P positions, n = tokens of this rank's share, D width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuit_tracer.models.model_pass import ModelPass
from circuit_tracer.models.run import fast_attention
from circuit_tracer.ranks import Ranks
from circuit_tracer.text.packing import Packer
from circuit_tracer.training.data.ahead import Ahead

PASSES_AHEAD = 1  # made on an accelerator while the one before is used ...
TEXTS_AHEAD = 4  # ... and of the sequences alone, where the model would take a CPU's cores from the training step


@dataclass(frozen=True)
class Pass:
    """The sequences of a pass, where the packer stands behind them, and this rank's activations if the model has run."""

    ids_bP: Tensor
    behind: dict[str, Any]
    x: list[Tensor] | None = None  # S times (n, D)
    y: list[Tensor] | None = None  # the same list for an sae

    def tensors(self) -> Iterable[Tensor]:
        """Those beside the model."""
        return () if self.x is None or self.y is None else [*self.x, *self.y]


@dataclass(frozen=True)
class Passes:
    """The passes from the packer's place on. ``share`` says which sequences of a pass this rank runs."""

    packer: Packer
    model_pass: ModelPass
    n_sequences: int
    ranks: Ranks

    def ahead(self, wanted: bool) -> Ahead[Pass]:
        """The passes to the end of the epoch, by a thread if wanted: run on an accelerator, not yet run on a CPU."""
        device = self.model_pass.parts.device
        if device.type == "cpu":
            return Ahead(self.sequences, TEXTS_AHEAD if wanted else 0, device)
        return Ahead(self._whole, PASSES_AHEAD if wanted else 0, device, Pass.tensors)

    def sequences(self) -> Pass | None:
        """The next pass, not yet run; None at the end of the epoch."""
        found: list[np.ndarray] = []
        while len(found) < self.n_sequences and (sequence := self.packer.next()) is not None:
            found.append(sequence)
        return Pass(torch.from_numpy(np.stack(found)), self.packer.state()) if found else None

    def run(self, found: Pass) -> Pass:
        """The pass with this rank's activations."""
        with fast_attention(self.model_pass.parts):
            x, y = self.model_pass.run(found.ids_bP[self.share(len(found.ids_bP))])
        return replace(found, x=x, y=y)

    def share(self, n_sequences: int) -> list[int]:
        """This rank's sequences of a pass: every world-th; the last one again where they do not come out even."""
        rank, world = self.ranks.rank, self.ranks.world
        return [min(first + rank, n_sequences - 1) for first in range(0, n_sequences, world)]

    def _whole(self) -> Pass | None:
        found = self.sequences()
        return None if found is None else self.run(found)
