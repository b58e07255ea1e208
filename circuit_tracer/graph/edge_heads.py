"""Which attention heads edges run through, as a graph keeps it: `circuit_tracer.attention.explain_edges` makes it.

Letters: E edges, k heads kept an edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from circuit_tracer.errors import InputError
from circuit_tracer.graph.checks import require_tensors
from circuit_tracer.graph.edges import Edges, find_pairs

_WHOLE = ("source", "target", "first", "last")


class HeadWeight(NamedTuple):
    """A head, and what of an edge's weight runs through it."""

    layer: int
    head: int
    weight: float


class HeadsOfEdge(NamedTuple):
    """One edge: its part that runs through no head, the mean number of heads on its paths, and its strongest first heads (who
    pick the information up at the source's token) and last heads (who deliver it at the target's), strongest first.
    """

    direct: float
    mean_hops: float
    first: list[HeadWeight]
    last: list[HeadWeight]

    def to_json(self) -> dict[str, Any]:
        """As viewers read it; numbers to the digits of single precision."""
        heads = {
            name: [[layer, head, _short(weight)] for layer, head, weight in getattr(self, name)]
            for name in ("first", "last")
        }
        return {"direct": _short(self.direct), "hops": _short(self.mean_hops), **heads}


@dataclass(frozen=True)
class EdgeHeads:
    """A table over edges, sorted by (target, source), without duplicates.

    source, target: int64 (E,) node numbers. direct, mean_hops: (E,). first, last: int64 (E, k, 2), layer and head of the
    strongest heads, strongest first, -1 where there are fewer. first_weight, last_weight: (E, k), in units of the edge, 0 where
    there are fewer. Over all heads of the model, direct plus first weights, and direct plus last weights, are the edge.
    """

    source: Tensor
    target: Tensor
    direct: Tensor
    mean_hops: Tensor
    first: Tensor
    first_weight: Tensor
    last: Tensor
    last_weight: Tensor

    def __post_init__(self) -> None:
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        require_tensors(
            {f"edge heads: {name}": columns[name] for name in _WHOLE},
            {f"edge heads: {name}": column for name, column in columns.items() if name not in _WHOLE},
        )
        n_edges, keep = len(self.source), self.keep
        expected: dict[str, tuple[int, ...]] = {"first": (n_edges, keep, 2), "last": (n_edges, keep, 2)}
        expected |= {"first_weight": (n_edges, keep), "last_weight": (n_edges, keep)}
        for name, column in columns.items():
            if tuple(column.shape) != expected.get(name, (n_edges,)):
                raise InputError(
                    f"edge heads: {name} has shape {tuple(column.shape)}; expected {expected.get(name, (n_edges,))}"
                )
            if column.is_floating_point() and not bool(column.isfinite().all()):
                raise InputError(f"edge heads: {name} holds numbers that are not finite")

    def __len__(self) -> int:
        return int(self.source.shape[0])

    @property
    def keep(self) -> int:
        """k."""
        return int(self.first_weight.shape[-1]) if self.first_weight.ndim == 2 else 0

    def check(self, edges: Edges, n_layers: int, n_heads: int | None) -> None:
        """That these are edges of a graph, and heads of a model of `n_heads` a layer (None: not known). Raises InputError."""
        width = 1 + max((int(each.max()) for each in (self.source, self.target) if len(each)), default=0)
        if bool(((self.target * width + self.source).diff() <= 0).any()):
            raise InputError("edge heads must be sorted by target and source, without duplicates")
        if bool((missing := edges.find(self.source, self.target) < 0).any()):
            at = int(missing.nonzero()[0])
            raise InputError(f"edge heads: {int(self.source[at])} -> {int(self.target[at])} is no edge of the graph")
        for name in ("first", "last"):
            heads, weights = getattr(self, name), getattr(self, f"{name}_weight")
            limits = torch.tensor([n_layers, 2**31 if n_heads is None else n_heads], device=heads.device)
            none = (heads == -1).all(-1) & (weights == 0)
            if not bool((none | ((heads >= 0) & (heads < limits)).all(-1)).all()):
                raise InputError(
                    f"edge heads: {name} names heads that a model of {n_layers} layers and {n_heads} heads has not"
                )

    def find(self, source: Tensor, target: Tensor) -> Tensor:
        """Rows (m,) of edges (m,), -1 for those that are not in the table."""
        return find_pairs(self.target, self.source, target, source)

    def rows(self, which: Sequence[int] | Tensor) -> list[HeadsOfEdge]:
        """Rows of the table as plain numbers."""
        chosen = torch.as_tensor(which, dtype=torch.int64, device=self.source.device)
        named = [
            _named(getattr(self, name)[chosen], getattr(self, f"{name}_weight")[chosen]) for name in ("first", "last")
        ]
        numbers = (self.direct[chosen].tolist(), self.mean_hops[chosen].tolist())
        return [HeadsOfEdge(*row) for row in zip(*numbers, *named, strict=True)]

    def renumbered(self, place: Tensor, stays: Tensor) -> EdgeHeads:
        """Of the edges where `stays` (E,) is true, with node n as `place[n]`, which must keep the order of nodes."""
        kept = {field.name: getattr(self, field.name)[stays] for field in fields(self)}
        kept |= {name: place[kept[name]] for name in ("source", "target")}
        return EdgeHeads(**kept)

    def to(self, device: str | torch.device) -> EdgeHeads:
        return EdgeHeads(*(getattr(self, field.name).to(device) for field in fields(self)))


def _named(heads: Tensor, weights: Tensor) -> list[list[HeadWeight]]:
    return [
        [HeadWeight(layer, head, weight) for (layer, head), weight in zip(row, values, strict=True) if layer >= 0]
        for row, values in zip(heads.tolist(), weights.tolist(), strict=True)
    ]


def _short(number: float) -> float:
    return float(f"{number:.7g}")
