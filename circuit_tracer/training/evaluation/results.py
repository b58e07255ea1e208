"""The numbers of an evaluation, as plain data.

Definitions: README.md beside this file. A number that is not defined (a layer whose outputs do not vary, a share of nothing)
is NaN here and null in JSON.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

# Shares of tokens that bound the bins of the density histogram: half decades. The first bin holds everything below, without
# the features that never fire, the last one ends at 1.
DENSITY_EDGES = tuple(10 ** (exponent / 2) for exponent in range(-14, 1))

DIGITS = 6  # significant digits of the numbers in JSON


@dataclass(frozen=True)
class HeldOutReconstruction:
    """How well the outputs of each layer are reconstructed, and how often features fire."""

    tokens: int
    nmse: list[float]
    l0: list[float]
    features: list[int]
    never_active: list[int]
    max_density: list[float]
    density_histogram: list[list[int]]  # by layer: features in the bins of DENSITY_EDGES

    @property
    def mean_nmse(self) -> float:
        """Over layers that have features."""
        return _mean([nmse for nmse, features in zip(self.nmse, self.features, strict=True) if features])

    @property
    def dead_share(self) -> float:
        """Share of all features that fired on no token."""
        return sum(self.never_active) / sum(self.features)


@dataclass(frozen=True)
class Replacement:
    """The model with something in place of all its MLPs, against the model itself, over the same predictions."""

    cross_entropy: float  # nats a token
    kl: float  # KL(model || replaced), nats a token
    top1: float
    top1_filtered: float
    ce_recovered: float  # of what zero ablation loses


@dataclass(frozen=True)
class ModelItself:
    """The model as it is, on the predictions that replacement is measured on."""

    predictions: int
    filtered_predictions: int  # right, at a probability below FILTER_PROBABILITY
    cross_entropy: float
    accuracy: float


@dataclass(frozen=True)
class GraphScore:
    """Scores of one prompt's unpruned graph; why there are none, if it could not be traced."""

    prompt: str
    replacement: float = math.nan
    completeness: float = math.nan
    strict_completeness: float = math.nan
    features: int = 0
    problem: str | None = None


@dataclass(frozen=True)
class DictionaryResult:
    """Everything about one dictionary. None: not measured."""

    what: str
    reconstruction: HeldOutReconstruction
    replacement: Replacement | None = None
    graphs: list[GraphScore] = field(default_factory=list)


@dataclass(frozen=True)
class Evaluation:
    """A dictionary beside its baselines. ``results``: "dictionary", "random", "per_layer"; ``ablations``: "zero", "mean"."""

    conditions: dict[str, Any]
    results: dict[str, DictionaryResult]
    model: ModelItself | None = None
    ablations: dict[str, Replacement] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values, numbers rounded to six digits; equal evaluations give equal text."""
        plain = asdict(self)
        plain["density_edges"] = list(DENSITY_EDGES)
        for name, result in self.results.items():
            plain["results"][name]["reconstruction"] |= {
                "mean_nmse": result.reconstruction.mean_nmse,
                "total_l0": math.fsum(result.reconstruction.l0),
                "dead_share": result.reconstruction.dead_share,
            }
            plain["results"][name]["mean_graph_scores"] = mean_scores(result.graphs)
        rounded: dict[str, Any] = _rounded(plain)
        return rounded


def mean_scores(graphs: list[GraphScore]) -> dict[str, float]:
    """Means over the graphs that could be traced; empty without graphs."""
    traced = [graph for graph in graphs if graph.problem is None]
    if not graphs:
        return {}
    names = ("replacement", "completeness", "strict_completeness", "features")
    means = {name: _mean([getattr(graph, name) for graph in traced]) for name in names}
    return {"graphs": float(len(traced)), **means}


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
