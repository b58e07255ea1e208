"""Passes of the model over many sequences at once, with something else in place of what its MLPs write.

Rows are the tokens of all sequences of a pass, row b * P + p. Letters: B sequences, P positions, N = B * P rows, D width.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from circuit_tracer.models.model_pass import Points
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.models.run import ModelRun, Visit, in_rows


class StandIn(Protocol):
    """What takes the place of all MLPs, or of the stream. In a pass, every layer is read before it is written, from the first
    to the last; a stand-in for the stream, which reads where it writes, is only asked to write.
    """

    def read(self, layer: int, x_ND: Tensor) -> None:
        """Take the activation (N, D) at the input point, in the compute dtype."""

    def write(self, layer: int, y_ND: Tensor) -> Tensor:
        """What stands in for the activation (N, D) at the output point."""


def run(parts: ModelParts, ids_BP: Tensor, points: Points | None = None, stand_in: StandIn | None = None) -> Tensor:
    """Final norm's outputs (N, D) of one pass, in the compute dtype; `stand_in` writes at the points, all else stays live."""
    visits: dict[str, Visit] = {}
    if points is not None and stand_in is not None:
        visits = {} if points.same else {points.input: in_rows(parts, stand_in.read)}
        visits[points.output] = in_rows(parts, stand_in.write)
    return ModelRun(parts, visits, norms=None, own_attention=False)(ids_BP).final.flatten(0, 1)
