"""Dictionaries of features: per-layer and cross-layer transcoders, their activations, their files."""

from __future__ import annotations

from circuit_tracer.transcoders.activations import Activation, JumpReLU, ReLU, TopK
from circuit_tracer.transcoders.active import ActiveFeatures
from circuit_tracer.transcoders.base import Transcoders
from circuit_tracer.transcoders.cache import (
    empty_cache,
    get_cache_dir,
    get_cached_path,
    is_cached,
)
from circuit_tracer.transcoders.cache_entries import load_transcoders_from_cache, save_transcoders_to_cache
from circuit_tracer.transcoders.cross_layer import CrossLayerTranscoder
from circuit_tracer.transcoders.loading import load_transcoder_from_hub, load_transcoders, save_transcoders
from circuit_tracer.transcoders.loading_files import (
    load_clt,
    load_gemma_scope_2_clt,
    load_gemma_scope_2_transcoder,
    load_gemma_scope_transcoder,
    load_transcoder,
    load_transcoder_set,
)
from circuit_tracer.transcoders.single_layer import SingleLayerTranscoder
from circuit_tracer.transcoders.transcoder_set import TranscoderSet

__all__ = [
    "Activation",
    "ActiveFeatures",
    "CrossLayerTranscoder",
    "JumpReLU",
    "ReLU",
    "SingleLayerTranscoder",
    "TopK",
    "TranscoderSet",
    "Transcoders",
    "empty_cache",
    "get_cache_dir",
    "get_cached_path",
    "is_cached",
    "load_clt",
    "load_gemma_scope_2_clt",
    "load_gemma_scope_2_transcoder",
    "load_gemma_scope_transcoder",
    "load_transcoder",
    "load_transcoder_from_hub",
    "load_transcoder_set",
    "load_transcoders",
    "load_transcoders_from_cache",
    "save_transcoders",
    "save_transcoders_to_cache",
]
