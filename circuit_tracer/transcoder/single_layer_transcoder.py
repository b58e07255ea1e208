"""circuit-tracer's `circuit_tracer.transcoder.single_layer_transcoder`."""

from circuit_tracer.transcoders.loading import (
    load_gemma_scope_2_transcoder,
    load_gemma_scope_transcoder,
    load_transcoder,
    load_transcoder_set,
)
from circuit_tracer.transcoders.single_layer import SingleLayerTranscoder
from circuit_tracer.transcoders.transcoder_set import TranscoderSet

__all__ = [
    "SingleLayerTranscoder",
    "TranscoderSet",
    "load_gemma_scope_2_transcoder",
    "load_gemma_scope_transcoder",
    "load_transcoder",
    "load_transcoder_set",
]
