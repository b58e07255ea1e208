"""A block of finished rows, dense or without the edges that carry next to nothing.

With `keep_mass` < 1 a row keeps its largest edges, to features, errors and tokens alike, until they hold that share of its
mass (the sum of |edges|). The cut lies on a grid of eight steps an octave, so that one histogram finds it: all edges of at
least the cut stay, and what goes is at most 1 - keep_mass of the row. `total` and `mass` are those of the whole row, so what
was dropped is accounted for in its balance, like edges from features that are no nodes.

A block stays where it was swept. Of a dense one nothing is read; of one that is thinned, once, how many edges stay.

Letters: T rows, W sources, E steps, P positions, G steps of the grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from circuit_tracer.attribution.nonzero import places_of_nonzero
from circuit_tracer.attribution.sweep import EdgeBlock
from circuit_tracer.kernels.device import sent

EDGES_A_PIECE = 1 << 18  # edges whose absolute values stay in a CPU's cache until they are summed
_PIECE_ON_GPU = 1 << 26
_GRID = {torch.float32: (torch.int32, 20, 1 << 11), torch.float64: (torch.int64, 49, 1 << 14)}  # sign, exponent, 3 bits


@dataclass(frozen=True)
class SparseEdges:
    """T rows without their zeros; those of row t are `ptr[t]` .. `ptr[t + 1]` - 1."""

    ptr: Tensor  # (T + 1,), known to the host
    column: Tensor  # int32
    value: Tensor

    @classmethod
    def of(cls, dense_TW: Tensor, counts_T: Tensor) -> SparseEdges:
        """The entries of a matrix that are not zero, of which each row has a count, known to the host."""
        ptr = torch.cat([counts_T.new_zeros(1), counts_T.cumsum(0)])
        size, width = int(ptr[-1]), dense_TW.shape[1]
        column, value = dense_TW.new_empty(size, dtype=torch.int32), dense_TW.new_empty(size)
        step, bounds = _rows_a_piece(width, dense_TW.device), ptr.tolist()
        for first in range(0, len(dense_TW), step):
            rows = dense_TW[first : first + step]
            inside = slice(bounds[first], bounds[first + len(rows)])
            place = places_of_nonzero(rows, inside.stop - inside.start)
            value[inside] = rows.flatten().index_select(0, place)
            column[inside] = place.remainder_(width) if len(rows) > 1 else place
        return cls(ptr, column, value)

    @cached_property
    def counts(self) -> Tensor:
        """(T,) edges of each row, where these lie."""
        return sent(self.ptr.diff(), self.value.device)

    def dense(self, rows: slice, width: int) -> Tensor:
        """Some rows, (n, W)."""
        start, stop, _ = rows.indices(len(self.ptr) - 1)
        inside = slice(int(self.ptr[start]), int(self.ptr[stop]))
        out = self.value.new_zeros(stop - start, width)
        first = torch.arange(0, out.numel(), width, device=out.device)
        place = first.repeat_interleave(self.counts[start:stop], output_size=inside.stop - inside.start)
        out.view(-1)[place.add_(self.column[inside])] = self.value[inside]
        return out

    def weighted_sum(self, start: int, stop: int, weight: Tensor, width: int) -> Tensor:
        """(width,) float64: sum over rows start .. stop - 1 of weight times |row|, of the first `width` columns."""
        inside = slice(int(self.ptr[start]), int(self.ptr[stop]))
        counts = self.counts[start:stop]
        share = weight.to(self.value.device).repeat_interleave(counts, output_size=inside.stop - inside.start)
        share *= self.value[inside].abs()
        return _by_column(self.column[inside], share, width).double()


@dataclass(frozen=True)
class FinishedBlock:
    """Rows with their sums. `row` numbers rows globally: targets 0..K-1, then K + column of a feature."""

    row: Tensor  # (T,), known to the host
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
        dense, dropped = block.edges, 0.0
        edges: Tensor | SparseEdges = dense
        if keep_mass < 1 and dense.numel():
            step = _rows_a_piece(dense.shape[1], dense.device)
            kept = torch.cat([_thin_(rows, keep_mass) for rows in dense.split(step)])
            # (T, 2): the only thing that the host hears of a block
            counts_and_kept = torch.stack([torch.count_nonzero(dense, dim=1).to(kept.dtype), kept], dim=1).cpu()
            counts = counts_and_kept[:, 0].long()
            dropped = 1 - float(counts_and_kept[:, 1].min())
            # a column number takes as much room as a weight (in float32)
            if 2 * int(counts.sum()) < dense.numel():
                edges = SparseEdges.of(dense, counts)
        return cls(row, block.n_pos, block.n_columns, edges, total, mass, ptr, dropped)

    def to(self, device: torch.device) -> FinishedBlock:
        """The same on another device."""
        edges = self.edges
        if isinstance(edges, SparseEdges):
            edges = SparseEdges(edges.ptr, edges.column.to(device), edges.value.to(device))
        else:
            edges = edges.to(device)
        return replace(self, edges=edges, total=self.total.to(device), mass=self.mass.to(device))

    def dense(self, rows: slice) -> Tensor:
        """Some rows, (n, W), where they lie."""
        return self.edges.dense(rows, self.width) if isinstance(self.edges, SparseEdges) else self.edges[rows]

    @property
    def dtype(self) -> torch.dtype:
        """Of the edges."""
        return (self.edges.value if isinstance(self.edges, SparseEdges) else self.edges).dtype

    @property
    def width(self) -> int:
        """W."""
        return self.n_columns + len(self.step_ptr[1:]) * self.n_pos

    @property
    def step(self) -> Tensor:
        """(T,) of each row, descending."""
        ptr = torch.tensor(self.step_ptr)
        return torch.arange(len(ptr) - 1).repeat_interleave(ptr[:-1] - ptr[1:]).flip(0)

    def flow_(self, received: Tensor, start: int, stop: int, share: Tensor) -> None:
        """Add to (N,) float64 what features receive when row i of start .. stop - 1 passes on `share[i]` of each |edge|."""
        if isinstance(self.edges, SparseEdges):
            received[: self.n_columns] += self.edges.weighted_sum(start, stop, share, self.n_columns).to(
                received.device
            )
            return
        found = None
        for rows, weight in _passing(self.edges[start:stop, : self.n_columns], share):
            part = weight.to(rows) @ rows.abs()
            found = part if found is None else found.double() + part
        if found is not None:
            received[: self.n_columns] += found.to(received.device)


def side_by_side(blocks: Sequence[FinishedBlock], columns: Tensor, number: Tensor) -> FinishedBlock:
    """Some rows of blocks as one block, with their edges to some columns (ascending), dense, where their sums are.

    number: what `row` of the result says, for each row by its own; -1 for those that are left out.
    """
    device = blocks[0].mass.device
    row = number[torch.cat([block.row for block in blocks])]
    step = torch.cat([block.step for block in blocks])
    order = torch.argsort(step.masked_fill(row < 0, -1), descending=True, stable=True)[: int((row >= 0).sum())]
    place = torch.full_like(row, len(order)).index_copy_(0, order, torch.arange(len(order)))
    order_there, place_there, columns_there = (sent(each, device) for each in (order, place, columns))
    edges = torch.zeros(len(order) + 1, len(columns), dtype=blocks[0].dtype, device=device)  # the last is of no row
    first = 0
    for block in blocks:
        n_inside, step_rows = int(torch.searchsorted(columns, block.n_columns)), _rows_a_piece(block.width, device)
        for start in range(0, len(block.row), step_rows):
            dense = block.dense(slice(start, start + step_rows)).to(device)
            into = place_there[first + start : first + start + len(dense)]
            edges[into, :n_inside] = dense.index_select(1, columns_there[:n_inside])
        first += len(block.row)
    total, mass = (torch.cat([getattr(block, name) for block in blocks])[order_there] for name in ("total", "mass"))
    ptr = torch.bincount(step[order], minlength=len(blocks[0].step_ptr)).flip(0).cumsum(0).flip(0)
    return FinishedBlock(row[order], 0, len(columns), edges[:-1], total, mass, ptr.tolist())


def _passing(rows_TN: Tensor, share_T: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows in pieces, with what each passes on: on a CPU those that pass something on; a GPU would have to be asked."""
    step = _rows_a_piece(rows_TN.shape[1], share_T.device)
    if share_T.device.type == "cpu":
        for some in torch.nonzero(share_T).flatten().split(step):
            yield rows_TN.index_select(0, some.to(rows_TN.device)), share_T[some]
    else:
        yield from zip(rows_TN.split(step), share_T.split(step), strict=True)


