"""Which nodes of two graphs are the same: kind, layer, feature and place. Both graphs' edges among the nodes of either.

Letters: P positions of a prompt, N nodes of a graph, U nodes of either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from circuit_tracer.arguments import whole
from circuit_tracer.errors import InputError, shortened
from circuit_tracer.graph.edges import Edges
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.influence import node_influence
from circuit_tracer.graph.nodes import NodeKind
from circuit_tracer.many.comparison.schema import Column

Positions = Literal["same", "end", "pooled"] | Mapping[int, int]


@dataclass(frozen=True)
class Aligned:
    """One graph on the nodes of either (U,): where its nodes went, and what they are there.

    place: (N,) int64. present: bool (U,). node: int64 (U,), the number of the node, of several (pooled) the one with most
    influence, -1 where there is none. activation, influence: float64 (U,), summed; influence by unit of the targets' weight, so
    that targets which are less probable in one graph do not make all of it small. edges: among U nodes, float64, summed.
    """

    graph: Graph
    place: Tensor
    present: Tensor
    node: Tensor
    activation: Tensor
    influence: Tensor
    edges: Edges

    @classmethod
    def of(cls, graph: Graph, place: Tensor, count: int) -> Aligned:
        """The graph with its nodes at `place` (N,) of `count`."""
        edges = graph.edges
        weights = graph.target_weights
        influence = (node_influence(edges, graph.blocks, weights) / weights.sum().clamp_min(1e-300)).cpu()
        order = influence.argsort(stable=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order))
        best = torch.full((count,), -1).scatter_reduce(0, place, rank, "amax")
        summed = Edges.from_coo(
            place[edges.target.cpu()], place[edges.source.cpu()], edges.weight.cpu().double(), count
        )
        return cls(
            graph,
            place,
            best >= 0,
            torch.where(best >= 0, order[best.clamp_min(0)], -1),
            torch.zeros(count, dtype=torch.float64).index_add_(0, place, graph.nodes.activation.cpu().double()),
            torch.zeros(count, dtype=torch.float64).index_add_(0, place, influence),
            summed,
        )

    def row(self, target: int) -> Tensor:
        """(U,) the edges into a node."""
        found = torch.zeros(len(self.present), dtype=torch.float64)
        source, weight = self.edges.row(target)
        found[source] = weight
        return found

    def balance(self, target: int, column: str) -> float:
        """A column of the sum rule of a node's row, summed over the nodes that are there."""
        assert self.graph.balance is not None
        values: Tensor = getattr(self.graph.balance, column)
        return float(values.cpu().double()[self.place == target].sum())


@dataclass(frozen=True)
class Alignment:
    """The nodes of either graph, column by column (U,), sorted by kind, layer, feature and place; see `NodeTable`.

    column: the place, a number into `columns`. Targets of one label are one node, wherever they are read.
    """

    columns: list[Column]
    kind: Tensor
    layer: Tensor
    feature: Tensor
    column: Tensor
    a: Aligned
    b: Aligned

    def __len__(self) -> int:
        return len(self.kind)

    @property
    def common(self) -> Tensor:
        """bool (U,): nodes of both graphs."""
        return self.a.present & self.b.present

    def is_kind(self, kind: NodeKind) -> Tensor:
        """bool (U,)."""
        return self.kind == int(kind)

    @classmethod
    def of(cls, a: Graph, b: Graph, positions: Positions) -> Alignment:
        """Raises InputError for a map of positions that do not exist, or of two to one."""
        columns, column_a, column_b = aligned_positions(a, b, positions)
        labels = {label: number for number, label in enumerate(dict.fromkeys([*a.targets.label, *b.targets.label]))}
        rows = torch.cat([_keys(a, column_a, labels), _keys(b, column_b, labels)])
        keys, place = torch.unique(rows, dim=0, return_inverse=True)
        sides = [
            Aligned.of(g, at, len(keys)) for g, at in zip((a, b), place.split([a.n_nodes, b.n_nodes]), strict=True)
        ]
        kind, layer, feature, column = keys.unbind(1)
        feature, column = feature.clone(), column.clone()
        for side, of_position in (
            (sides[1], column_b),
            (sides[0], column_a),
        ):  # a's last, so that it names common targets
            targets = torch.nonzero((kind == int(NodeKind.TARGET)) & side.present).flatten()
            nodes = side.node[targets]
            feature[targets] = side.graph.nodes.feature.cpu()[nodes]
            column[targets] = of_position[side.graph.nodes.position.cpu()[nodes]]
        return cls(columns, kind, layer, feature, column, *sides)


def _keys(graph: Graph, column_P: Tensor, labels: dict[str, int]) -> Tensor:
    """(N, 4) kind, layer, feature and place; of targets, label and which of those of this label it is."""
    nodes, seen = graph.nodes, dict.fromkeys(labels, 0)
    feature, column = nodes.feature.cpu().clone(), column_P[nodes.position.cpu()]
    for node, label in enumerate(graph.targets.label, nodes.layout.target_start):
        feature[node], column[node] = labels[label], seen[label]
        seen[label] += 1
    return torch.stack([nodes.kind.cpu(), nodes.layer.cpu(), feature, column], dim=1)


def aligned_positions(a: Graph, b: Graph, positions: Positions) -> tuple[list[Column], Tensor, Tensor]:
    """The places, and for each position of a (P_a,) and of b (P_b,) the number of its place."""
    if positions == "pooled":
        every = Column(None, None, None, None)
        return [every], torch.zeros(a.n_pos, dtype=torch.int64), torch.zeros(b.n_pos, dtype=torch.int64)
    to_b = _map(a, b, positions)
    pairs: list[tuple[int | None, int | None]] = []
    waiting = [position for position in range(b.n_pos) if position not in to_b.values()]
    for position in range(a.n_pos):
        partner = to_b.get(position)
        while partner is not None and waiting and waiting[0] < partner:
            pairs.append((None, waiting.pop(0)))
        pairs.append((position, partner))
    pairs += [(None, position) for position in waiting]
    column_a, column_b = (torch.empty(graph.n_pos, dtype=torch.int64) for graph in (a, b))
    columns = []
    for number, (p, q) in enumerate(pairs):
        if p is not None:
            column_a[p] = number
        if q is not None:
            column_b[q] = number
        texts = [None if at is None else graph.token_texts[at] for at, graph in ((p, a), (q, b))]
        columns.append(Column(p, q, *texts))
    return columns, column_a, column_b


def _map(a: Graph, b: Graph, positions: Positions) -> dict[int, int]:
    """b's position for positions of a."""
    if positions in ("same", "end"):
        shift = b.n_pos - a.n_pos if positions == "end" else 0
        return {position: position + shift for position in range(a.n_pos) if 0 <= position + shift < b.n_pos}
    if not isinstance(positions, Mapping):
        raise InputError(
            f"positions is {shortened(positions)}; use 'same', 'end', 'pooled' or {{position in a: position in b}}"
        )
    found = {whole(p, "a position"): whole(q, "a position") for p, q in positions.items()}
    for place, graph, name in ((0, a, "first"), (1, b, "second")):
        used = [pair[place] for pair in found.items()]
        outside = [position for position in used if not 0 <= position < graph.n_pos]
        if outside:
            raise InputError(
                f"positions maps position {outside[0]} of the {name} prompt, whose tokens are 0 to {graph.n_pos - 1}"
            )
        if len(set(used)) < len(used):
            raise InputError(
                f"positions maps two positions to position {max(used, key=used.count)} of the {name} prompt"
            )
    return found
