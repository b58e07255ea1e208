"""Model and dictionary as the manifest of a run names them."""

from __future__ import annotations

from typing import Any

import torch

from circuit_tracer.errors import InputError
from circuit_tracer.fingerprint import fingerprints, tokenizer_fingerprint
from circuit_tracer.many.runs.manifest import Manifest, local
from circuit_tracer.models.loading import resolve_dtype
from circuit_tracer.replacement_model import ReplacementModel
from circuit_tracer.transcoders.attention import load_attention
from circuit_tracer.transcoders.loading import load_transcoder_from_hub
from circuit_tracer.transcoders.neurons import NEURONS
from circuit_tracer.transcoders.stacked import stacked


def open_model(manifest: Manifest, device: str | None = None) -> ReplacementModel:
    """Model and dictionary of a run. device: one of the run's kind, such as cuda:1; None: the first.

    Raises InputError for a device of another kind, and what loading raises.
    """
    opening, means = manifest.opening, manifest.means
    device = device or opening.device
    if torch.device(device).type != opening.device:
        raise InputError(f"device is {device}, and the run was begun on {opening.device}: go on there")
    dtype = resolve_dtype(opening.dtype)
    load = ReplacementModel.from_pretrained_and_transcoders
    attention = None if opening.attention is None else load_attention(local(opening.attention), device, dtype)
    how: dict[str, Any] = {"device": device, "dtype": dtype, "attention": attention, "revision": opening.revision}
    if opening.transcoders == NEURONS:
        if not opening.model:
            raise InputError("neurons are a model's own: name the model (-m)")
        model = load(local(opening.model), NEURONS, **how)
        model.prepend_bos = opening.bos
        return model
    transcoders, config = load_transcoder_from_hub(
        local(opening.transcoders),
        device,
        dtype,
        means.lazy_encoder,
        means.lazy_decoder,
        select=opening.select,
        input_shift=opening.input_shift,
        feature_input_hook=opening.feature_input_hook,
        feature_output_hook=opening.feature_output_hook,
    )
    name = opening.model or config.get("model_name")
    if not name:
        raise InputError(f"the transcoders {opening.transcoders} do not name their model; name it (-m)")
    if opening.adapter is not None:
        transcoders = stacked(transcoders, local(opening.adapter), device=device, dtype=dtype)
    model = load(local(str(name)), transcoders, elsewhere=opening.elsewhere, **how)
    model.prepend_bos = opening.bos
    return model


def identity(model: ReplacementModel) -> dict[str, Any]:
    """Fingerprints of model, dictionary and tokenizer; JSON values."""
    return {
        **fingerprints(model.parts, model.transcoders, model.attention),
        "tokenizer": tokenizer_fingerprint(model.tokenizer),
    }
