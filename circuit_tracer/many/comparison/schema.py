"""What a comparison of two graphs is, as plain values: what `Comparison.to_json` writes and the page draws.

Every difference is b - a: what changes from the first graph to the second. Numbers that do not exist are None. What each number
means and how it is computed: many/README.md.

Nodes of the two graphs that are the same (kind, layer, feature, place) are one `Node`. A place is a `Column`: a position of the
first prompt and the position of the second that answers to it, or one of them alone; pooled comparisons have one column, number
0, for all positions. Nodes and links are those that either graph keeps when it is pruned, and what differs most; what is left
out is summed in `rest`, so that nodes + rest + bias + unselected add up to the change of the target.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from circuit_tracer.errors import FileFormatError

VERSION = 1

Kind = Literal["feature", "error", "token", "target"]
In = Literal["both", "a", "b"]


@dataclass(frozen=True)
class Side:
    """One of the two graphs.

    model: its name; fingerprint: of its weights, None where not known. edits: the intervention that the graph was traced under,
    in words. value: what the target's row adds up to (a demeaned logit, or a pre-activation). probability: the target's weight,
    for a token its probability; None for a feature of the graph. residual: of the target's row, as a share of its terms.
    """

    prompt: str
    model: str
    fingerprint: str | None
    edits: list[str]
    value: float
    probability: float | None
    residual: float
    n_features: int
    n_nodes: int
    n_edges: int


@dataclass(frozen=True)
class Column:
    """A place on the page: positions and tokens in both prompts; None where a prompt has none."""

    a: int | None
    b: int | None
    token_a: str | None
    token_b: str | None


@dataclass(frozen=True)
class Share:
    """What a kind of nodes gives the target, and what changes: Σ difference is the change of the target, over the shares.

    kind: a kind of nodes, or "bias" (what the model's constants give), or "unselected" (active features that are no nodes, and
    edges that were not kept). mass: Σ|difference| over its nodes. For features the difference is activation + weight +
    appeared + disappeared (0 for the others): activation and weight, of nodes in both graphs, what is due to the change of
    their activations and of their weights onto the target; appeared, disappeared: of nodes that only b, or only a, has.
    """

    kind: Literal["feature", "error", "token", "bias", "unselected"]
    count: int
    a: float
    b: float
    difference: float
    mass: float
    activation: float = 0.0
    weight: float = 0.0
    appeared: float = 0.0
    disappeared: float = 0.0


@dataclass(frozen=True)
class Node:
    """A node of either graph, or of both. id: unique in the comparison, "{layer}_{feature}_{column}" as in a graph ("E" for the
    layer of tokens, "-1" for the feature of errors). a, b: its ids in the graphs; of a pooled node, that with most influence.

    influence_a, influence_b: on all targets, by unit of their weight. edge_a, edge_b: its edges onto the target, 0 where it is
    not; difference = edge_b - edge_a. activation, weight: the two parts of the difference of a feature in both graphs, else
    None. carried: what its change of activation gives the target along all paths, the edge among them; None where not known
    (pooled; errors and tokens, whose vectors no graph keeps).
    """

    id: str
    kind: Kind
    layer: int
    column: int
    feature: int
    label: str | None
    within: In
    a: str | None
    b: str | None
    activation_a: float | None
    activation_b: float | None
    influence_a: float
    influence_b: float
    edge_a: float
    edge_b: float
    difference: float
    activation: float | None
    weight: float | None
    carried: float | None


@dataclass(frozen=True)
class Link:
    """An edge between two of `nodes` (numbers into the list): its weights in both graphs, 0 where it is not."""

    source: int
    target: int
    a: float
    b: float


@dataclass(frozen=True)
class Rest:
    """Nodes that are not in the list."""

    count: int
    difference: float
    mass: float


@dataclass(frozen=True)
class Similarity:
    """How alike the influences of the nodes are, 0 to 1: Σ min / Σ max; cosine; rank-biased overlap (p = 0.9)."""

    weighted_jaccard: float
    cosine: float
    rank_biased_overlap: float


@dataclass(frozen=True)
class Comparison:
    """All of it.

    Attributes:
        same: What both graphs have in common, of "prompt", "model", "dictionary" and "edits".
        target: The target's label.
        target_node: Its number in `nodes`.
        others: Further targets that both graphs have.
        difference: Of the target's value.
        accounted: Σ of the shares' differences.
        gap: Difference - accounted, which is the residuals' and rounding's alone.
        unexplained: Share of the mass of the change that errors and unselected features carry.
        conclusive: Whether it is small enough to say where the change comes from.
        verdict: What was found, in sentences.
    """

    a: Side
    b: Side
    same: list[str]
    positions: Literal["same", "end", "map", "pooled"]
    columns: list[Column]
    n_layers: int
    target: str
    target_node: int
    others: list[str]
    difference: float
    accounted: float
    gap: float
    unexplained: float
    conclusive: bool
    verdict: list[str]
    shares: list[Share]
    nodes: list[Node]
    links: list[Link]
    rest: Rest
    similarity: dict[Literal["features", "nodes"], Similarity]
    version: int = VERSION

    def largest(self, count: int, by: Literal["difference", "carried"] = "difference") -> list[Node]:
        """The listed nodes that change the target most, by their edges or along all paths."""
        known = [node for node in self.nodes if getattr(node, by)]
        return sorted(known, key=lambda node: -abs(getattr(node, by)))[:count]

    def to_json(self) -> dict[str, Any]:
        """Plain values, which `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> Comparison:
        """Raises FileFormatError for anything that `to_json` does not write, or that a later version wrote."""
        from pydantic import TypeAdapter, ValidationError

        found = values.get("version") if isinstance(values, dict) else None
        if found != VERSION:
            raise FileFormatError(f"comparison of version {found!r}; this circuit-tracing reads {VERSION}")
        try:
            return TypeAdapter(cls).validate_python(values)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise FileFormatError(f"comparison: {place}: {first['msg']}. Compare the graphs again.") from error
