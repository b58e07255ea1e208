"""Vectors of the residual stream at places of a prompt: what targets read there, or what sources write.

Letters: n terms, R rows (targets, or sources), L layers, D d_model.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from circuit_tracer.errors import InputError
from circuit_tracer.graph.checks import require_tensors


@dataclass(frozen=True)
class StreamTerms:
    """n terms, each of one row; norms between a row's own place and the stream are in the vectors, frozen.

    row: int64 (n,). place: int64 (n,), in half layers: 2 l is what enters layer l (2 L: what leaves the last), 2 l + 1 is
    between attention and MLP of layer l, which in a parallel block is what entered. position: int64 (n,). vector: (n, D).
    """

    row: Tensor
    place: Tensor
    position: Tensor
    vector: Tensor

    def __post_init__(self) -> None:
        columns = {"row": self.row, "place": self.place, "position": self.position}
        require_tensors({f"stream terms: {name}": column for name, column in columns.items()}, {"vector": self.vector})
        if any(column.shape != self.row.shape or column.ndim != 1 for column in columns.values()) or (
            self.vector.ndim != 2 or len(self.vector) != len(self.row)
        ):
            shapes = {field.name: tuple(getattr(self, field.name).shape) for field in fields(self)}
            raise InputError(f"stream terms have shapes {shapes}; expected (n,) and (n, D)")

    def __len__(self) -> int:
        return int(self.row.shape[0])

    @classmethod
    def joined(cls, parts: list[StreamTerms]) -> StreamTerms:
        """The terms of several, of at least one."""
        columns = ([getattr(part, field.name) for part in parts] for field in fields(cls))
        return cls(*(torch.cat(column) for column in columns))

    def of_rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(place in `rows`, number of a term) of all terms of some rows (R',), row after row; a row may come several times."""
        ordered, order = self.row.sort(stable=True)
        first = torch.searchsorted(ordered, rows)
        counts = torch.searchsorted(ordered, rows, right=True) - first
        place = torch.arange(len(rows), device=rows.device).repeat_interleave(counts)
        within = torch.arange(len(place), device=rows.device) - (counts.cumsum(0) - counts)[place]
        return place, order[first[place] + within]

    def take(self, rows: Tensor) -> StreamTerms:
        """The terms of some rows (R',), which become rows 0, 1, ... in the order asked for; a row may come several times."""
        row, chosen = self.of_rows(rows)
        return StreamTerms(row, self.place[chosen], self.position[chosen], self.vector[chosen])

    def to(self, device: str | torch.device) -> StreamTerms:
        return StreamTerms(*(getattr(self, field.name).to(device) for field in fields(self)))
