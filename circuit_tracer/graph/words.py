"""What nodes without a name of their own are called. Of neurons (`transcoders/neurons.py`), two features are the two sides of
one, and the node that holds what others leave of a layer's output holds other neurons.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from circuit_tracer.graph.graph import Graph

OTHER_NEURONS = "other neurons"


def is_of_neurons(graph: Graph) -> bool:
    """Whether its features are neurons."""
    return (graph.provenance.get("transcoder") or {}).get("kind") == "neurons"


def left_over(graph: Graph, many: bool = False) -> str:
    """What an error node is called."""
    return OTHER_NEURONS if is_of_neurons(graph) else "errors" if many else "error"


def feature_name(graph: Graph, layer: int, index: int) -> str:
    """What a feature without a label is called: L3/41, or L3 neuron 20-, a neuron's negative side; of several dictionaries,
    with the dictionary's name, and its number there: lorsa L3/7.
    """
    part = next(each for each in reversed(graph.parts) if index >= each.first)
    if is_of_neurons(graph) and part is graph.parts[0]:
        return neuron_name(layer, index)
    named = "" if len(graph.parts) == 1 else f"{part.name} "
    return f"{named}L{layer}/{index - part.first}"


def neuron_name(layer: int, index: int) -> str:
    """Of the neuron whose side a feature is."""
    return f"L{layer} neuron {index // 2}{'-' if index % 2 else '+'}"


def feature_noun(graph: Graph) -> str:
    """What a feature is."""
    return "neuron" if is_of_neurons(graph) else "feature"
