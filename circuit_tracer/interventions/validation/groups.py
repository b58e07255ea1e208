"""Groups of nodes taken out at once: what the graph predicts, what the model does, and what chance would do.

    effects = group_effects(graph, model, {"Texas": ["0_78_7"], "say Austin": ["1_194_8", "2_156_8"]})
    effects[0].predicted["paths"], effects[0].measured["live"], effects[0].random

| condition | MLPs | attention | norms | predicted by |
|---|---|---|---|---|
| constrained | held: clean output minus what was taken out | frozen | frozen | edges: the sums of the members' |
| live | real, minus what was taken out | live | live | paths: features follow down to 0 |

Letters: G groups, n experiments, N features read, K targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from circuit_tracer.arguments import require_seed, typed
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.errors import InputError
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.validation import Agreement, GroupEffect, GroupLink, GroupTest, RandomGroups
from circuit_tracer.interventions.validation.bench import Bench, Condition, Readings, Sources
from circuit_tracer.interventions.validation.circuit import circuit_of_nodes
from circuit_tracer.interventions.validation.prediction import padded, path_effects
from circuit_tracer.interventions.validation.statistics import agreement
from circuit_tracer.interventions.validation.target_reads import measurable_targets
from circuit_tracer.models.surroundings import fitting_threads, plain_torch
from circuit_tracer.models.tokenization import token_strings

CONSTRAINED = Condition("constrained", "all", freeze_attention=True, freeze_norms=True)
LIVE = Condition("live", "none", freeze_attention=False, freeze_norms=False)
PREDICTED_BY = {CONSTRAINED.name: "edges", LIVE.name: "paths"}
RANDOM_GROUPS = 20  # draws for each group
MIDDLE = (0.05, 0.95)  # ends of the interval of their effects

Groups = Mapping[str, Sequence[str]]  # node ids by name


@typed
@plain_torch()
@torch.no_grad()
def group_effects(
    graph: Graph,
    model: Traceable,
    groups: Groups,
    *,
    random_groups: int = RANDOM_GROUPS,
    seed: int = 0,
    batch_size: int = 16,
) -> list[GroupEffect]:
    """Each group taken out by itself, in the order given; groups of nothing but outputs are left out.

    Outputs among them are not taken out. Cost: a clean pass, and one for every `batch_size` groups (twice), members of
    groups and random groups. Deterministic for a seed.

    Args:
        graph: The attribution graph.
        model: The replacement model that the graph was traced with.
        groups: Node ids (`graph.nodes.ids`) by name.
        random_groups: Draws, for each group, of as many other features of the graph.
        seed: Of whatever is drawn at random.
        batch_size: How many runs share a pass; changes no result beyond rounding.

    Returns:
        An effect a group.

    Raises:
        InputError: For a node that the graph does not have.
        CompatibilityError: For a graph of another model or dictionary.

    Examples:
        >>> from circuit_tracer.interventions import group_effects
        >>> (effect,) = group_effects(graph, model, {"Texas": ["0_78_7"]}, random_groups=1)
        >>> abs(effect.predicted["edges"] - effect.measured["constrained"]) < 1e-3
        True
    """
    with fitting_threads(graph.cfg.d_model):
        return _Experiments(graph, model, groups, random_groups, seed, batch_size).effects()


@typed
@plain_torch()
@torch.no_grad()
def measure_groups(
    graph: Graph,
    model: Traceable,
    groups: Groups,
    *,
    random_groups: int = RANDOM_GROUPS,
    seed: int = 0,
    batch_size: int = 16,
) -> GroupTest:
    """`group_effects`, how well they agree with what is predicted, and necessity and sufficiency of all groups together.

    Args:
        graph: The attribution graph.
        model: The replacement model that the graph was traced with.
        groups: Node ids (`graph.nodes.ids`) by name.
        random_groups: Draws, for each group, of as many other features of the graph.
        seed: Of whatever is drawn at random.
        batch_size: How many runs share a pass; changes no result beyond rounding.

    Returns:
        The effects, their agreement with the prediction, and the groups' necessity and sufficiency together.

    Raises:
        CircuitTracerError: As `group_effects`.
    """
    with fitting_threads(graph.cfg.d_model):
        subject = _Experiments(graph, model, groups, random_groups, seed, batch_size)
        effects, bench = subject.effects(), subject.bench
        links = [link for effect in effects for link in effect.onto if link.clean]
        member = torch.zeros(graph.n_nodes, dtype=torch.bool)
        for nodes in subject.nodes:
            member[nodes] = True
        return GroupTest(
            clean=subject.clean,
            top=subject.top(bench.clean.final[None])[0],
            effects=effects,
            agreement={name: _agreement(effects, name) for name in PREDICTED_BY},
            links={name: _agreement(links, name) for name in PREDICTED_BY},
            circuit=circuit_of_nodes(graph, member, bench, seed),
        )


class _Measured(NamedTuple):
    """Of n experiments: change of the first target (n,), what is left of it, the top token, changes of features (n, N)."""

    change: list[float]
    left: list[float]
    top: list[str | None]
    features: Tensor


class _Experiments:
    """The groups of a graph, ready to be taken out."""

    def __init__(
        self, graph: Graph, model: Traceable, groups: Groups, random_groups: int, seed: int, batch_size: int
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; at least 1 is needed")
        if random_groups < 0:
            raise InputError(f"random_groups is {random_groups}; give how many to draw, 0 for none")
        self.graph, self.random_groups, self.layout = graph, random_groups, graph.nodes.layout
        require_seed(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.ids = graph.nodes.ids()
        found = {name: nodes for name, each in groups.items() if len(nodes := self._nodes(name, each))}
        self.names, self.nodes = list(found), list(found.values())
        self.features = [nodes[nodes < self.layout.n_features] for nodes in self.nodes]
        watched = torch.cat([torch.empty(0, dtype=torch.int64), *self.features]).unique()
        self.bench = Bench(model, graph, watched, measurable_targets(graph), batch_size)
        self.columns = [torch.searchsorted(watched, features) for features in self.features]
        self.target = self.layout.target_start + int(self.bench.targets.rows[0])
        self.clean = self.bench.first_target(_nothing(self.bench))[0]

    def effects(self) -> list[GroupEffect]:
        """One for each group."""
        if not self.nodes:
            return []
        predicted = {
            "edges": self._edges(),
            "paths": path_effects(self.graph, padded([nodes.tolist() for nodes in self.nodes])),
        }
        held = self._measure(self.nodes, CONSTRAINED)
        there = [place for place, nodes in enumerate(self.nodes) if int(nodes.max()) < self.layout.token_start]
        live = self._measure([self.nodes[place] for place in there], LIVE)
        singles, random = self._singles(there, live), self._random(there)
        found = []
        for place, name in enumerate(self.names):
            rows = {CONSTRAINED.name: (held, place), LIVE.name: (live, there.index(place) if place in there else None)}
            found.append(
                GroupEffect(
                    name=name,
                    members=[self.ids[node] for node in self.nodes[place].tolist()],
                    n_features=len(self.features[place]),
                    predicted={by: float(each[self.target, place]) for by, each in predicted.items()},
                    measured={key: None if row is None else of.change[row] for key, (of, row) in rows.items()},
                    singles=singles.get(place),
                    left={key: None if row is None else of.left[row] for key, (of, row) in rows.items()},
                    top={key: None if row is None else of.top[row] for key, (of, row) in rows.items()},
                    random=random.get(place),
                    onto=self._links(place, predicted, rows),
                )
            )
        return found

    def top(self, final_nPD: Tensor) -> list[str | None]:
        """(n,) the most probable token where the first target is read; None where that is no token."""
        token = self.bench.targets.first_token
        if token is None:
            return [None] * len(final_nPD)
        ids = self.bench.log_probabilities(final_nPD[:, token[1]]).argmax(-1)
        return [*token_strings(ids.cpu(), self.bench.model.tokenizer)]

    def _nodes(self, name: str, members: Sequence[str]) -> Tensor:
        nodes = sorted({*self.graph.nodes.numbers(members, f"the group {name!r}")})
        return torch.tensor([node for node in nodes if node < self.layout.target_start], dtype=torch.int64)

    def _edges(self) -> Tensor:
        """(N_graph, G): minus the sum of the edges from a group's members to a node."""
        edges = self.graph.edges
        source, target, weight = edges.source.cpu(), edges.target.cpu(), edges.weight.cpu().double()
        found = torch.zeros(self.graph.n_nodes, len(self.nodes), dtype=torch.float64)
        for place, nodes in enumerate(self.nodes):
            there = torch.isin(source, nodes)
            found[:, place].index_add_(0, target[there], -weight[there])
        return found

    def _measure(self, experiments: Sequence[Tensor], condition: Condition) -> _Measured:
        if not experiments:
            return _Measured([], [], [], torch.empty(0, len(self.bench.watched)))
        readings = self.bench.run([Sources.of_nodes(self.graph, nodes) for nodes in experiments], condition)
        return _Measured(
            readings.targets[:, 0].tolist(),
            self.bench.first_target(readings)[1],
            self.top(readings.final),
            readings.features.double(),
        )

    def _singles(self, there: Sequence[int], live: _Measured) -> dict[int, float]:
        """By group: the sum of what its members do each by itself."""
        several = [place for place in there if len(self.nodes[place]) > 1]
        alone = self._measure([node[None] for place in several for node in self.nodes[place]], LIVE).change
        found, start = {place: live.change[row] for row, place in enumerate(there)}, 0
        for place in several:
            stop = start + len(self.nodes[place])
            found[place], start = sum(alone[start:stop]), stop
        return found

    def _random(self, there: Sequence[int]) -> dict[int, RandomGroups]:
        """By group: as many features that are not in it."""
        drawn: dict[int, list[Tensor]] = {}
        for place in there:
            others = torch.ones(self.layout.n_features, dtype=torch.bool)
            others[self.features[place]] = False
            pool, size = torch.nonzero(others).flatten(), len(self.features[place])
            if 0 < size <= len(pool) and self.random_groups:
                orders = (torch.randperm(len(pool), generator=self.generator) for _ in range(self.random_groups))
                drawn[place] = [pool[order[:size]] for order in orders]
        measured = self._measure([nodes for draws in drawn.values() for nodes in draws], LIVE)
        clean, rows = self.top(self.bench.clean.final[None])[0], range(self.random_groups)
        found = {}
        for number, place in enumerate(drawn):
            which = [number * len(rows) + row for row in rows]
            change, left = ([column[row] for row in which] for column in (measured.change, measured.left))
            flips = None if clean is None else sum(measured.top[row] != clean for row in which) / len(which)
            found[place] = RandomGroups(len(which), *_middle(change), *_middle(left), flips)
        return found

    def _links(
        self, place: int, predicted: Mapping[str, Tensor], rows: Mapping[str, tuple[_Measured, int | None]]
    ) -> list[GroupLink]:
        found = []
        for other, (name, features) in enumerate(zip(self.names, self.features, strict=True)):
            if other == place or not len(features):
                continue
            found.append(
                GroupLink(
                    target=name,
                    clean=float(self.graph.nodes.activation.cpu()[features].double().sum()),
                    predicted={by: float(each[features, place].sum()) for by, each in predicted.items()},
                    measured={
                        key: None if row is None else float(of.features[row, self.columns[other]].sum())
                        for key, (of, row) in rows.items()
                    },
                )
            )
        return found


def _agreement(pairs: Sequence[GroupEffect] | Sequence[GroupLink], condition: str) -> Agreement:
    """Predicted against measured under a condition; of links as shares of what the target has."""
    rows = [
        (each.predicted[PREDICTED_BY[condition]] / size, measured / size)
        for each in pairs
        if (measured := each.measured[condition]) is not None
        for size in (abs(each.clean) if isinstance(each, GroupLink) else 1.0,)
    ]
    columns = torch.tensor(rows, dtype=torch.float64).reshape(-1, 2)
    return agreement(columns[:, 0], columns[:, 1])


def _nothing(bench: Bench) -> Readings:
    """The readings of no experiment."""
    none = bench.clean.final.new_zeros(0, len(bench.targets))
    return Readings(none, none, bench.clean.final[None][:0])


def _middle(values: list[float]) -> tuple[float, float, float]:
    """Mean, and the ends of the middle of the draws."""
    column = torch.tensor(values, dtype=torch.float64)
    low, high = torch.quantile(column, torch.tensor(MIDDLE, dtype=torch.float64)).tolist()
    return float(column.mean()), low, high
