"""What testing a graph by intervention has found; `circuit_tracer.interventions.validate` makes it, graph files keep it.

The tree is plain values: numbers that do not exist (a correlation of one point) are None. What each number means and how it
is measured: interventions/validation/README.md.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from circuit_tracer.errors import FileFormatError

VERSION = 1

# What is measured of a target: a token's probability, a score of attention, a direction's value, a feature's pre-activation.
Measure = Literal["probability", "score", "value", "pre-activation"]


@dataclass(frozen=True)
class Agreement:
    """Predicted against measured, over `count` pairs. slope: of the line through 0 (1: as large as predicted).

    worst: largest |measured - predicted| over the largest |predicted|.
    """

    count: int
    spearman: float | None
    slope: float | None
    worst: float | None


@dataclass(frozen=True)
class Effects:
    """Every kept node taken out by itself, under one condition.

    edges: each kept edge against the change of its target. nodes: each node's edge into the first target against that
    target's change; paths: the same, predicted along all paths. influence: Spearman of the influence of source on target,
    along an edge, with the relative size of the change. divergence: Spearman of a node's influence with how much the
    distribution of the next token moves; None where the first target is no token.
    """

    edges: Agreement
    nodes: Agreement
    paths: Agreement
    influence: float | None
    divergence: float | None


@dataclass(frozen=True)
class Curve:
    """How a perturbation spreads in the dictionary's network and in the model: entry k - 1 is k layers downstream.

    kind: feature, encoder or random. cosine, nmse: of the change of the residual stream; mlp_cosine, mlp_nmse: of the change
    of the MLP output of the k-th layer. count: perturbations that reach so far.
    """

    kind: str
    count: list[int]
    cosine: list[float | None]
    nmse: list[float | None]
    mlp_cosine: list[float | None]
    mlp_nmse: list[float | None]


@dataclass(frozen=True)
class CircuitTest:
    """Probability of the first target, or what else is measured of it (`Measure`): on the clean prompt; without the circuit's
    features; without as many other active features (mean of some draws; None if there are none); with only the circuit's
    features and errors; with nothing; with only as many other features and the same errors (None if not measured).

    Shares of the clean value are None where it is 0, such as a probability too small for the number format.
    """

    clean: float
    without: float
    without_others: float | None
    only: float
    nothing: float
    only_others: float | None = None

    @property
    def necessity(self) -> float | None:
        """Share of it that goes with the circuit; of a negative score as well."""
        return None if self.clean == 0 else 1 - self.without / self.clean

    @property
    def necessity_of_others(self) -> float | None:
        """Share of it that goes with as many other features."""
        return None if self.clean == 0 or self.without_others is None else 1 - self.without_others / self.clean

    @property
    def sufficiency(self) -> float | None:
        """Share of it that the circuit alone gives."""
        return None if self.clean == 0 else self.only / self.clean

    @property
    def sufficiency_of_nothing(self) -> float | None:
        """Share of it that is there without features and errors: what tokens and biases give by themselves."""
        return None if self.clean == 0 else self.nothing / self.clean


@dataclass(frozen=True)
class Accounting:
    """Shares of influence, and the worst residual of the sum rule.

    explained: share of what the kept graph passes to its targets that comes from tokens; the rest comes from errors and from
    what was pruned. errors: share of the whole graph's that comes from errors. unselected: share of input mass, by influence,
    from active features that are no nodes (None: the graph does not say). attention: share, by influence, of what taking a
    node out does that is due to attention patterns moving, which the graph holds frozen.
    """

    residual: float | None
    explained: float | None
    errors: float | None
    unselected: float | None
    attention: float | None


@dataclass(frozen=True)
class Measures:
    """All that is measured of one graph. effects: by condition (constrained, attention, window, live); circuit: by
    condition (constrained, live).
    """

    dictionary: str
    n_features: int
    n_nodes: int
    n_edges: int
    effects: dict[str, Effects]
    curves: list[Curve]
    circuit: dict[str, CircuitTest]
    accounting: Accounting


@dataclass(frozen=True)
class Variation:
    """The same graph with other thresholds or other rows: Jaccard similarity of its kept features and edges with ours."""

    node_threshold: float
    edge_threshold: float
    rows: int
    nodes: float | None
    edges: float | None


@dataclass(frozen=True)
class Stability:
    """nodes, edges: share of the variations of thresholds that keep one of our kept features or edges, mean."""

    nodes: float | None
    edges: float | None
    thresholds: list[Variation]
    rows: list[Variation]


@dataclass(frozen=True)
class NodeRows:
    """Kept features, errors and tokens, column by column. node: its number in the graph. predicted: effect on the first
    target of taking it out, by its edge; measured: by condition (None: not measured). stability: share of the variations
    that keep it.
    """

    node: list[int] = field(default_factory=list)
    influence: list[float] = field(default_factory=list)
    predicted: list[float] = field(default_factory=list)
    measured: dict[str, list[float | None]] = field(default_factory=dict)
    stability: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class EdgeRows:
    """Kept edges, column by column: changes of the target's pre-activation, demeaned logit or value without the source."""

    source: list[int] = field(default_factory=list)
    target: list[int] = field(default_factory=list)
    predicted: list[float] = field(default_factory=list)
    measured: dict[str, list[float | None]] = field(default_factory=dict)
    stability: list[float] = field(default_factory=list)


