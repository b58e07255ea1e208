"""One prompt of the embedded world, traced, grouped and named; and what of that is right.

Letters: N nodes of a graph.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from benchmarks.explanations.truth import concept_of, is_named_after, says
from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.circuits.supernodes import Grouping, Supernode
from circuit_tracer.demo.mixing import Carried, carried
from circuit_tracer.demo.show import named_groups
from circuit_tracer.demo.world import Statement
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.influence import node_influence

PURE = 0.9  # share of a group's influence in one concept, from which on it is called pure
OF_FEATURES = ("detects", "says", "mixed")

Labels = Mapping[tuple[int, int], str]
Group = Callable[[Graph, Traceable, Labels], Grouping]


@dataclass
class Explained:
    """A statement with its graph and named groups. labels: what features are truly about, by which purity is judged."""

    statement: Statement
    graph: Graph
    grouping: Grouping
    labels: Labels

    @classmethod
    def of(cls, statement: Statement, model: Traceable, labels: Labels, group: Group = named_groups) -> Explained:
        """Traced, grouped and named."""
        graph = attribute(statement.prompt, model)
        return cls(statement, graph, group(graph, model, labels), labels)

    @property
    def right(self) -> bool:
        """Whether the model's most probable token is the answer."""
        return self.graph.targets.label[0].strip() == self.statement.answer

    @property
    def groups(self) -> dict[str, list[str]]:
        """Node ids of groups of features and errors, by name or place."""
        return {
            group.name or f"group {place}": [*group.members]
            for place, group in enumerate(self.grouping)
            if group.role in (*OF_FEATURES, "error")
        }

    @property
    def of_features(self) -> list[Supernode]:
        return [group for group in self.grouping if group.role in OF_FEATURES]

    @property
    def entity_groups(self) -> list[Supernode]:
        """Groups named after the entity between the hops, that do not say it."""
        return [group for group in self.of_features if is_named_after(group.name, str(self.statement.entity))]

    @property
    def answer_groups(self) -> list[Supernode]:
        """Groups named "say" and the answer."""
        return [group for group in self.of_features if says(group.name, self.statement.answer)]

    @property
    def entity(self) -> list[str]:
        """Node ids of the entity's groups."""
        return [node for group in self.entity_groups for node in group.members]

    @cached_property
    def influence(self) -> dict[str, float]:
        """Of every node, by id."""
        found = node_influence(self.graph.edges, self.graph.blocks, self.graph.target_weights).tolist()
        return dict(zip(self.graph.nodes.ids(), found, strict=True))

    @cached_property
    def label(self) -> dict[str, str | None]:
        """Of feature nodes, by id."""
        nodes, features = self.graph.nodes, range(self.graph.nodes.layout.n_features)
        places = [(int(nodes.layer[node]), int(nodes.feature[node])) for node in features]
        return {name: self.labels.get(place) for name, place in zip(nodes.ids()[: len(places)], places, strict=True)}

    def mixed(self) -> tuple[float, float]:
        """(influence of features in groups that are of no one kind, of all features in groups)."""
        nodes = [node for group in self.of_features for node in group.members if node in self.label]
        mixed = sum(self.influence[node] for node in nodes if concept_of(self.label[node]) is None)
        return mixed, sum(self.influence[node] for node in nodes)

    def purity(self) -> Purity:
        """Summed over groups of features."""
        leading = total = pure = several = 0.0
        for group in self.of_features:
            weights: defaultdict[object, float] = defaultdict(float)
            for node in group.members:
                if node in self.label:
                    concept = concept_of(self.label[node])
                    weights[(node,) if concept is None else concept] += self.influence[node]
            of_one = max((weight for what, weight in weights.items() if not _unknown(what)), default=0.0)
            whole = sum(weights.values())
            leading, total = leading + of_one, total + whole
            pure += whole if whole and of_one >= PURE * whole else 0.0
            several += whole if len(group.members) > 1 else 0.0
        return Purity(leading, pure, several, total)


@dataclass(frozen=True)
class Purity:
    """Influence in groups: of the concept that leads its group; of groups of one concept; of groups of several nodes; all."""

    leading: float
    pure: float
    several: float
    total: float


def _unknown(what: object) -> bool:
    """A feature of no one kind is a concept of its own, that no group can be of."""
    return isinstance(what, tuple) and len(what) == 1


def found(cases: Sequence[Explained]) -> dict[str, float | int]:
    """Shares of the prompts, and of influence summed over them."""
    purities = [case.purity() for case in cases]
    total = sum(each.total for each in purities)
    shares: dict[str, float | int] = {
        "prompts": len(cases),
        "the model is right": _share([case.right for case in cases]),
        "the entity's group is found": _share([bool(case.entity_groups) for case in cases]),
        "the answer's group is found": _share([bool(case.answer_groups) for case in cases]),
        "both are found": _share([bool(case.entity_groups and case.answer_groups) for case in cases]),
        "groups of features, mean": round(sum(len(case.of_features) for case in cases) / len(cases), 2),
        "purity by influence": _part(sum(each.leading for each in purities), total),
        "influence in pure groups": _part(sum(each.pure for each in purities), total),
        "influence in groups of several": _part(sum(each.several for each in purities), total),
    }
    kinds = [carried(case.graph, case.labels) for case in cases]
    parts = [case.mixed() for case in cases]
    shares["mixed features, of the pruned graph's influence"] = _of(kinds, "mixed")
    shares["features of several answers, of the same"] = _of(kinds, "several")
    shares["mixed features, of the groups' influence"] = _part(*map(sum, zip(*parts, strict=True)))
    return shares


def _of(kinds: Sequence[Carried], which: str) -> float:
    return _part(sum(getattr(each, which) for each in kinds), sum(each.all for each in kinds))


def _part(part: float, whole: float) -> float:
    """0 of nothing: a graph without features has no groups of them."""
    return round(part / whole, 4) if whole else 0.0


def _share(hits: Sequence[bool]) -> float:
    return round(sum(hits) / len(hits), 4)
