"""What is known of a graph's features stays with the graph: labels and examples in its own file, for every command and page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from circuit_tracer.arguments import typed
from circuit_tracer.features.folder import INDEX, FeatureFolder, packed, unpacked
from circuit_tracer.features.labels import read_labels
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.pruning import prune_graph

KEPT = 0.98  # share of the influence whose features keep their examples; labels are kept of all


@typed
def keep_features(
    graph: Graph, folder: str | Path | None = None, labels: Mapping[tuple[int, int], str] | None = None
) -> None:
    """Put labels and examples of a graph's features into it (`Graph.labels`, `Graph.records`); files keep them from then on.

    folder: of built features, or with labels alone. labels: by (layer, index), before those of the folder. What the graph has
    of other features stays. Raises InputError or FileFormatError for a folder that cannot be read.
    """
    nodes, n_features = graph.nodes, graph.nodes.layout.n_features
    places = list(zip(nodes.layer[:n_features].tolist(), nodes.feature[:n_features].tolist(), strict=True))
    known = {**(read_labels(folder) if folder is not None else {}), **(labels or {})}
    graph.labels |= {place: known[place] for place in places if place in known}
    if folder is None or not (Path(folder) / INDEX).is_file():
        return
    records = FeatureFolder(folder)
    shown = prune_graph(graph, KEPT).node_mask[:n_features].tolist()
    wanted = {place for place, there in zip(places, shown, strict=True) if there and place in records}
    graph.records |= {place: packed(records.get(place)) for place in sorted(wanted)}


class KeptRecords:
    """The records that a graph keeps, read when they are asked for. Raises FileFormatError for damaged ones."""

    def __init__(self, graph: Graph) -> None:
        self._records = graph.records

    def get(self, place: tuple[int, int], default: Any = None) -> Any:
        """The record of a feature (layer, index)."""
        if place not in self._records:
            return default
        return unpacked(self._records[place], f"the graph's record of feature {place[1]} of layer {place[0]}")

    def __len__(self) -> int:
        return len(self._records)
