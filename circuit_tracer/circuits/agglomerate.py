"""Merging what is most alike, pair by pair, while the contraction stays acyclic: a tree that may be cut at any branch.

Letters: n nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

_APART = -1.0  # likeness of two that may not merge


@dataclass(frozen=True)
class Bounds:
    """What a group may span, and how much alike its halves must be. layers, positions: the most that its ends differ by."""

    layers: int
    positions: int
    likeness: float


class Merge(NamedTuple):
    """Two groups become one, of all these rows; parts: numbers of earlier merges, or -1 - row for a node by itself."""

    rows: list[int]
    parts: tuple[int, int]


def agglomerate(
    likeness: Tensor, reads: Tensor, apart: Tensor, layer: Tensor, position: Tensor, bounds: Bounds
) -> list[Merge]:
    """The merges, in order: always the two groups whose members are most alike in the mean, of those that may merge.

    likeness: (n, n) symmetric, in 0..1. reads: (n, n) bool, row = target. apart: (n, n) bool, pairs that are never in one
    group. layer, position: (n,). Two groups may merge that keep within the bounds and between which no path runs through a
    third group. O(n * n) a merge.
    """
    state, found = _State(likeness, reads, apart, layer, position, bounds), list[Merge]()
    numbers = [-1 - row for row in range(len(likeness))]
    members = [[row] for row in range(len(likeness))]
    while (pair := state.best()) is not None:
        kept, joined = pair
        state.merge(kept, joined)
        members[kept] = sorted(members[kept] + members[joined])
        found.append(Merge(members[kept], (numbers[kept], numbers[joined])))
        numbers[kept] = len(found) - 1
    return found


class _State:
    """The groups that there are, each in the row of its first node."""

    def __init__(
        self, likeness: Tensor, reads: Tensor, apart: Tensor, layer: Tensor, position: Tensor, bounds: Bounds
    ) -> None:
        n = len(likeness)
        self.bounds, self.reach, self.apart = bounds, _Reach(reads), apart.clone().fill_diagonal_(True)
        self.size = torch.ones(n, dtype=torch.float64)
        self.mean = likeness.double().clone()  # over the pairs of members
        self.ends = [
            (layer.clone(), layer.clone(), bounds.layers),
            (position.clone(), position.clone(), bounds.positions),
        ]
        may = torch.stack([self._may(row) for row in range(n)]) if n else self.apart
        self.open = self.mean.masked_fill(~may | self.reach.detours(), _APART)  # likeness of the pairs that may merge

    def best(self) -> tuple[int, int] | None:
        """The two that merge next."""
        while self.open.numel():
            kept, joined = sorted(divmod(int(self.open.argmax()), len(self.open)))
            if float(self.open[kept, joined]) < self.bounds.likeness:
                return None
            if not self.reach.detours_of(kept)[joined]:  # there may be one since other groups merged
                return kept, joined
            self.open[kept, joined] = self.open[joined, kept] = _APART
        return None

    def merge(self, kept: int, joined: int) -> None:
        """One group in the place of two."""
        self.reach.merge(kept, joined)
        for low, high, _ in self.ends:
            low[kept], high[kept] = torch.minimum(low[kept], low[joined]), torch.maximum(high[kept], high[joined])
        self.apart[kept] |= self.apart[joined]
        self.apart[:, kept] |= self.apart[:, joined]
        self.apart[joined], self.apart[:, joined] = True, True
        both = self.size[kept] + self.size[joined]
        mean = (self.size[kept] * self.mean[kept] + self.size[joined] * self.mean[joined]) / both
        self.mean[kept], self.mean[:, kept], self.size[kept] = mean, mean, both
        fresh = mean.masked_fill(~self._may(kept) | self.reach.detours_of(kept), _APART)
        self.open[kept], self.open[:, kept] = fresh, fresh
        self.open[joined], self.open[:, joined] = _APART, _APART

    def _may(self, row: int) -> Tensor:
        """(n,) which groups it may merge with, paths aside."""
        may = ~self.apart[row]
        for low, high, most in self.ends:
            may &= torch.maximum(high, high[row]) - torch.minimum(low, low[row]) <= most
        return may


class _Reach:
    """Which groups read which, and which are reached from which along any path; 0 or 1, row = target."""

    def __init__(self, reads: Tensor) -> None:
        self.reads = reads.float()
        self.below = self.reads.clone()
        longer = self._closed_once()
        while not torch.equal(longer, self.below):
            self.below, longer = longer, self._closed_once()

    def _closed_once(self) -> Tensor:
        return (self.below + self.below @ self.below).clamp(max=1)

    def detours(self) -> Tensor:
        """(n, n) bool: a path runs from one to the other through a third."""
        through = (self.below @ self.reads) > 0
        return through | through.T

    def detours_of(self, row: int) -> Tensor:
        """(n,) that row of it."""
        return ((self.below @ self.reads[:, row]) > 0) | ((self.below[row] @ self.reads) > 0)

    def merge(self, kept: int, joined: int) -> None:
        """What either reads or reaches, both do."""
        for matrix in (self.reads, self.below):
            matrix[kept] = torch.maximum(matrix[kept], matrix[joined])
            matrix[:, kept] = torch.maximum(matrix[:, kept], matrix[:, joined])
            matrix[kept, kept] = 0
            matrix[joined], matrix[:, joined] = 0, 0
        above = self.below[:, kept] > 0
        self.below[above] = torch.maximum(self.below[above], self.below[kept])
