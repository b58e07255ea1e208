"""The edges of a graph in compressed sparse rows: rows are targets, columns are sources."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from circuit_tracer.errors import InputError, NumericalError

COMPARED_BYTES = 2**24  # of a dense matrix at once


@dataclass(frozen=True)
class Edges:
    """E edges among N nodes, sorted by target, then by source; no zeros, no duplicates.

    16 to 20 bytes an edge; no dense N x N array is needed anywhere but in ``to_dense``.

    Attributes:
        row_ptr: int64 (N+1,); the edges into node t are ``row_ptr[t] .. row_ptr[t+1]``.
        source: int64 (E,).
        weight: float32 or float64 (E,), in units of the target's pre-activation.

    Examples:
        >>> from circuit_tracer.graph import Edges
        >>> edges = Edges.from_dense(torch.tensor([[0.0, 0.0], [2.0, 0.0]]))
        >>> edges.target.tolist(), edges.source.tolist(), edges.weight.tolist()
        ([1], [0], [2.0])
    """

    row_ptr: Tensor
    source: Tensor
    weight: Tensor

    @property
    def n_nodes(self) -> int:
        return len(self.row_ptr) - 1

    def __len__(self) -> int:
        return len(self.source)

    def __repr__(self) -> str:
        return f"Edges({len(self):,} edges, {self.n_nodes:,} nodes, {self.weight.dtype}, {self.weight.device})"

    @property
    def target(self) -> Tensor:
        """(E,) the target of each edge, expanded from ``row_ptr`` at each call."""
        rows = torch.arange(self.n_nodes, device=self.row_ptr.device)
        return rows.repeat_interleave(self.row_ptr.diff())

    @classmethod
    def from_dense(cls, matrix: Tensor) -> Edges:
        """Edges of a dense (N, N) matrix, row = target, column = source. Exact zeros are no edges."""
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise InputError(f"adjacency matrix has shape {tuple(matrix.shape)}, expected (N, N)")
        if matrix.layout != torch.strided or matrix.is_meta or matrix.is_quantized or matrix.is_complex():
            raise InputError(
                f"the adjacency matrix is {matrix.layout}, {matrix.dtype}, on {matrix.device}; expected dense numbers"
            )
        matrix = _as_weights(matrix.detach())
        row_ptr = torch.zeros(len(matrix) + 1, dtype=torch.int64, device=matrix.device)
        torch.cumsum(matrix.count_nonzero(dim=1), 0, out=row_ptr[1:])
        target, source = matrix.nonzero(as_tuple=True)
        return cls(row_ptr, source, matrix[target, source])

    @classmethod
    def from_coo(cls, target: Tensor, source: Tensor, weight: Tensor, n_nodes: int) -> Edges:
        """Edges from triples in any order. Triples of the same pair are added up; zeros are dropped.

        Raises InputError for unequal lengths or ends outside 0..n_nodes-1.
        """
        if not len(target) == len(source) == len(weight):
            raise InputError(f"unequal lengths: {len(target)} targets, {len(source)} sources, {len(weight)} weights")
        for name, ends in (("target", target), ("source", source)):
            if len(ends) and not (int(ends.min()) >= 0 and int(ends.max()) < n_nodes):
                raise InputError(
                    f"edge {name}s range over {int(ends.min())}..{int(ends.max())}; there are {n_nodes} nodes"
                )
        key = target.long() * n_nodes + source.long()
        key, order = torch.sort(key, stable=True)
        values = _as_weights(weight)[order]
        unique, inverse = torch.unique_consecutive(key, return_inverse=True)
        if len(unique) != len(key):
            values = torch.zeros(len(unique), dtype=values.dtype, device=values.device).index_add_(0, inverse, values)
        keep = values != 0
        unique, values = unique[keep], values[keep]
        counts = torch.bincount(unique // max(n_nodes, 1), minlength=n_nodes)
        return cls(_row_pointers(counts), unique % max(n_nodes, 1), values)

    def to_dense(self) -> Tensor:
        """The (N, N) matrix, row = target; N * N * 4 (or 8) bytes."""
        dense = torch.zeros(self.n_nodes, self.n_nodes, dtype=self.weight.dtype, device=self.weight.device)
        dense[self.target, self.source] = self.weight
        return dense

    def equals_dense(self, matrix: Tensor) -> bool:
        """Whether a dense (N, N) matrix holds these edges, bit for bit, and no other; reads it once, in blocks of rows."""
        if matrix.shape != (self.n_nodes, self.n_nodes) or matrix.dtype != self.weight.dtype:
            return False
        rows = max(1, COMPARED_BYTES // max(1, self.n_nodes * matrix.itemsize))
        for start in range(0, self.n_nodes, rows):
            block = matrix[start : start + rows]
            first, last = int(self.row_ptr[start]), int(self.row_ptr[start + len(block)])
            here = self.row_ptr[start : start + len(block) + 1].diff()
            target = torch.arange(len(block), device=here.device).repeat_interleave(here)
            expected = torch.zeros_like(block)
            expected[target, self.source[first:last]] = self.weight[first:last]
            if not torch.equal(expected, block):
                return False
        return True

    def to(self, device: str | torch.device) -> Edges:
        return Edges(self.row_ptr.to(device), self.source.to(device), self.weight.to(device))

    def select(self, mask: Tensor) -> Edges:
        """The edges where ``mask`` (E,) is true, among the same nodes."""
        if mask.shape != self.source.shape or mask.dtype != torch.bool:
            raise InputError(f"edge mask is {mask.dtype} {tuple(mask.shape)}, expected torch.bool ({len(self)},)")
        kept_before = torch.zeros(len(self) + 1, dtype=torch.int64, device=mask.device)
        torch.cumsum(mask, 0, out=kept_before[1:])
        return Edges(kept_before[self.row_ptr], self.source[mask], self.weight[mask])

    def row(self, target: int) -> tuple[Tensor, Tensor]:
        """Sources and weights of the edges into one node."""
        start, stop = int(self.row_ptr[target]), int(self.row_ptr[target + 1])
        return self.source[start:stop], self.weight[start:stop]

    def find(self, source: Tensor, target: Tensor) -> Tensor:
        """Places (m,) of edges (m,) in ``source`` and ``weight``, -1 for those that there are not. O(E + m log E)."""
        return find_pairs(self.target, self.source, target, source)

    def __iter__(self) -> Iterator[tuple[int, int, float]]:
        """(target, source, weight) triples of plain numbers."""
        return iter(zip(self.target.tolist(), self.source.tolist(), self.weight.tolist(), strict=True))

    def row_sum(self, values: Tensor) -> Tensor:
        """(N,) float64 sums of ``values`` (E,) over the edges into each node."""
        return torch.segment_reduce(values.double(), "sum", offsets=self.row_ptr, initial=0.0)

    def validate(self) -> None:
        """Check the promises of the class docstring in O(E). Raises InputError or NumericalError."""
        n_edges = len(self.source)
        if self.weight.shape != (n_edges,) or self.row_ptr.ndim != 1 or len(self.row_ptr) == 0:
            raise InputError(
                f"edges: {n_edges} sources, weight {tuple(self.weight.shape)}, row_ptr {tuple(self.row_ptr.shape)}"
            )
        if self.weight.dtype not in (torch.float32, torch.float64):
            raise InputError(f"edge weights are {self.weight.dtype}; expected float32 or float64")
        if self.row_ptr.dtype != torch.int64 or self.source.dtype != torch.int64:
            raise InputError(f"row_ptr is {self.row_ptr.dtype} and source {self.source.dtype}; expected int64")
        if int(self.row_ptr[0]) != 0 or int(self.row_ptr[-1]) != n_edges or bool((self.row_ptr.diff() < 0).any()):
            raise InputError(f"row_ptr must rise from 0 to the number of edges, {n_edges}")
        if n_edges == 0:
            return
        if int(self.source.min()) < 0 or int(self.source.max()) >= self.n_nodes:
            raise InputError(
                f"edge sources range over {int(self.source.min())}..{int(self.source.max())}, nodes: {self.n_nodes}"
            )
        target = self.target
        if bool(((target[1:] == target[:-1]) & (self.source[1:] <= self.source[:-1])).any()):
            raise InputError("the sources of a row must ascend without duplicates; use Edges.from_coo to sort them")
        if not bool(torch.isfinite(self.weight).all()):
            bad = int((~torch.isfinite(self.weight)).nonzero()[0])
            raise NumericalError(
                f"edge {int(self.source[bad])} -> {int(target[bad])} has weight {float(self.weight[bad])}; "
                "graphs hold finite numbers only. Trace again in float32."
            )
        if bool((self.weight == 0).any()):
            raise InputError("an edge has weight 0; use Edges.from_coo, which drops zeros")


def find_pairs(target: Tensor, source: Tensor, wanted_target: Tensor, wanted_source: Tensor) -> Tensor:
    """Places (m,) of wanted (target, source) pairs (m,) among sorted ones (E,), -1 for those that are not there."""
    if not len(source):
        return torch.full_like(wanted_source, -1)
    width = 1 + max(int(source.max()), int(wanted_source.max()) if len(wanted_source) else 0)
    key, wanted = target * width + source, wanted_target * width + wanted_source
    place = torch.searchsorted(key, wanted).clamp_max(len(key) - 1)
    return torch.where(key[place] == wanted, place, -1)


def _as_weights(values: Tensor) -> Tensor:
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def _row_pointers(counts: Tensor) -> Tensor:
    row_ptr = torch.zeros(len(counts) + 1, dtype=torch.int64, device=counts.device)
    torch.cumsum(counts, 0, out=row_ptr[1:])
    return row_ptr
