"""Put another prompt's group of features in the place of this prompt's: Texas out, California in.

edits = swap_groups(graph, ["0_78_7"], other, ["0_236_7"])
apply_edits(model, graph, edits).tokens()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from circuit_tracer.errors import InputError
from circuit_tracer.graph.graph import Graph
from circuit_tracer.interventions.features.edits import Edit, FeatureAt, ablate, set_to


def swap_groups(
    graph: Graph,
    group: Sequence[str],
    other: Graph,
    other_group: Sequence[str],
    *,
    strength: float = 1.0,
    at: Mapping[int, int] | None = None,
) -> list[Edit]:
    """Edits of `graph`'s prompt: the features of `group` become 0, those of the other prompt's group what they are there,
    times `strength`.

    Groups are node ids; members that are no features (tokens, errors, outputs) cannot be intervened on and are left out.

    Args:
        graph: Of the prompt that is changed.
        group: Node ids of it.
        other: The graph of the other prompt.
        other_group: Node ids of that.
        strength: Factor on the other prompt's activations.
        at: This prompt's position for each position of the other's group; None: the same, for prompts of one length.

    Returns:
        Two edits or more for `apply_edits`.

    Raises:
        InputError: For a node that its graph does not have, a group without features, a position without a place.
    """
    if at is None and graph.n_pos != other.n_pos:
        raise InputError(
            f"the prompts have {graph.n_pos} and {other.n_pos} tokens; say with at={{position there: position here}} where the "
            "other prompt's features belong"
        )
    out = dict.fromkeys(_features(graph, group), 0.0)
    into: dict[FeatureAt, float] = {}
    for feature, value in _features(other, other_group).items():
        assert feature.position is not None
        if at is not None and feature.position not in at:
            raise InputError(
                f"feature {feature} stands at position {feature.position} of the other prompt, for which at={dict(at)!r} "
                "has no place here"
            )
        place = feature.position if at is None else at[feature.position]
        into[FeatureAt(feature.layer, place, feature.feature_idx)] = strength * value
    removed = [feature for feature in out if feature not in into]
    return [*([ablate(removed)] if removed else []), *(set_to(feature, value) for feature, value in into.items())]


def _features(graph: Graph, group: Sequence[str]) -> dict[FeatureAt, float]:
    """The features among some nodes, with their activations."""
    found = {}
    for node in sorted(graph.nodes.numbers(group, f"a group of {graph.input_string!r}")):
        if node < graph.nodes.layout.n_features:
            layer, position, index = graph.active_features[graph.selected_features[node]].tolist()
            found[FeatureAt(layer, position, index)] = float(graph.nodes.activation[node])
    if not found:
        raise InputError(
            f"the group {list(group)!r} of {graph.input_string!r} holds no feature; only features can be put in another's place"
        )
    return found
