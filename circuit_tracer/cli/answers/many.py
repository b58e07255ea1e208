"""What commands over many prompts print with `--json`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from circuit_tracer.cli.answers.lines import Line, Written
from circuit_tracer.many.fingerprints.predict import Score
from circuit_tracer.many.report.behaviour import Behaviour
from circuit_tracer.many.report.findings import Finding
from circuit_tracer.many.report.halves import Halves
from circuit_tracer.many.report.report import Unexplained
from circuit_tracer.many.report.separation import Separator
from circuit_tracer.many.report.steering import Steered
from circuit_tracer.many.report.trust import Trust


class RowError(Line):
    """A row of a run that failed."""

    id: str
    error: str


class RunState(Written):
    """How far a run is. errors: how many rows failed, by the kind of error; examples: a row of each."""

    run: str
    rows: int
    done: int
    failed: int
    waiting: int
    errors: dict[str, int]
    examples: list[RowError]


class CommonFeature(Line):
    """A feature and how common it is. item: layer/index."""

    item: str
    name: str
    frequency: float
    influence: float
    influence_low: float
    influence_high: float
    stability: float


class LabelFeature(Line):
    """A feature that speaks for a label. auc: of telling its graphs from others; q: p corrected for how many were tested."""

    label: str
    item: str
    name: str
    auc: float
    auc_low: float
    auc_high: float
    p: float
    q: float


class Family(Line):
    """Graphs that are alike. medoid: the one in their middle."""

    size: int
    medoid: str
    labels: dict[str, int]


class Aggregated(Written):
    """What a set of graphs has in common. common: curves over the share of graphs that something is in."""

    n_graphs: int
    n_features: int
    n_edges: int
    settings: dict[str, Any]
    features: list[CommonFeature]
    common: dict[str, list[float]]
    labels: list[LabelFeature]
    families: list[Family]


class FingerprintTable(Written):
    """A table of fingerprints: a row a graph."""

    rows: int
    numbers: int


class Predicted(Written):
    """How well fingerprints tell labels apart, beside their baselines."""

    positive: str
    rows: int
    positives: int
    groups: int
    folds: int
    without_label: int
    scores: list[Score]
    places: list[int]


@dataclass(frozen=True, kw_only=True)
class SteeredLine(Steered):
    """With whether it steers: more than random groups of its size do."""

    steers: bool = field()  # and not the property of that name


@dataclass(frozen=True, kw_only=True)
class FindingLine(Finding):
    """With what came of it, in words."""

    steered: list[SteeredLine]  # type: ignore[assignment]
    outcome: Literal["cause", "marker", "separates only", "did not hold"] = field()


@dataclass(frozen=True, kw_only=True)
class SeparatorLine(Separator):
    """With whether it holds on the second half."""

    holds: bool = field()


class Reported(Line):
    """What a run shows; its files are report.html and report.json in its folder."""

    version: int
    conclusions: list[str]
    behaviour: list[Behaviour]
    trust: Trust
    halves: Halves
    separators: list[SeparatorLine]
    findings: list[FindingLine]
    unexplained: Unexplained
    repeat: dict[str, Any]
