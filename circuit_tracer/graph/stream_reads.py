"""Where targets read the residual stream: vectors at places, those of one target added up.

Letters: n vectors, D d_model, K targets, P positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuit_tracer.errors import InputError
from circuit_tracer.graph.checks import require_tensors


@dataclass(frozen=True)
class StreamReads:
    """n read vectors. The value of a target is the sum over its rows of <vector, stream>, plus a constant.

    row (n,): the target. layer (n,), entering (n,) bool: the stream that enters the layer (L: that leaves the last one), or
    else the one between the layer's attention and its MLP. position (n,). vector (n, D), in the stream itself: norms with
    their frozen scales are in it.
    """

    row: Tensor
    layer: Tensor
    entering: Tensor
    position: Tensor
    vector: Tensor

    def __len__(self) -> int:
        return int(self.row.shape[0])

    @classmethod
    def empty(cls, d_model: int, dtype: torch.dtype) -> StreamReads:
        """No reads."""
        nothing = torch.empty(0, dtype=torch.int64)
        return cls(nothing, nothing, nothing.bool(), nothing, torch.empty(0, d_model, dtype=dtype))

    @classmethod
    def joined(cls, reads: Sequence[StreamReads]) -> StreamReads:
        """All of them, in the order given; at least one."""
        columns = zip(*((r.row, r.layer, r.entering, r.position, r.vector) for r in reads), strict=True)
        return cls(*(torch.cat(column) for column in columns))

    def of_rows(self, chosen: Tensor) -> StreamReads:
        """Those of some targets (m,), each at most once, which are numbered 0, 1, ... in the order asked for."""
        number = torch.full((int(max(self.row.max(), chosen.max())) + 1 if len(self) and len(chosen) else 0,), -1)
        if not len(number):
            return self._take(torch.zeros(len(self), dtype=torch.bool), self.row)
        number[chosen.cpu()] = torch.arange(len(chosen))
        row = number[self.row.cpu()].to(self.row.device)
        return self._take(row >= 0, row)

    def at(self, layer: int, entering: bool) -> StreamReads:
        """Those of one place."""
        return self._take((self.layer == layer) & (self.entering == entering), self.row)

    def scaled(self, factor: float) -> StreamReads:
        """All vectors times a number."""
        return StreamReads(self.row, self.layer, self.entering, self.position, self.vector * factor)

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> StreamReads:
        """On a device; vectors in a dtype."""
        vector = self.vector.to(device, dtype or self.vector.dtype)
        row, layer, entering, position = (
            each.to(device) for each in (self.row, self.layer, self.entering, self.position)
        )
        return StreamReads(row, layer, entering, position, vector)

    def check(self, n_targets: int, n_layers: int, n_pos: int, d_model: int) -> None:
        """Raise InputError unless these can be reads of a graph of that size."""
        places = {"row": self.row, "layer": self.layer, "position": self.position}
        require_tensors(
            whole={f"target reads: {name}": column for name, column in places.items()},
            numbers={"target reads: vector": self.vector},
        )
        if self.entering.dtype != torch.bool or self.vector.shape != (len(self), d_model):
            raise InputError(
                f"target reads: vectors of shape {tuple(self.vector.shape)} and {self.entering.dtype} for places; expected "
                f"({len(self)}, {d_model}) and bool"
            )
        for (name, column), limit in zip(places.items(), (n_targets, n_layers + 1, n_pos), strict=True):
            inside = (column >= 0) & (column < limit)
            if column.shape != (len(self),) or not bool(inside.all()):
                raise InputError(f"target reads: {name} must be {len(self)} numbers within 0..{limit - 1}")
        if self.entering.shape != (len(self),) or bool((~self.entering & (self.layer == n_layers)).any()):
            raise InputError(f"target reads: there is no place between attention and MLP of layer {n_layers}")

    def _take(self, chosen: Tensor, row: Tensor) -> StreamReads:
        columns = (row, self.layer, self.entering, self.position, self.vector)
        return StreamReads(*(column[chosen] for column in columns))
