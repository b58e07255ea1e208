"""Scores of the graphs of prompts: how much of what reaches the output comes from tokens, and not from errors (README.md §3),
and whether the model does what the graph says (§4).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.errors import InputError, NumericalError
from circuit_tracer.graph.balance import ReconstructionWarning
from circuit_tracer.graph.scores import graph_scores
from circuit_tracer.models.tokenization import Prompt
from circuit_tracer.training.evaluation.faithfulness import tested
from circuit_tracer.training.evaluation.results import GraphScore


@dataclass(frozen=True)
class Named:
    """A prompt, text or ids (P,), and what it is called in the report."""

    name: str
    prompt: Prompt
    held_out: bool = False  # cut from held-out text


def score_graphs(
    model: Traceable,
    prompts: Sequence[Named],
    max_feature_nodes: int | None = None,
    seed: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[GraphScore]:
    """Scores of each prompt's graph, unpruned, with the default targets.

    max_feature_nodes: features with a row of their own, the most influential ones; the others' mass counts as error. seed: of
    the edges and groups that are tested in the model; None: none are. A prompt that cannot be traced (no active feature) has
    no scores and says why. An interrupt (Ctrl-C) is passed on.
    """
    scores = []
    for number, prompt in enumerate(prompts, start=1):
        scores.append(_score(model, prompt, max_feature_nodes, seed))
        progress(number, len(prompts))
    return scores


def _score(model: Traceable, named: Named, max_feature_nodes: int | None, seed: int | None) -> GraphScore:
    try:
        with warnings.catch_warnings():
            # NMSE is part of the evaluation, and random baselines are bad
            warnings.simplefilter("ignore", ReconstructionWarning)
            graph = attribute(named.prompt, model, max_feature_nodes=max_feature_nodes)
    except (InputError, NumericalError) as error:
        return GraphScore(named.name, problem=str(error), held_out=named.held_out)
    if graph.provenance["interrupted"]:  # a trace keeps its rows; what is there has the scores of no graph
        raise KeyboardInterrupt
    scores = graph_scores(graph, count_unselected=True)
    found = GraphScore(
        named.name,
        scores.replacement,
        scores.completeness,
        scores.strict_completeness,
        len(graph.active_features),
        held_out=named.held_out,
    )
    return found if seed is None else tested(found, graph, model, seed)
