"""What ids of nodes name, in words, for people and assistants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from circuit_tracer.graph.attention_scores import BIAS_TEXTS
from circuit_tracer.graph.words import feature_name, is_of_neurons, left_over

if TYPE_CHECKING:
    from circuit_tracer.graph.graph import Graph


@dataclass(frozen=True)
class NodeWords:
    """Of the nodes of a graph, of active features that are none, and of constants. labels: of features, by (layer, index)."""

    graph: Graph
    labels: Mapping[tuple[int, int], str]

    def of(self, name: str) -> str:
        """Such as `Texas (places) at 'Dallas'`."""
        if name in self._targets:
            return self._targets[name]
        layer, kind, *more = name.split("_")
        token = repr(self.graph.token_texts[int(more[-1])])
        if layer == "E":
            return f"token {token}"
        if kind == "bias":
            return f"{BIAS_TEXTS.get('_'.join(more[:-1]), 'constants')} at {token}"
        return f"{self._feature(int(layer), int(kind))} at {token}"

    def place(self, position: int) -> str:
        """A token and where it is."""
        return f"{self.graph.token_texts[position]!r}@{position}"

    def _feature(self, layer: int, index: int) -> str:
        if index < 0:
            return left_over(self.graph)
        unnamed = feature_name(self.graph, layer, index) if is_of_neurons(self.graph) else "feature"
        return self.labels.get((layer, index), unnamed)

    @cached_property
    def _targets(self) -> dict[str, str]:
        graph = self.graph
        names = graph.nodes.ids()[graph.nodes.layout.targets]
        kinds = zip(graph.targets.label, graph.targets.kind, strict=True)
        words = [f"output {label!r}" if kind == "logit" else label for label, kind in kinds]
        return dict(zip(names, words, strict=True))
