"""circuit-tracer's `circuit_tracer.transcoder`."""

from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet, load_transcoder_set

__all__ = ["CrossLayerTranscoder", "SingleLayerTranscoder", "TranscoderSet", "load_transcoder_set"]
