"""An import path of circuit-tracer, and nothing else (see `circuit_tracer.utils`); the dictionaries are in `transcoders`."""

from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet, load_transcoder_set

__all__ = ["CrossLayerTranscoder", "SingleLayerTranscoder", "TranscoderSet", "load_transcoder_set"]
