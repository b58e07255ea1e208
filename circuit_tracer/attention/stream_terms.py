"""Vectors of the residual stream at places of a prompt: what targets read there, or what sources write.

Letters: n terms, R rows (targets, or sources), L layers, D d_model.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import Tensor

from circuit_tracer.attribution.read_out import ReadOut
from circuit_tracer.graph.stream_reads import StreamReads
from circuit_tracer.models.frozen import FrozenNetwork


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

    def __len__(self) -> int:
        return int(self.row.shape[0])

    @classmethod
    def of_targets(cls, reads: StreamReads, network: FrozenNetwork) -> StreamTerms:
        """What targets read, as a graph keeps it."""
        at = reads.to(network.parts.device, network.parts.compute_dtype)
        return cls(at.row, 2 * at.layer + (~at.entering).long(), at.position, at.vector)

    @classmethod
    def of_read_out(cls, rows: ReadOut, network: FrozenNetwork) -> StreamTerms:
        """What rows read that have a vector each, at the transcoder's input hook or behind the final norm."""
        device, last = network.parts.device, network.n_layers
        position, layer = rows.position.to(device), rows.layer.to(device)
        read = rows.vector.to(device=device, dtype=network.parts.compute_dtype)
        vector = torch.empty_like(read)
        for depth in rows.layer.unique().tolist():
            here = layer == depth
            back = network.final_norm.adjoint_at if depth == last else partial(network.read_adjoint, depth)
            vector[here] = back(read[here], position[here])
        place = torch.where(layer == last, 2 * last, 2 * layer + 1)
        return cls(torch.arange(len(rows), device=device), place, position, vector)

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

    def between(self, start: int, stop: int) -> StreamTerms:
        """The terms at positions start .. stop - 1."""
        inside = (self.position >= start) & (self.position < stop)
        return StreamTerms(*(getattr(self, field.name)[inside] for field in fields(self)))

    def take(self, rows: Tensor) -> StreamTerms:
        """The terms of some rows (R',), which become rows 0, 1, ... in the order asked for; a row may come several times."""
        row, chosen = self.of_rows(rows)
        return StreamTerms(row, self.place[chosen], self.position[chosen], self.vector[chosen])
