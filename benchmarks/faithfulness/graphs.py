"""Is the intermediate entity of a two-hop prompt on a path from the city to the answer in the graph?

N nodes of a graph, E edges.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.demo import world
from circuit_tracer.demo.probes import Features
from circuit_tracer.demo.world import Statement
from circuit_tracer.graph.edges import Edges
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.paths import strongest_paths
from circuit_tracer.graph.pruning import prune_graph

if TYPE_CHECKING:
    from circuit_tracer.replacement_model import ReplacementModel


def entity_on_path(
    model: ReplacementModel, features: Mapping[str, Features], statements: Sequence[Statement]
) -> dict[str, float]:
    """Shares of the prompts in whose graph a feature of the entity ...

    "is a node": is active; "is on a path": lies on a path from the city to the answer in the graph pruned as usual; "is on the
    strongest path": lies on the heaviest of the paths from the city to the answer in the whole graph. "another entity is
    on a path" is the control: the same for an entity of the same kind drawn at random. A prompt whose most likely answer is
    wrong counts as none.
    """
    chance = random.Random(0)
    names = ("is a node", "is on a path", "is on the strongest path", "another entity is on a path")
    hits = dict.fromkeys(names, 0)
    for one in statements:
        kind = world.entity(str(one.entity)).kind
        another = chance.choice([e.name for e in world.entities() if e.kind == kind and e.name != one.entity])
        graph = attribute(one.prompt, model)
        if graph.targets.label[0].strip() != one.answer:
            continue
        own_N, other_N = (selective_nodes(graph, features[name]) for name in (str(one.entity), another))
        city = graph.nodes.layout.token_start + [label.strip() for label in graph.token_strings or []].index(
            one.subject
        )
        on_path_N = between(prune_graph(graph).pruned_edges, city, graph.nodes.layout.target_start)
        strongest = strongest_paths(graph, graph.nodes.layout.target_start, source=city, k=1)
        hits["is a node"] += bool(own_N.any())
        hits["is on a path"] += bool((own_N & on_path_N).any())
        hits["is on the strongest path"] += bool(strongest) and bool(own_N[list(strongest[0].nodes)].any())
        hits["another entity is on a path"] += bool((other_N & on_path_N).any())
    return {name: round(count / len(statements), 4) for name, count in hits.items()}


def selective_nodes(graph: Graph, features: Features) -> Tensor:
    """(N,) bool: the feature nodes that are occurrences of ``features``."""
    nodes, count = graph.nodes, graph.nodes.layout.n_features
    found = torch.zeros(graph.n_nodes, dtype=torch.bool)
    pairs = zip(nodes.layer[:count].tolist(), nodes.feature[:count].tolist(), strict=True)
    found[:count] = torch.tensor([pair in features for pair in pairs], dtype=torch.bool)
    return found


def between(edges: Edges, source: int, target: int) -> Tensor:
    """(N,) bool: the nodes on any path from ``source`` to ``target``."""
    down_N, up_N = torch.zeros(2, edges.n_nodes, dtype=torch.bool)
    down_N[source] = up_N[target] = True
    for seen_N, tails, heads in ((down_N, edges.source, edges.target), (up_N, edges.target, edges.source)):
        count = -1
        while count != (count := int(seen_N.sum())):
            seen_N[heads[seen_N[tails]]] = True
    return down_N & up_N