HeadPart = Literal["through", "first", "last"]


@dataclass(frozen=True)
class HeadRows:
    """What of an edge runs through a head, column by column, in units of the edge. part: all paths through the head, those on
    which it is the first, or the last. measured: by condition (None: not measured).
    """

    source: list[int] = field(default_factory=list)
    target: list[int] = field(default_factory=list)
    layer: list[int] = field(default_factory=list)
    head: list[int] = field(default_factory=list)
    part: list[HeadPart] = field(default_factory=list)
    predicted: list[float] = field(default_factory=list)
    measured: dict[str, list[float | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class HeadTest:
    """Heads that edges are said to run through, held while the source is taken out. agreement: by part and condition
    (constrained, live), both columns as shares of the target's input.
    """

    agreement: dict[str, dict[str, Agreement]]
    rows: HeadRows


@dataclass(frozen=True)
class ScoreRows:
    """What nodes carry of scores of attention, or of their differences, column by column. versus: another key, "rest", or None
    for the score alone. side: "query" and "key" with the other as it is; "both" together. measured: by condition (None: not
    measured).
    """

    layer: list[int] = field(default_factory=list)
    head: list[int] = field(default_factory=list)
    query: list[int] = field(default_factory=list)
    key: list[int] = field(default_factory=list)
    versus: list[int | str | None] = field(default_factory=list)
    side: list[str] = field(default_factory=list)
    node: list[int] = field(default_factory=list)
    predicted: list[float] = field(default_factory=list)
    measured: dict[str, list[float | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoreTest:
    """Scores while nodes are taken out. agreement: by condition (constrained, live)."""

    agreement: dict[str, Agreement]
    rows: ScoreRows


@dataclass(frozen=True)
class RandomGroups:
    """As many other features of the graph taken out at once, drawn `count` times, in the real model.

    change: of the first target; left: what is left of it (`Measure`); each with its mean and the ends of the middle 90 % of
    the draws. flips: share of the draws without which another token is the most probable; None where the first target is none.
    """

    count: int
    change: float
    change_low: float
    change_high: float
    left: float
    left_low: float
    left_high: float
    flips: float | None


@dataclass(frozen=True)
class GroupLink:
    """What a group loses, in pre-activation summed over its features, when another is taken out. clean: what it has.

    predicted: by edges and along all paths; measured: by condition, as of a group.
    """

    target: str
    clean: float
    predicted: dict[str, float]
    measured: dict[str, float | None]


@dataclass(frozen=True)
class GroupEffect:
    """A group taken out at once: changes of the first target's demeaned logit, or what else is measured of it.

    members: the features, errors and tokens taken out. predicted: by edges, and along all paths (features follow down to 0).
    measured: by condition (constrained, live); None where it holds a token, which is taken out of the frozen network only.
    singles: sum of what its members do in the real model each by itself. left: what is left of the target (`Measure`), by
    condition; top: then the most probable token, by condition, None where the target is no token. onto: other groups.
    """

    name: str
    members: list[str]
    n_features: int
    predicted: dict[str, float]
    measured: dict[str, float | None]
    singles: float | None
    left: dict[str, float | None]
    top: dict[str, str | None]
    random: RandomGroups | None
    onto: list[GroupLink]

    @property
    def synergy(self) -> float | None:
        """What the group does in the real model beyond the sum of its members: 0 if they add up."""
        live = self.measured["live"]
        return None if live is None or self.singles is None else live - self.singles

    @property
    def calibration(self) -> float | None:
        """Measured in the real model over predicted along paths; None where nothing is predicted."""
        live, predicted = self.measured["live"], self.predicted["paths"]
        return None if live is None or predicted == 0 else live / predicted


@dataclass(frozen=True)
class GroupTest:
    """Groups of nodes tested. agreement: effects on the first target, constrained against edges and live against paths; links:
    effects on other groups, as shares of what they have. circuit: all groups together, by condition.
    """

    clean: float
    top: str | None
    effects: list[GroupEffect]
    agreement: dict[str, Agreement]
    links: dict[str, Agreement]
    circuit: dict[str, CircuitTest]


@dataclass(frozen=True)
class ValidationReport:
    """Predicted against measured, for a graph pruned at the thresholds. verdict: what the graph explains, in words;
    distrust: what not to trust, and why; empty if nothing was found. heads: None for a graph that does not say which heads its
    edges run through; scores: None for one that keeps no scores of attention; groups: None where none were given. measure:
    what is measured of the target, the first that is a token, or else the first.
    """

    prompt: str
    target: str
    node_threshold: float
    edge_threshold: float
    policy: str
    graph: Measures
    stability: Stability
    controls: dict[str, Measures]
    nodes: NodeRows
    edges: EdgeRows
    verdict: list[str]
    distrust: list[str]
    seconds: float
    heads: HeadTest | None = None
    scores: ScoreTest | None = None
    groups: GroupTest | None = None
    measure: Measure = "probability"
    version: int = VERSION

    def to_json(self) -> dict[str, Any]:
        """Plain values, which `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> ValidationReport:
        """Raises FileFormatError for anything that `to_json` does not write, or that a later version wrote."""
        from pydantic import TypeAdapter, ValidationError

        found = values.get("version") if isinstance(values, dict) else None
        if found != VERSION:
            raise FileFormatError(f"validation report of version {found!r}; this circuit-tracing reads {VERSION}")
        try:
            return TypeAdapter(cls).validate_python(values)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise FileFormatError(f"validation report: {place}: {first['msg']}. Validate the graph again.") from error

    def summary(self) -> dict[str, Any]:
        """Words and main numbers, for viewers; without what does not exist."""
        effects, circuit, accounting = self.graph.effects, self.graph.circuit, self.graph.accounting
        live, held = effects["live"], effects["constrained"]
        curve = next((curve for curve in self.graph.curves if curve.kind == "feature"), None)
        numbers = {
            "influence explained": accounting.explained,
            "influence through errors": accounting.errors,
            "effect through moving attention": accounting.attention,
            "constrained: worst difference from an edge": held.edges.worst,
            "live: Spearman of edges": live.edges.spearman,
            "live: slope of edges": live.edges.slope,
            "live: Spearman of influence with effect": live.influence,
            "perturbation, one layer on: cosine": curve.cosine[0] if curve and curve.cosine else None,
            "perturbation, one layer on: cosine of MLP outputs": curve.mlp_cosine[0]
            if curve and curve.cosine
            else None,
            f"{self.measure} without the circuit": circuit["live"].without,
            f"{self.measure} with only the circuit": circuit["constrained"].only,
            "nodes kept at other thresholds": self.stability.nodes,
        }
        return {
            "verdict": self.verdict,
            "distrust": self.distrust,
            "numbers": {name: float(f"{value:.4g}") for name, value in numbers.items() if value is not None},
        }
