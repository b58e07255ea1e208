"""All pairs of what a query's token and a key's token hold, as factors: pair (i, j) = sum over d of query[d, i] * key[d, j].

A score is bilinear, so it is the sum of what every source on the query's side does with every source on the key's side. There
are d numbers a source and side; the matrix of pairs is never made, unless a part of it is asked for.

Letters: d d_head, S + B columns (`ScoreSources`), m and n those of a side that are not zero, k pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from circuit_tracer.arguments import typed, whole
from circuit_tracer.attention.score_sources import ScoreSources
from circuit_tracer.errors import InputError

BLOCK = 1024  # columns of a side whose products are looked at together


class Pair(NamedTuple):
    """What one source on the query's side and one on the key's side contribute together to a score."""

    query: str
    key: str
    weight: float


@dataclass(frozen=True)
class Factor:
    """One side: columns (n,) ascending, those that are not zero, and their rows (d, n). position: of the side's constants."""

    columns: Tensor
    rows: Tensor
    position: int

    @classmethod
    def of(cls, rows_dS: Tensor, position: int) -> Factor:
        """Of all columns (d, S + B)."""
        columns = rows_dS.any(0).nonzero().flatten()
        return cls(columns.cpu(), rows_dS[:, columns].contiguous(), position)

    def of_columns(self, numbers: Tensor) -> Tensor:
        """(d, m) of some columns (m,); zeros for those that are not there."""
        found = self.rows.new_zeros(len(self.rows), len(numbers))
        place = torch.searchsorted(self.columns, numbers)
        there = torch.isin(numbers, self.columns)
        found[:, there] = self.rows[:, place[there]]
        return found


@dataclass(frozen=True)
class ScorePairs:
    """Scaling, weights of a contrast, and the secant of a cap are in the key's factor; rotary embeddings in both."""

    sources: ScoreSources
    query: Factor
    key: Factor

    def __len__(self) -> int:
        """How many pairs are not zero by their place."""
        return len(self.query.columns) * len(self.key.columns)

    def total(self) -> float:
        """The score."""
        return float(self.query.rows.sum(1) @ self.key.rows.sum(1))

    @typed
    def of(self, query: int | str, key: int | str) -> float:
        """One pair, by columns, ids, or names of constants. Raises InputError for a source that does not exist."""
        query, key = self.sources.column(query, self.query.position), self.sources.column(key, self.key.position)
        return float(self.matrix(torch.tensor([query]), torch.tensor([key])))

    def marginals(self) -> tuple[Tensor, Tensor]:
        """(S + B,) each: sums of rows, which are the query's marginals, and of columns, the key's."""
        found = []
        for side, other in ((self.query, self.key), (self.key, self.query)):
            sums = side.rows.new_zeros(len(self.sources))
            sums[side.columns.to(sums.device)] = other.rows.sum(1) @ side.rows
            found.append(sums)
        return found[0], found[1]

    @typed
    def matrix(self, query: Tensor, key: Tensor) -> Tensor:
        """The pairs of some columns (m,) with some (n,): (m, n). Raises InputError for what are no columns."""
        for name, columns in (("query", query), ("key", key)):
            if columns.ndim != 1 or columns.is_floating_point() or columns.is_complex() or columns.dtype == torch.bool:
                raise InputError(
                    f"{name} columns are {tuple(columns.shape)} of {columns.dtype}; expected whole numbers (n,)"
                )
            if bool(((columns < 0) | (columns >= len(self.sources))).any()):
                raise InputError(f"{name} columns reach outside of sources 0 to {len(self.sources) - 1}")
        return self.query.of_columns(query.cpu().long()).T @ self.key.of_columns(key.cpu().long())

    def top(self, k: int = 10) -> list[Pair]:
        """The k strongest pairs by absolute value, strongest first: exactly these, found block by block."""
        if whole(k, "k") < 0:
            raise InputError(f"k is {k}; ask for at least 0 pairs")
        weight, query, key = self._strongest(min(k, len(self)))
        order = torch.argsort(weight.abs(), descending=True, stable=True)
        return [
            Pair(source, target, value)
            for source, target, value in zip(
                self.sources.ids(query[order], self.query.position),
                self.sources.ids(key[order], self.key.position),
                weight[order].tolist(),
                strict=True,
            )
        ]

    def _strongest(self, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Weights, query columns and key columns, (k,) each.

        Columns in the order of their norms: no pair is larger than the product of its two, so what is left behind a block whose
        first norms are too small need not be looked at.
        """
        sides = [_by_norm(side) for side in (self.query, self.key)]
        (query, query_rows, query_norms), (key, key_rows, key_norms) = sides
        best = [query_rows.new_empty(0), query.new_empty(0), key.new_empty(0)]
        for i in range(0, len(query) if k else 0, BLOCK):
            for j in range(0, len(key), BLOCK):
                least = float(best[0].abs().min()) if len(best[0]) == k else -1.0
                if float(query_norms[i]) * float(key_norms[j]) * (1 + 1e-5) < least:
                    break
                block = query_rows[:, i : i + BLOCK].T @ key_rows[:, j : j + BLOCK]
                place = block.abs().flatten().topk(min(k, block.numel())).indices
                row, column = place // block.shape[1], place % block.shape[1]
                found = (block.flatten()[place], query[i + row.cpu()], key[j + column.cpu()])
                joined = [torch.cat(both) for both in zip(best, found, strict=True)]
                chosen = joined[0].abs().topk(min(k, len(joined[0]))).indices
                best = [joined[0][chosen], *(each[chosen.cpu()] for each in joined[1:])]
        return best[0].cpu(), best[1], best[2]


def _by_norm(side: Factor) -> tuple[Tensor, Tensor, Tensor]:
    """Columns, their rows and norms, largest norm first."""
    norms = side.rows.norm(dim=0)
    order = norms.argsort(descending=True, stable=True)
    return side.columns[order.cpu()], side.rows[:, order].contiguous(), norms[order]
