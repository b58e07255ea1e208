"""Edges of one prompt, many at once, and parts of them whose rows fit into memory together.

Letters: E edges, S sources, T targets, n terms, D d_model, O = H d_head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from circuit_tracer.attention.stream_terms import StreamTerms
from circuit_tracer.attention.stretch import Stretch

IN_FLIGHT = 2**28  # bytes of fields or gradients that exist at once, and as many of what meets them


@dataclass(frozen=True)
class EdgeSet:
    """E edges, each from row source[e] (E,) of `writes` to row target[e] (E,) of `reads`; every row has terms."""

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
        """(numbers of edges (e,), these edges by themselves): rows of the swept side are fields, in the order in which they
        join the sweep; of the other side there is a table of vectors for each layer.
        """
        sources, targets = self.bottom.argsort(stable=True), self.top.argsort(descending=True, stable=True)
        per_target = -(-len(self.reads) // self.n_targets)
        if swept == "targets":
            for chosen in sources.split(self._table_rows(1)):
                yield from (part for some in targets.split(self._rows) if len((part := self._among(chosen, some))[0]))
        else:
            for some in targets.split(self._table_rows(per_target)):
                yield from (part for chosen in sources.split(self._rows) if len((part := self._among(chosen, some))[0]))

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

    def _among(self, sources: Tensor, targets: Tensor) -> tuple[Tensor, EdgeSet]:
        """The edges among some rows of both sides, which are numbered anew."""
        place = [
            torch.full((n,), -1, device=rows.device)
            for n, rows in ((self.n_sources, sources), (self.n_targets, targets))
        ]
        for new, rows in zip(place, (sources, targets), strict=True):
            new[rows] = torch.arange(len(rows), device=rows.device)
        source, target = place[0][self.source], place[1][self.target]
        edge = torch.nonzero((source >= 0) & (target >= 0)).flatten()
        writes, reads = self.writes.take(sources), self.reads.take(targets)
        return edge.cpu(), EdgeSet(self.stretch, writes, reads, source[edge], target[edge])

    @staticmethod
    def _extreme(terms: StreamTerms, reduce: Literal["amin", "amax"]) -> Tensor:
        found = torch.zeros(int(terms.row.max()) + 1, dtype=torch.int64, device=terms.row.device)
        return found.scatter_reduce(0, terms.row, terms.place, reduce, include_self=False)
