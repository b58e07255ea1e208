"""The numbers of an evaluation, as plain data.

Definitions: README.md beside this file. A number that is not defined (a layer whose outputs do not vary, a share of nothing)
is NaN here and null in JSON. Estimates carry the interval of a number of the same name (`intervals.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from circuit_tracer.training.evaluation.intervals import Estimate, mean_estimate

# Shares of tokens that bound the bins of the density histogram: half decades. The first bin holds everything below, without
# the features that never fire, the last one ends at 1.
DENSITY_EDGES = tuple(10 ** (exponent / 2) for exponent in range(-14, 1))

DIGITS = 6  # significant digits of the numbers in JSON

DICTIONARY, RANDOM, PER_LAYER = "dictionary", "random", "per_layer"  # keys of Evaluation.results
REPLACEMENT_NUMBERS = ("cross_entropy", "kl", "top1", "top1_filtered", "ce_recovered", "ce_recovered_from_mean")
GRAPH_SCORES = ("replacement", "completeness", "strict_completeness", "features")
FAITHFULNESS = ("edges_live", "edges_window", "groups_live", "top_group_moves", "random_group_moves")

Estimates = dict[str, Estimate]


@dataclass(frozen=True)
class HeldOutReconstruction:
    """How well the outputs of each layer are reconstructed, and how often features fire. estimates: mean_nmse, total_l0."""

    tokens: int
    nmse: list[float]
    l0: list[float]
    features: list[int]
    never_active: list[int]
    max_density: list[float]
    density_histogram: list[list[int]]  # by layer: features in the bins of DENSITY_EDGES
    estimates: Estimates = field(default_factory=dict, compare=False)

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
    """The model with something in place of all its MLPs, or of the stream at one place, against the model itself, over the same
    predictions. estimates: all of `REPLACEMENT_NUMBERS`.
    """

    cross_entropy: float  # nats a token
    kl: float  # KL(model || replaced), nats a token
    top1: float
    top1_filtered: float
    ce_recovered: float  # of what zero ablation loses
    ce_recovered_from_mean: float  # of what mean ablation loses
    estimates: Estimates = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class ModelItself:
    """The model as it is, on the predictions that replacement is measured on."""

    predictions: int
    filtered_predictions: int  # right, at a probability below FILTER_PROBABILITY
    cross_entropy: float
    accuracy: float


@dataclass(frozen=True)
class GraphScore:
    """Scores of one prompt's unpruned graph, and how far the model follows it (README.md §3, §4); why there are none, if it
    could not be traced.
    """

    prompt: str
    replacement: float = math.nan
    completeness: float = math.nan
    strict_completeness: float = math.nan
    features: int = 0
    problem: str | None = None
    held_out: bool = False  # cut from held-out text
    edges_live: float = math.nan
    edges_window: float = math.nan
    groups_live: float = math.nan
    top_group_moves: float = math.nan
    random_group_moves: float = math.nan


@dataclass(frozen=True)
class DictionaryResult:
    """Everything about one dictionary. None or empty: not measured. spliced: an autoencoder's, by layer of the dictionary."""

    what: str
    reconstruction: HeldOutReconstruction
    replacement: Replacement | None = None
    graphs: list[GraphScore] = field(default_factory=list)
    spliced: list[Replacement] = field(default_factory=list)

    @property
    def estimates(self) -> Estimates:
        """All numbers that have an interval."""
        replaced = {} if self.replacement is None else self.replacement.estimates
        spliced = mean_of_layers(self.spliced)
        return {**self.reconstruction.estimates, **replaced, **spliced, **graph_estimates(self.graphs)}