def _by_column(column_n: Tensor, weight_n: Tensor, width: int) -> Tensor:
    """(width,) sums of the weights of each column; those of later columns are left out."""
    if column_n.device.type == "cpu":
        return torch.bincount(column_n, weights=weight_n, minlength=width)[:width]
    # bincount waits for the device, to know how many columns there are
    sums = weight_n.new_zeros(width + 1)
    return sums.index_add_(0, column_n.clamp(max=width), weight_n)[:width]


def _rows_a_piece(width: int, device: torch.device) -> int:
    return max(1, (EDGES_A_PIECE if device.type == "cpu" else _PIECE_ON_GPU) // max(1, width))


def _sums(edges_TW: Tensor) -> tuple[Tensor, Tensor]:
    """Signed sums and masses (T,) of rows, float64."""
    # sums over thousands of edges of both signs must not cost the digits that the sum rule checks; MPS has no float64
    mps = edges_TW.device.type == "mps"
    wide = torch.float32 if mps else torch.float64
    pieces = edges_TW.split(_rows_a_piece(edges_TW.shape[1], edges_TW.device))
    total = torch.cat([piece.sum(1, dtype=wide) for piece in pieces])
    mass = torch.cat([piece.abs().sum(1, dtype=wide) for piece in pieces])
    return (total.cpu().double(), mass.cpu().double()) if mps else (total, mass)


def _thin_(edges_TW: Tensor, keep_mass: float) -> Tensor:
    """Make the small edges of rows zero; returns the share of its mass that is left of each, (T,)."""
    number, shift, size = _GRID[edges_TW.dtype]
    n_rows, absolute = len(edges_TW), edges_TW.abs()
    step_TW = absolute.view(number) >> shift
    weight = absolute if edges_TW.device.type == "mps" else absolute.double()
    place = step_TW + size * torch.arange(n_rows, dtype=number, device=edges_TW.device)[:, None]
    mass_TG = _by_column(place.flatten(), weight.flatten(), n_rows * size).view(n_rows, size)
    held_TG = mass_TG.flip(1).cumsum(1).flip(1)
    # the highest step that leaves enough at or above it
    cut_T1 = (held_TG >= keep_mass * held_TG[:, :1]).sum(1, keepdim=True) - 1
    edges_TW.masked_fill_(step_TW < cut_T1, 0)
    left_T = held_TG.gather(1, cut_T1)[:, 0] / held_TG[:, 0]
    return torch.where(held_TG[:, 0] > 0, left_T, 1.0)
