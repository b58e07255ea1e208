"""Every kept node taken out by itself, under four conditions; predicted against measured.

| condition | MLPs | attention | norms |
|---|---|---|---|
| constrained | held: clean output minus what was taken out | frozen | frozen |
| attention | held | live | frozen |
| window | held from the source's layer to two layers on, then real | frozen | live |
| live | real, minus what was taken out | live | live |

Letters: n nodes taken out, N features read, K targets, M = N + K nodes read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.influence import row_mass
from circuit_tracer.graph.pruning import PruneResult
from circuit_tracer.graph.validation import EdgeRows, Effects, NodeRows
from circuit_tracer.interventions.validation.bench import Bench, Condition, Sources
from circuit_tracer.interventions.validation.prediction import influences, path_effects
from circuit_tracer.interventions.validation.statistics import agreement, mean, spearman
from circuit_tracer.progress import Progress

CONDITIONS = (
    Condition("constrained", "all", freeze_attention=True, freeze_norms=True),
    Condition("attention", "all", freeze_attention=False, freeze_norms=True),
    Condition("window", "window", freeze_attention=True, freeze_norms=False),
    Condition("live", "none", freeze_attention=False, freeze_norms=False),
)
WITH_TOKENS = ("constrained",)  # a real model without a token at a position is no model of that prompt


@dataclass(frozen=True)
class Predictions:
    """What the graph says: `edges` (n, M) by edges alone, `paths` along all paths, both for taking a node out; `influence`
    (n, M) of node on node. kept: (n, M) whether a kept edge is there.
    """

    edges: Tensor
    paths: Tensor
    influence: Tensor
    kept: Tensor


class NodeEffects:
    """Runs the experiments of a pruned graph once; the tables are made from their readings.

    nodes: (n,) kept features, errors and tokens. read: (M,) kept features, then targets.
    """

    def __init__(self, graph: Graph, pruned: PruneResult, bench: Bench, targets: Tensor, progress: Progress) -> None:
        layout = graph.nodes.layout
        mask = pruned.node_mask.cpu()
        self.graph, self.pruned, self.bench = graph, pruned, bench
        self.nodes = torch.nonzero(mask[: layout.target_start]).flatten()
        self.read = torch.cat([torch.nonzero(mask[layout.features]).flatten(), layout.target_start + targets])
        self.first_target = len(self.read) - len(targets)
        self.influence = pruned.influence.cpu()[self.nodes]
        self.is_token = self.nodes >= layout.token_start
        self.predicted = self._predict()
        self.measured: dict[str, Tensor] = {}  # (n, M)
        self.divergence: dict[str, Tensor] = {}  # (n,)
        for number, condition in enumerate(CONDITIONS):
            progress("interventions", number, len(CONDITIONS))
            self._run(condition)
        progress("interventions", len(CONDITIONS), len(CONDITIONS))

    def table(self, name: str) -> Effects:
        """Agreement under one condition."""
        there = self.there(name)
        kept = self.predicted.kept & there[:, None]
        scale = row_mass(self.graph.edges).cpu()[self.read]
        shares = [(each / scale)[kept] for each in (self.predicted.edges, self.measured[name])]
        own = self._own_size().clamp_min(torch.finfo(torch.float64).tiny)
        relative = (self.measured[name].abs() / own)[kept]
        top = self.first_target
        first = self.measured[name][there, top]
        return Effects(
            edges=agreement(*shares),
            nodes=agreement(self.predicted.edges[there, top], first),
            paths=agreement(self.predicted.paths[there, top], first),
            influence=spearman(self.predicted.influence[kept], relative),
            divergence=None
            if self.bench.targets.first_token is None
            else spearman(self.influence[there], self.divergence[name][there]),
        )

    def there(self, name: str) -> Tensor:
        """(n,) the nodes that the condition takes out."""
        return torch.ones_like(self.is_token) if name in WITH_TOKENS else ~self.is_token

    def moved_by_attention(self) -> float | None:
        """Share of what taking out a node does that is due to attention moving: |moved| / (|moved| + |frozen|), each summed
        over kept nodes in shares of their input; mean over features and errors by influence.
        """
        scale = row_mass(self.graph.edges).cpu()[self.read]
        frozen = (self.measured["constrained"] / scale).abs().sum(1)
        moved = ((self.measured["attention"] - self.measured["constrained"]) / scale).abs().sum(1)
        total = frozen + moved
        share = torch.where(total > 0, moved / total.where(total > 0, 1), 0)
        return mean(share[~self.is_token], self.influence[~self.is_token])

    def node_rows(self, stability: Tensor) -> NodeRows:
        """stability: (N_graph,) by node."""
        return NodeRows(
            node=self.nodes.tolist(),
            influence=_rounded(self.influence),
            predicted=_rounded(self.predicted.edges[:, self.first_target]),
            measured={
                name: [
                    value if there else None
                    for value, there in zip(
                        _rounded(each[:, self.first_target]), self.there(name).tolist(), strict=True
                    )
                ]
                for name, each in self.measured.items()
            },
            stability=_rounded(stability[self.nodes]),
        )

    def edge_rows(self, stability: Tensor) -> EdgeRows:
        """stability: (E,) by edge of the graph."""
        source, target = torch.nonzero(self.predicted.kept, as_tuple=True)
        edges = self.graph.edges
        key = edges.target.cpu() * self.graph.n_nodes + edges.source.cpu()
        where = torch.searchsorted(key, self.read[target] * self.graph.n_nodes + self.nodes[source])
        return EdgeRows(
            source=self.nodes[source].tolist(),
            target=self.read[target].tolist(),
            predicted=_rounded(self.predicted.edges[source, target]),
            measured={
                name: [
                    value if there else None
                    for value, there in zip(
                        _rounded(each[source, target]), self.there(name)[source].tolist(), strict=True
                    )
                ]
                for name, each in self.measured.items()
            },
            stability=_rounded(stability[where]),
        )

    def _own_size(self) -> Tensor:
        """(M,) |pre-activation| of features, |demeaned logit| or |value| of targets."""
        activation = self.graph.nodes.activation.double().cpu()[self.read[: self.first_target]]
        return torch.cat([activation, self.bench.targets.clean]).abs()

    def _predict(self) -> Predictions:
        edges, n_nodes = self.graph.edges, self.graph.n_nodes
        place, column = torch.full((n_nodes,), -1), torch.full((n_nodes,), -1)
        place[self.nodes], column[self.read] = torch.arange(len(self.nodes)), torch.arange(len(self.read))
        source, target = place[edges.source.cpu()], column[edges.target.cpu()]
        inside = (source >= 0) & (target >= 0)
        direct = torch.zeros(len(self.nodes), len(self.read), dtype=torch.float64)
        kept = torch.zeros_like(direct, dtype=torch.bool)
        direct[source[inside], target[inside]] = -edges.weight.cpu().double()[inside]
        both = inside & self.pruned.kept_edges.cpu()
        kept[source[both], target[both]] = True
        return Predictions(
            direct,
            path_effects(self.graph, self.nodes)[self.read].T,
            influences(self.graph, self.nodes)[self.read].T,
            kept,
        )

    def _run(self, condition: Condition) -> None:
        there = torch.nonzero(self.there(condition.name)).flatten()
        measured = torch.zeros(len(self.nodes), len(self.read), dtype=torch.float64)
        divergence = torch.zeros(len(self.nodes), dtype=torch.float64)
        if len(there):
            readings = self.bench.run(
                [Sources.of_nodes(self.graph, node[None]) for node in self.nodes[there]], condition
            )
            measured[there] = torch.cat([readings.features.cpu(), readings.targets.cpu()], dim=1).double()
            if (token := self.bench.targets.first_token) is not None:
                clean = self.bench.log_probabilities(self.bench.clean.final[None, token[1]])
                after = self.bench.log_probabilities(readings.final[:, token[1]])
                divergence[there] = (clean.exp() * (clean - after)).sum(-1).double().cpu()
        self.measured[condition.name], self.divergence[condition.name] = measured, divergence


def _rounded(values: Tensor) -> list[float]:
    return [rounded(value) for value in values.tolist()]


def rounded(value: float) -> float:
    """Seven digits: what float32 holds."""
    return float(f"{value:.7g}")


def rounded_columns(measured: dict[str, list[float | None]]) -> dict[str, list[float | None]]:
    """Columns by name, in seven digits; what is missing stays so."""
    return {name: [None if value is None else rounded(value) for value in column] for name, column in measured.items()}
