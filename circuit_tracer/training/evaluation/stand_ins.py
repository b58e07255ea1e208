"""What stands in for MLP outputs, or for the residual stream at one place, in a pass of the model (README.md §2, §6).

Letters: N rows of a pass, L layers, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from circuit_tracer.training.evaluation.passes import StandIn
from circuit_tracer.training.evaluation.sequences import LEFT_OUT
from circuit_tracer.transcoders.base import Transcoders
from circuit_tracer.transcoders.writes import add_writes_, constant_writes


class Reconstructions:
    """The dictionary's reconstruction stands in for the MLP outputs, from the inputs of the replaced pass itself.

    MLPs of layers without transcoders run as they are.
    """

    def __init__(self, transcoders: Transcoders) -> None:
        self.transcoders = transcoders
        self._writes_NLD: Tensor = torch.empty(0)

    def read(self, layer: int, x_ND: Tensor) -> None:
        """Encode a layer's inputs; what its features write waits for the layers ahead."""
        if layer == 0:
            self._writes_NLD = x_ND.new_zeros(len(x_ND), self.transcoders.n_layers, x_ND.shape[1])
        selected = self.transcoders.encode_positions(layer, x_ND)
        add_writes_(self._writes_NLD, self.transcoders, layer, selected)
        self._writes_NLD[:, layer] += constant_writes(self.transcoders, layer, x_ND)

    def write(self, layer: int, y_ND: Tensor) -> Tensor:
        """What was collected for this layer."""
        return self._writes_NLD[:, layer] if layer in self.transcoders.layers else y_ND


@dataclass(frozen=True)
class Constant:
    """The same vector at every token, in ``layers`` (None: in all): ablation."""

    mean_LD: Tensor
    layers: tuple[int, ...] | None = None

    def read(self, layer: int, x_ND: Tensor) -> None:
        """Nothing to learn from it."""

    def write(self, layer: int, y_ND: Tensor) -> Tensor:
        """The layer's vector, N times."""
        if self.layers is not None and layer not in self.layers:
            return y_ND
        return self.mean_LD[layer].to(y_ND).expand_as(y_ND)


@dataclass(frozen=True)
class Splice:
    """One autoencoder's reconstruction of the stream, at its own layer; all others stay as they are."""

    transcoders: Transcoders
    source: int  # the autoencoder, as the dictionary counts
    layer: int  # and as the model does

    def read(self, layer: int, x_ND: Tensor) -> None:
        """It reads where it writes."""

    def write(self, layer: int, y_ND: Tensor) -> Tensor:
        """What the autoencoder makes of the stream."""
        if layer != self.layer:
            return y_ND
        made_N1D = y_ND.new_zeros(len(y_ND), self.transcoders.n_layers, y_ND.shape[1])
        add_writes_(made_N1D, self.transcoders, self.source, self.transcoders.encode_positions(self.source, y_ND))
        return made_N1D[:, self.source] + constant_writes(self.transcoders, self.source, y_ND)


@dataclass(frozen=True)
class FromPositionOne:
    """A stand-in that leaves the first position of every sequence to the model, as tracing does."""

    inner: StandIn
    length: int  # P

    def read(self, layer: int, x_ND: Tensor) -> None:
        """As the inner one."""
        self.inner.read(layer, x_ND)

    def write(self, layer: int, y_ND: Tensor) -> Tensor:
        """As the inner one, but at the first position what the model wrote."""
        own_N1 = (torch.arange(len(y_ND), device=y_ND.device) % self.length < LEFT_OUT)[:, None]
        return torch.where(own_N1, y_ND, self.inner.write(layer, y_ND))