@dataclass(frozen=True)
class Evaluation:
    """A dictionary beside its baselines.

    Attributes:
        results: "dictionary", "random", "per_layer"; ``ablations``: "zero", "mean", of all MLPs; ``spliced_ablations``: the
            same of the stream, by layer of an autoencoder.
        not_measured: What was asked for and does not apply, and why.
    """

    conditions: dict[str, Any]
    results: dict[str, DictionaryResult]
    model: ModelItself | None = None
    ablations: dict[str, Replacement] = field(default_factory=dict)
    spliced_ablations: dict[str, list[Replacement]] = field(default_factory=dict)
    not_measured: list[str] = field(default_factory=list)

    @property
    def differences(self) -> dict[str, Estimates]:
        """This dictionary minus each other one, by name: paired, over the same sequences and prompts."""
        own = self.results.get(DICTIONARY)
        if own is None:
            return {}
        return {name: _paired(own, other) for name, other in self.results.items() if name != DICTIONARY}

    def to_json(self) -> dict[str, Any]:
        """Plain values, numbers rounded to six digits; equal evaluations give equal text."""
        plain = _with_intervals(asdict(self))
        plain["density_edges"] = list(DENSITY_EDGES)
        for name, result in self.results.items():
            plain["results"][name]["reconstruction"] |= {
                "mean_nmse": result.reconstruction.mean_nmse,
                "total_l0": math.fsum(result.reconstruction.l0),
                "dead_share": result.reconstruction.dead_share,
            }
            plain["results"][name]["mean_graph_scores"] = mean_scores(result.graphs)
            plain["results"][name]["graph_intervals"] = _plain(graph_estimates(result.graphs))
        plain["differences"] = {name: _plain(one) for name, one in self.differences.items()}
        rounded: dict[str, Any] = _rounded(plain)
        return rounded


def mean_scores(graphs: list[GraphScore]) -> dict[str, float]:
    """Means over the graphs that could be traced; empty without graphs."""
    if not graphs:
        return {}
    means = {name: one.value for name, one in graph_estimates(graphs).items()}
    return {"graphs": float(sum(graph.problem is None for graph in graphs)), **means}


def graph_estimates(graphs: Sequence[GraphScore]) -> Estimates:
    """Means over prompts of everything that was measured on a graph; of each over the prompts that have it."""
    traced = [graph for graph in graphs if graph.problem is None]
    found = {name: mean_estimate([getattr(graph, name) for graph in traced]) for name in GRAPH_SCORES if graphs}
    for name in FAITHFULNESS:
        values = [value for graph in traced if math.isfinite(value := getattr(graph, name))]
        if values:
            found[name] = mean_estimate(values)
    return found


def mean_of_layers(spliced: Sequence[Replacement]) -> Estimates:
    """Means over the layers of an autoencoder, spliced one at a time over the same sequences."""
    if not spliced:
        return {}
    found = {}
    for name in REPLACEMENT_NUMBERS:
        layers = [one.estimates[name] for one in spliced]
        without = zip(*(one.without for one in layers), strict=True)
        found[name] = Estimate(_mean([one.value for one in layers]), tuple(_mean(list(each)) for each in without))
    return found


def _paired(own: DictionaryResult, other: DictionaryResult) -> Estimates:
    # of a random dictionary the first prompts may be all that were traced
    both = [
        pair for pair in zip(own.graphs, other.graphs, strict=False) if all(graph.problem is None for graph in pair)
    ]
    ours, theirs = own.estimates, other.estimates
    for found, graphs in ((ours, [one for one, _ in both]), (theirs, [one for _, one in both])):
        found.update(graph_estimates(graphs))
    return {name: ours[name] - theirs[name] for name in ours if name in theirs}


def _with_intervals(value: Any) -> Any:
    """Plain values with intervals in place of estimates, which are numbers by the hundred."""
    if isinstance(value, list):
        return [_with_intervals(item) for item in value]
    if not isinstance(value, dict):
        return value
    plain = {key: _with_intervals(item) for key, item in value.items() if key != "estimates"}
    if "estimates" in value:
        plain["intervals"] = _plain({name: Estimate(**one) for name, one in value["estimates"].items()})
    return plain


def _plain(found: Estimates) -> dict[str, dict[str, float]]:
    return {name: one.plain() for name, one in found.items()}


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
