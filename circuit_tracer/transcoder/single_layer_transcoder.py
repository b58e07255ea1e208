"""circuit-tracer's `circuit_tracer.transcoder.single_layer_transcoder`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from circuit_tracer.transcoders import loading_files
from circuit_tracer.transcoders.loading_files import (
    load_gemma_scope_2_transcoder,
    load_gemma_scope_transcoder,
    load_transcoder,
)
from circuit_tracer.transcoders.single_layer import SingleLayerTranscoder
from circuit_tracer.transcoders.transcoder_set import TranscoderSet

__all__ = [
    "SingleLayerTranscoder",
    "TranscoderSet",
    "load_gemma_scope_2_transcoder",
    "load_gemma_scope_transcoder",
    "load_relu_transcoder",
    "load_transcoder",
    "load_transcoder_set",
]


def load_relu_transcoder(
    path: str | Path,
    layer: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = torch.float32,
    lazy_encoder: bool = True,
    lazy_decoder: bool = True,
) -> SingleLayerTranscoder:
    """One layer's transcoder, with the activation that its file says; the order of arguments that circuit-tracer has."""
    return load_transcoder(path, layer, None, device, dtype, lazy_encoder, lazy_decoder)


def load_transcoder_set(
    transcoder_paths: Mapping[int, str | Path],
    scan: str | list[str] | None,
    feature_input_hook: str,
    feature_output_hook: str,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = torch.float32,
    special_load_fn: str | None = None,
    lazy_encoder: bool = True,
    lazy_decoder: bool = True,
    **options: Any,
) -> TranscoderSet:
    """`transcoders.load_transcoder_set`, with circuit-tracer's order of arguments. `special_load_fn` has no effect: formats are
    told by the files.
    """
    return loading_files.load_transcoder_set(
        transcoder_paths,
        scan,
        feature_input_hook,
        feature_output_hook,
        device,
        dtype,
        lazy_encoder,
        lazy_decoder,
        **options,
    )
