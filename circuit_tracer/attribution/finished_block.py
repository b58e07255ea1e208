"""A block of finished rows, dense or without the edges that carry next to nothing.

With `keep_mass` < 1 a row keeps its largest edges, to features, errors and tokens alike, until they hold that share of its
mass (the sum of |edges|). The cut lies on a grid of eight steps an octave, so that one histogram finds it: all edges of at
least the cut stay, and what goes is at most 1 - keep_mass of the row. `total` and `mass` are those of the whole row, so what
was dropped is accounted for in its balance, like edges from features that are no nodes.

Letters: T rows, W sources, E steps, P positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuit_tracer.attribution.sweep import EdgeBlock

_PIECE = 1 << 18  # edges whose absolute values stay in cache until they are summed
_GRID = {torch.float32: (torch.int32, 20, 1 << 11), torch.float64: (torch.int64, 49, 1 << 14)}  # sign, exponent, 3 bits


@dataclass(frozen=True)
class SparseEdges:
    """T rows without their zeros; those of row t are `ptr[t]` .. `ptr[t + 1]` - 1."""

    ptr: Tensor  # (T + 1,)
    column: Tensor  # int32
    value: Tensor

    @classmethod
    def of(cls, dense_TW: Tensor, counts_T: Tensor) -> SparseEdges:
        """The entries of a matrix that are not zero, of which each row has a count."""
        ptr = torch.cat([counts_T.new_zeros(1), counts_T.cumsum(0)]).cpu()
        size = int(ptr[-1])
        column, value = dense_TW.new_empty(size, dtype=torch.int32), dense_TW.new_empty(size)
        for row, start, stop in zip(dense_TW, ptr[:-1].tolist(), ptr[1:].tolist(), strict=True):
            place = row.nonzero().flatten()
            column[start:stop], value[start:stop] = place, row[place]
        return cls(ptr, column, value)

    def dense(self, rows: Tensor, width: int) -> Tensor:
        """Some rows, (n, W)."""
        out = self.value.new_zeros(len(rows), width)
        for row, number in zip(out, rows.tolist(), strict=True):
            inside = slice(int(self.ptr[number]), int(self.ptr[number + 1]))
            row[self.column[inside].long()] = self.value[inside]
        return out

    def weighted_sum(self, start: int, stop: int, weight: Tensor, width: int) -> Tensor:
        """(width,) float64: sum over rows start .. stop - 1 of weight times |row|, of the first `width` columns."""
        inside = slice(int(self.ptr[start]), int(self.ptr[stop]))
        counts = self.ptr[start : stop + 1].diff().to(weight.device)
        share = weight.to(self.value.device).repeat_interleave(counts.to(self.value.device))
        sums = torch.bincount(self.column[inside], weights=self.value[inside].abs() * share, minlength=width)
        return sums[:width].double().cpu()


@dataclass(frozen=True)
class FinishedBlock:
    """Rows with their sums. `row` numbers rows globally: targets 0..K-1, then K + column of a feature."""

    row: Tensor  # (T,)
    n_pos: int
    n_columns: int  # of features; errors (E, P), one row of them a step, and tokens (P,) follow
    edges: Tensor | SparseEdges  # (T, W)
    total: Tensor  # (T,) float64: signed sum over all sources
    mass: Tensor  # (T,) float64: sum of |edges| over all sources
    step_ptr: list[int]  # (E + 2,) rows of step s are step_ptr[s + 1] .. step_ptr[s], since rows are sorted top first
    dropped: float = 0.0  # largest share of its mass that a row lost

    @classmethod
    def of(cls, block: EdgeBlock, row: Tensor, n_steps: int, keep_mass: float) -> FinishedBlock:
        """Sum the rows of a swept block, and drop what `keep_mass` lets go (in place)."""
        total, mass = _sums(block.edges)
        ptr = torch.bincount(block.step, minlength=n_steps + 2).flip(0).cumsum(0).flip(0).tolist()
        edges: Tensor | SparseEdges = block.edges
        dropped = 0.0
        if keep_mass < 1:
            dropped = 1 - min(_thin_(row_W, keep_mass) for row_W in block.edges)
            counts = torch.count_nonzero(block.edges, dim=1)
            # a column number takes as much room as a weight (in float32)
            if 2 * int(counts.sum()) < block.edges.numel():
                edges = SparseEdges.of(block.edges, counts)
        return cls(row, block.n_pos, block.n_columns, edges, total.cpu(), mass.cpu(), ptr, dropped)

    def dense(self, rows: Tensor) -> Tensor:
        """Some rows, (n, W), where they lie."""
        if isinstance(self.edges, SparseEdges):
            return self.edges.dense(rows, self.width)
        return self.edges[rows.to(self.edges.device)]

    @property
    def dtype(self) -> torch.dtype:
        """Of the edges."""
        return (self.edges.value if isinstance(self.edges, SparseEdges) else self.edges).dtype

    @property
    def width(self) -> int:
        """W."""
        return self.n_columns + len(self.step_ptr[1:]) * self.n_pos

    def flow(self, start: int, stop: int, share: Tensor) -> Tensor:
        """(n_columns,) float64: what features receive when row i of start .. stop - 1 passes on `share[i]` of each |edge|."""
        if isinstance(self.edges, SparseEdges):
            return self.edges.weighted_sum(start, stop, share, self.n_columns)
        received = torch.zeros(self.n_columns, dtype=torch.float64)
        rows = self.edges[start:stop, : self.n_columns]
        for piece in torch.nonzero(share).flatten().split(max(1, _PIECE // max(1, self.n_columns))):
            weight = share[piece].to(device=rows.device, dtype=rows.dtype)
            received += (weight @ rows.index_select(0, piece.to(rows.device)).abs_()).double().cpu()
        return received

    @property
    def step(self) -> Tensor:
        """(T,) of each row, descending."""
        ptr = torch.tensor(self.step_ptr)
        return torch.arange(len(ptr) - 1).repeat_interleave(ptr[:-1] - ptr[1:]).flip(0)


def side_by_side(
    blocks: Sequence[FinishedBlock], rows: Sequence[Tensor], columns: Tensor, number: Tensor
) -> FinishedBlock:
    """Some rows of each of some blocks as one block on the CPU, with their edges to some columns (ascending), dense.

    number: what `row` of the result says, for each row by its own.
    """
    step = torch.cat([block.step[some] for block, some in zip(blocks, rows, strict=True)])
    order = torch.argsort(step, descending=True, stable=True)
    edges = torch.zeros(len(order), len(columns), dtype=blocks[0].dtype)
    place = torch.argsort(order).split([len(some) for some in rows])
    for block, some, into in zip(blocks, rows, place, strict=True):
        inside = columns[columns < block.n_columns]
        step_rows = max(1, _PIECE // max(1, block.width))
        for piece, here in zip(some.split(step_rows), into.split(step_rows), strict=True):
            dense = block.dense(piece)
            edges[here, : len(inside)] = dense.index_select(1, inside.to(dense.device)).cpu()
    row, total, mass = (
        torch.cat([getattr(block, name)[some] for block, some in zip(blocks, rows, strict=True)])[order]
        for name in ("row", "total", "mass")
    )
    ptr = torch.bincount(step, minlength=len(blocks[0].step_ptr)).flip(0).cumsum(0).flip(0)
    return FinishedBlock(number[row], 0, len(columns), edges, total, mass, ptr.tolist())


def _sums(edges_TW: Tensor) -> tuple[Tensor, Tensor]:
    """Signed sums and masses (T,) of rows."""
    # sums over thousands of edges of both signs must not cost the digits that the sum rule checks; MPS has no float64
    wide = torch.float32 if edges_TW.device.type == "mps" else torch.float64
    pieces = edges_TW.split(max(1, _PIECE // max(1, edges_TW.shape[1])))
    total = torch.cat([piece.sum(1, dtype=wide) for piece in pieces])
    return total, torch.cat([piece.abs().sum(1, dtype=wide) for piece in pieces])


def _thin_(edges_W: Tensor, keep_mass: float) -> float:
    """Make the small edges of a row zero; returns the share of its mass that is left."""
    number, shift, size = _GRID[edges_W.dtype]
    absolute = edges_W.abs()
    step = absolute.view(number) >> shift
    weight = absolute if edges_W.device.type == "mps" else absolute.double()
    held = torch.bincount(step, weights=weight, minlength=size).flip(0).cumsum(0).flip(0)
    cut = int((held >= keep_mass * held[0]).sum()) - 1  # the highest step that leaves enough at or above it
    edges_W.masked_fill_(step < cut, 0)
    return float(held[cut] / held[0]) if held[0] > 0 else 1.0
