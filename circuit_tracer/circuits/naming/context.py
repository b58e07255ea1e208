"""What labels of several things mean on a prompt: "mixed: Denmark (cities), Japan (cities)" is "Japan (cities)" where it feeds
what says "Japan".

A feature of several things is active for one of them, and what it reads and what reads it is about that one too. Each
neighbour, a feature by its label or an output by its token, speaks for the things that it names, with the influence that runs
along the edge between the two; one that names several things speaks for each with its part of that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch

from circuit_tracer.circuits.naming.concepts import Concept, concepts, is_of_several, leading, parts
from circuit_tracer.circuits.profiles import label_of
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.influence import edge_influence, node_influence


def labels_in_context(graph: Graph, labels: Mapping[Any, str]) -> dict[str, str]:
    """Labels of the graph's features by node id; of one of several things, the part that most speaks for, if it leads.

    labels: by node id or (layer, index). O(E).
    """
    table, layout = graph.nodes, graph.nodes.layout
    ids, columns = table.ids(), (table.layer.tolist(), table.feature.tolist())
    known = {node: label_of(labels, ids[node], columns[0][node], columns[1][node]) for node in range(layout.n_features)}
    outputs = {layout.target_start + row: text.strip() for row, text in enumerate(graph.targets.label)}
    things = {node: {one.text.casefold() for one in concepts(text)} for node, text in (known | outputs).items()}
    several = [node for node, label in known.items() if is_of_several(label)]
    found = {ids[node]: label for node, label in known.items() if label}
    for node, weights in _spoken_for(graph, several, things).items():
        ranked = dict(sorted(weights.items(), key=lambda pair: (-pair[1], pair[0])))
        thing = leading({Concept(text): weight for text, weight in ranked.items()}, sum(ranked.values()))
        if thing is not None:
            found[ids[node]] = next(part for part in parts(known[node]) if concepts(part)[0].text.casefold() == thing)
    return found


def _spoken_for(graph: Graph, several: list[int], things: Mapping[int, set[str]]) -> dict[int, defaultdict[str, float]]:
    """Of each of these nodes, the influence that runs between it and neighbours that name one of its things, by the thing."""
    edges = graph.edges
    flow = edge_influence(edges, node_influence(edges, graph.blocks, graph.target_weights), graph.target_weights).abs()
    theirs = torch.zeros(graph.n_nodes, dtype=torch.bool, device=graph.device)
    theirs[several] = True
    touched = torch.nonzero(theirs[edges.target] | theirs[edges.source]).flatten()
    columns = (edges.target[touched].tolist(), edges.source[touched].tolist(), flow[touched].tolist())
    found = {node: defaultdict[str, float](float) for node in several}
    for target, source, weight in zip(*columns, strict=True):
        for node, neighbour in ((target, source), (source, target)):
            if node in found and neighbour in things:
                for thing in things[node] & things[neighbour]:
                    found[node][thing] += weight / len(things[neighbour])
    return found
