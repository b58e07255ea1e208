"""What each row of a graph must add up to, and how well the dictionary rebuilds the model on this prompt."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from circuit_tracer.errors import InputError
from circuit_tracer.graph.checks import require_tensors
from circuit_tracer.graph.edges import Edges


@dataclass
class RowBalance:
    """The sum rule of the frozen, linear network, one entry a node (N,), zero for error and token rows, which have no inputs.

    sum of the row's edges + unselected + bias == pre_activation, in units of the target's pre-activation. unselected:
    signed sum of the edges from active features that were not selected; unselected_mass: sum of their |edges|.
    """

    bias: Tensor
    unselected: Tensor
    unselected_mass: Tensor
    pre_activation: Tensor

    def __post_init__(self) -> None:
        require_tensors({}, {f"row balance: {field.name}": getattr(self, field.name) for field in fields(self)})
        shapes = {field.name: tuple(getattr(self, field.name).shape) for field in fields(self)}
        if len(set(shapes.values())) != 1 or self.bias.ndim != 1:
            raise InputError(f"row balance: columns have shapes {shapes}; expected one (N,) for all")

    def residual(self, edges: Edges) -> Tensor:
        """(N,) float64: |sum + unselected + bias - pre| / (sum|edges| + unselected_mass + |bias| + |pre|); 0 for
        empty rows.
        """
        bias, unselected, pre = self.bias.double(), self.unselected.double(), self.pre_activation.double()
        gap = edges.row_sum(edges.weight) + unselected + bias - pre
        scale = edges.row_sum(edges.weight.abs()) + self.unselected_mass.double() + bias.abs() + pre.abs()
        return torch.where(scale > 0, gap.abs() / scale, torch.zeros_like(scale))

    def to(self, device: str | torch.device) -> RowBalance:
        return RowBalance(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass
class Reconstruction:
    """The transcoder on this prompt, a layer at a time: nmse (L,) of its output, l0 (L,) mean active features a
    position.
    """

    nmse: Tensor
    l0: Tensor

    def __post_init__(self) -> None:
        require_tensors({}, {"reconstruction: nmse": self.nmse, "reconstruction: l0": self.l0})
        if self.nmse.shape != self.l0.shape or self.nmse.ndim != 1:
            raise InputError(
                f"reconstruction: nmse {tuple(self.nmse.shape)} and l0 {tuple(self.l0.shape)} must both be (L,)"
            )

    def to(self, device: str | torch.device) -> Reconstruction:
        return Reconstruction(self.nmse.to(device), self.l0.to(device))
