"""All that a label is predicted from, gathered for the graphs of a run: fingerprints, and what the baselines need."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.classify.folds import Array
from circuit_tracer.errors import InputError
from circuit_tracer.graph.graph import Graph
from circuit_tracer.many.fingerprints.matrix import Matrix
from circuit_tracer.many.fingerprints.random_graphs import Trace, random_graphs
from circuit_tracer.many.fingerprints.readings import Reading, read_model
from circuit_tracer.many.fingerprints.vector import fingerprint


@dataclass(frozen=True)
class Evidence:
    """What a label is predicted from, of N rows; tables have the same ids in the same order.

    Attributes:
        fingerprints: Of the graphs.
        logits: Statistics of the output alone (`logit_statistics`).
        random: Fingerprints of graphs with a random dictionary.
        stream: (N, S, D) the residual stream before the first layer and behind each, at the position that the targets are read
            at.
    """

    fingerprints: Matrix
    logits: Matrix
    random: Matrix
    stream: Array

    def __post_init__(self) -> None:
        for name in ("logits", "random"):
            if getattr(self, name).ids != self.ids:
                raise InputError(
                    f"the rows of {name} are not those of the fingerprints; gather both from the same graphs"
                )
        if len(self.stream) != len(self.ids):
            raise InputError(f"there are activations of {len(self.stream)} rows for {len(self.ids)} fingerprints")

    @property
    def ids(self) -> list[str]:
        """Of the rows."""
        return self.fingerprints.ids


def gather(
    graphs: Iterable[tuple[str, Graph]],
    model: Traceable,
    trace: Trace | None = None,
    *,
    node_threshold: float = 0.8,
    edge_threshold: float = 0.98,
    seed: int = 0,
    progress: Callable[[str, int], None] = lambda stage, done: None,
) -> Evidence:
    """Fingerprint graphs, and read and trace their prompts again for the baselines.

    Costs about one more trace a row.

    Args:
        graphs: With their ids, one at a time in memory.
        model: That they were traced with.
        trace: How, for the graphs with the random dictionary; None: by `attribute` with its defaults.
        node_threshold: Share of the influence that kept nodes hold, 0 to 1 (`prune_graph`).
        edge_threshold: Share of the influence that kept edges hold, 0 to 1 (`prune_graph`).
        seed: Of the random dictionary.
        progress: Called with (stage, rows done).

    Returns:
        Fingerprints and what the baselines read, a row a graph.

    Raises:
        CircuitTracerError: As `attribute` and `Matrix.of` do.
    """
    real, made_up = dict[str, dict[str, float]](), dict[str, dict[str, float]]()
    readings, prompts = dict[str, Reading](), dict[str, Tensor]()
    for one, graph in graphs:
        real[one] = fingerprint(graph, node_threshold, edge_threshold)
        prompts[one] = graph.input_tokens
        readings[one] = read_model(model.parts, graph.input_tokens, int(graph.targets.position.max()))
        progress("graphs", len(real))
    fingerprints = Matrix.of(real)
    for one, graph in random_graphs(model, prompts, trace, seed):
        made_up[one] = fingerprint(graph, node_threshold, edge_threshold)
        progress("graphs with a random dictionary", len(made_up))
    return Evidence(
        fingerprints=fingerprints,
        logits=Matrix.of({one: reading.logits for one, reading in readings.items()}),
        random=Matrix.of(made_up),
        stream=np.stack([reading.stream for reading in readings.values()]),
    )
