"""What the commands that trace print with `--json`."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from circuit_tracer.cli.answers.lines import Line, Written
from circuit_tracer.cli.answers.read import Told


class Target(Line):
    """What a graph explains. weight: for a token its probability."""

    text: str
    id: int
    position: int
    weight: float


class Summary(Line):
    """A graph in numbers. nmse, l0: of the transcoders, by layer. done, can_go_on: of a trace that was interrupted."""

    prompt: str
    model: str
    scan: str | list[str] | None
    n_tokens: int
    targets: list[Target]
    active_features: int
    feature_nodes: int
    nodes: int
    edges: int
    replacement_score: float
    completeness_score: float
    strict_completeness_score: float
    worst_residual: float | None
    nmse: list[float] = Field(default=[])
    l0: list[float] = Field(default=[])
    kind: str | None = None
    seconds: float | None = None
    interrupted: bool = False
    memory_plan: str | None = None
    neurons: dict[str, Any] | None = None
    warnings: list[str] = Field(default=[])
    done: str | None = None
    can_go_on: bool = False


class Traced(Summary, Written):
    """A graph that was traced. slug: its name, where it has one."""

    slug: str | None


class Planned(Line):
    """What a trace would take, in bytes. phases: by phase, what holds how much."""

    tokens: int
    active_features: int
    feature_nodes: int
    peak: int
    budget: int
    held: int
    keep_patterns: bool
    keep_decoder_rows: bool
    block_rows: int
    phases: dict[str, dict[str, int]]


class Pruned(Written):
    """What pruning left."""

    features: int
    features_before: int
    errors: int
    nodes: int
    edges: int
    edges_before: int
    replacement_score: float
    completeness_score: float


class DemoTold(Traced):
    """The embedded model's graph of a prompt, and its story."""

    story: Told


class Metrics(Written):
    """The demo's model, trained again; metrics: of model and transcoder."""

    metrics: dict[str, Any]
