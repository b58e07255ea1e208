"""Scores of the graphs of fixed prompts: how much of what reaches the output comes from tokens, and not from errors
(README.md §3).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.errors import InputError, NumericalError
from circuit_tracer.graph.balance import ReconstructionWarning
from circuit_tracer.graph.scores import graph_scores
from circuit_tracer.training.evaluation.results import GraphScore


def score_graphs(
    model: Traceable,
    prompts: Sequence[str],
    max_feature_nodes: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[GraphScore]:
    """Scores of each prompt's graph, unpruned, with the default targets.

    max_feature_nodes: features with a row of their own, the most influential ones; the others' mass counts as error. A prompt
    that cannot be traced (no active feature) has no scores and says why.
    """
    scores = []
    for number, prompt in enumerate(prompts, start=1):
        scores.append(_score(model, prompt, max_feature_nodes))
        progress(number, len(prompts))
    return scores


def _score(model: Traceable, prompt: str, max_feature_nodes: int | None) -> GraphScore:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", ReconstructionWarning
            )  # NMSE is part of the evaluation, and random baselines are bad
            graph = attribute(prompt, model, max_feature_nodes=max_feature_nodes)
    except (InputError, NumericalError) as error:
        return GraphScore(prompt, problem=str(error))
    scores = graph_scores(graph, count_unselected=True)
    return GraphScore(
        prompt, scores.replacement, scores.completeness, scores.strict_completeness, len(graph.active_features)
    )
