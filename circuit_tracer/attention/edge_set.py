"""Edges of one prompt, many at once, and parts of them whose rows fit into memory together.

Letters: E edges, S sources, T targets, n terms, D d_model, O = H d_head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from circuit_tracer.attention.stream_terms import StreamTerms
from circuit_tracer.attention.stretch import Stretch
from circuit_tracer.attribution.row_blocks import split_rows

IN_FLIGHT = 2**28  # bytes of fields or gradients that exist at once, and as many of what meets them


@dataclass(frozen=True)
class EdgeSet:
    """E edges, each from row source[e] (E,) of `writes` to row target[e] (E,) of `reads`; every row has an edge, and terms."""

    stretch: Stretch
    writes: StreamTerms
    reads: StreamTerms
    source: Tensor
    target: Tensor

    def __len__(self) -> int:
        return int(self.source.shape[0])

    @property
    def n_sources(self) -> int:
        """S."""
        return int(self.writes.row.max()) + 1

    @property
    def n_targets(self) -> int:
        """T."""
        return int(self.reads.row.max()) + 1

    @property
    def bottom(self) -> Tensor:
        """(S,) the first place that each source writes to."""
        return self._extreme(self.writes, "amin")

    @property
    def top(self) -> Tensor:
        """(T,) the last place that each target reads."""
        return self._extreme(self.reads, "amax")

    @property
    def source_position(self) -> Tensor:
        """(S,) where in the stretch each source is: it writes at its own position alone."""
        at = torch.empty(self.n_sources, dtype=torch.int64, device=self.writes.row.device)
        at[self.writes.row] = self.writes.position - self.stretch.start
        return at

    def parts(self, swept: Literal["sources", "targets"]) -> Iterator[tuple[Tensor, EdgeSet]]:
        """(numbers of edges (e,), these edges by themselves, among the positions that they need): rows of the swept side are
        fields, in the order in which they join the sweep; of the other side there is a table of vectors for each layer.
        """
        if swept == "targets":
            own, other, depth, reach = self.target, self.source, (self.top + 1) // 2, self._last_position
            table_rows = self._table_rows(1)
        else:
            own, other, depth = self.source, self.target, self.stretch.network.n_layers - self.bottom // 2
            reach = self.stretch.n_pos - 1 - self.source_position
            table_rows = self._table_rows(-(-len(self.reads) // self.n_targets))
        for rows in split_rows(depth, reach, self._rows):
            rows = rows.to(own.device)
            for met in other[torch.isin(own, rows)].unique().split(table_rows):
                edge = torch.nonzero(torch.isin(own, rows) & torch.isin(other, met)).flatten()
                used = rows[torch.isin(rows, own[edge])]
                yield edge.cpu(), self._of(edge, *((met, used) if swept == "targets" else (used, met)))

    @property
    def _rows(self) -> int:
        """How many fields fit, with what is made of them in a layer."""
        parts, dtype = self.stretch.network.parts, self.stretch.dtype
        width = 4 * parts.config.d_model + 6 * parts.layers[0].output_weight.shape[1]
        return max(1, IN_FLIGHT // (self.stretch.n_pos * width * dtype.itemsize))

    def _table_rows(self, vectors_a_layer: int) -> int:
        """How many rows' vectors fit."""
        network = self.stretch.network
        row = 3 * network.n_layers * network.parts.config.d_model * self.stretch.dtype.itemsize * vectors_a_layer
        return max(1, IN_FLIGHT // row)

    def _of(self, edge: Tensor, sources: Tensor, targets: Tensor) -> EdgeSet:
        """Some edges (e,), all of them among these rows, which are numbered anew."""
        ends = []
        for n, rows, of_edge in ((self.n_sources, sources, self.source), (self.n_targets, targets, self.target)):
            place = torch.empty(n, dtype=torch.int64, device=rows.device)
            place[rows] = torch.arange(len(rows), device=rows.device)
            ends.append(place[of_edge[edge]])
        writes, reads = self.writes.take(sources), self.reads.take(targets)
        start, stop = int(writes.position.min()), int(reads.position.max()) + 1
        return EdgeSet(replace(self.stretch, start=start, stop=stop), writes, reads.between(start, stop), *ends)

    @property
    def _last_position(self) -> Tensor:
        """(T,) the last position in the stretch that each target reads."""
        at = torch.zeros(self.n_targets, dtype=torch.int64, device=self.reads.row.device)
        return at.scatter_reduce(
            0, self.reads.row, self.reads.position - self.stretch.start, "amax", include_self=False
        )

    @staticmethod
    def _extreme(terms: StreamTerms, reduce: Literal["amin", "amax"]) -> Tensor:
        found = torch.zeros(int(terms.row.max()) + 1, dtype=torch.int64, device=terms.row.device)
        return found.scatter_reduce(0, terms.row, terms.place, reduce, include_self=False)
