"""The points of the model that a dictionary in training reads and writes, from its configuration."""

from __future__ import annotations

from circuit_tracer.errors import InputError
from circuit_tracer.models.model_pass import Points
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.models.sites import check_hooks, width_at
from circuit_tracer.training.config.schema import DictionarySection


def points_of(dictionary: DictionarySection, parts: ModelParts) -> Points:
    """Raises InputError for a layer that the model has not, CompatibilityError for a point that it has not."""
    n_layers = parts.config.n_layers
    layers = tuple(range(n_layers) if dictionary.layers is None else dictionary.layers)
    if max(layers) >= n_layers:
        raise InputError(f"dictionary.layers names layer {max(layers)}; the model's layers are 0 to {n_layers - 1}")
    if dictionary.kind == "sae":
        check_hooks(parts, dictionary.point, dictionary.point)
        return Points(layers, dictionary.point, dictionary.point)
    check_hooks(parts, dictionary.input_hook, dictionary.output_hook)
    return Points(layers, dictionary.input_hook, dictionary.output_hook)


def width_of(dictionary: DictionarySection, parts: ModelParts) -> int:
    """Numbers of an activation where the dictionary stands; of a model that is not loaded, what its activations say."""
    if dictionary.kind != "sae" or not isinstance(parts, ModelParts):
        return parts.config.d_model
    return width_at(parts, dictionary.point)
