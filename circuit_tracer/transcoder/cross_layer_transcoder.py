"""circuit-tracer's `circuit_tracer.transcoder.cross_layer_transcoder`."""

from circuit_tracer.transcoders.cross_layer import CrossLayerTranscoder
from circuit_tracer.transcoders.loading_files import load_clt, load_gemma_scope_2_clt

__all__ = ["CrossLayerTranscoder", "load_clt", "load_gemma_scope_2_clt"]
