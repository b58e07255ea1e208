"""Does a dictionary of attention outputs belong to a model?"""

from __future__ import annotations

from circuit_tracer.attribution.frozen_attention import OUT, Z
from circuit_tracer.errors import CompatibilityError
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.models.sites import site_of
from circuit_tracer.transcoders.base import Transcoders
from circuit_tracer.transcoders.lorsa import Lorsa
from circuit_tracer.transcoders.transcoder_set import TranscoderSet


def paired_attention(parts: ModelParts, attention: TranscoderSet, transcoders: Transcoders) -> TranscoderSet:
    """A dictionary of attention outputs as that of this model, beside its transcoders. Refuses one that stands elsewhere, or
    cannot belong to it.
    """
    config = parts.config
    if transcoders.is_autoencoder:
        raise CompatibilityError(
            f"a dictionary of attention stands beside transcoders or neurons, and {transcoders.feature_input_hook} has "
            "autoencoders. Give these alone, without attention"
        )
    hooks = (attention.feature_input_hook, attention.feature_output_hook)
    if not isinstance(attention, Lorsa) and hooks not in ((Z, Z), (OUT, OUT)):
        raise CompatibilityError(
            f"a dictionary of attention reads {hooks[0]!r} and writes {hooks[1]!r}; autoencoders of {Z} or {OUT} can stand for "
            "attention in a graph, and Lorsa. Give others as transcoders"
        )
    attention.require_linear()
    for hook in hooks:
        site_of(parts, hook)
    widths = {Z: config.n_heads * config.d_head, OUT: config.d_model}
    width = widths.get(hooks[0], config.d_model)
    if attention.d_model != width:
        raise CompatibilityError(
            f"the dictionary of attention has width {attention.d_model}; {hooks[0]} of {config.model_name} has {width}. Use "
            "the one that was trained on this model"
        )
    if attention.skip_connection:
        raise CompatibilityError(
            "the dictionary of attention has a skip connection; only transcoders of MLPs may have one"
        )
    if max(attention.layers) >= config.n_layers:
        raise CompatibilityError(
            f"the dictionary of attention has a layer {max(attention.layers)}, model {config.model_name} has "
            f"{config.n_layers} layers; use the one that was trained on this model"
        )
    return attention.covering(config.n_layers)


def name_of_attention(attention: TranscoderSet) -> str:
    """What people call it."""
    return "lorsa" if isinstance(attention, Lorsa) else "attention"
