"""Small random autoencoders of a tiny model, and what a change of one of their features does, in plain torch."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from circuit_tracer import ReplacementModel
from circuit_tracer.models.parts import bind
from circuit_tracer.models.run import ModelRun
from circuit_tracer.models.sites import width_at
from circuit_tracer.transcoders import SingleLayerTranscoder, TranscoderSet
from tests.support.dictionaries import make_activation, uniform
from tests.support.tiny import tiny_model, tiny_transcoder

PLACES = (
    "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "attn.hook_z", "attn.hook_out", "hook_attn_out", "mlp.hook_out",
    "hook_mlp_out",
)  # fmt: skip


def random_autoencoders(
    width: int,
    place: str,
    layers: tuple[int, ...] = (0, 2),
    activation: str = "jump_relu",
    n_features: int = 11,
    dtype: torch.dtype = torch.float64,
) -> TranscoderSet:
    """Autoencoders of some layers."""
    singles = {}
    for layer in layers:
        single = SingleLayerTranscoder(
            width, n_features, make_activation(activation, n_features, 3, dtype), layer, dtype=dtype
        )
        for parameter in (single.W_enc, single.W_dec, single.b_enc, single.b_dec):
            parameter.copy_(uniform(*parameter.shape, dtype=dtype))
        singles[layer] = single
    return TranscoderSet(singles, place, place, scan="tiny")


def autoencoded(architecture: str, place: str, dtype: torch.dtype = torch.float64, **given: object) -> ReplacementModel:
    """A tiny model with random autoencoders at a place."""
    model = tiny_model(architecture, dtype)
    torch.manual_seed(5)
    width = width_at(bind(model, architecture), place)
    return ReplacementModel.from_model(
        model,
        random_autoencoders(width, place, dtype=dtype, **given),
        None,
        architecture,  # type: ignore[arg-type]
    )


def naive_change(
    model: ReplacementModel, ids: Tensor, layer: int, index: int, value_of: object, at: list[int]
) -> Tensor:
    """Final-norm output (P, D) with feature `index` of a layer at value_of(a), a its activation, at positions `at`.

    The stream at its place gets (value - a) W_dec[index]; where the MLP reads the stream, so does the stream behind it.
    """
    single = model.transcoders[layer]  # type: ignore[index]
    place, kept = model.transcoders.feature_input_hook, {}

    def visit(at_layer: int, x_BPD: Tensor) -> Tensor | None:
        if at_layer != layer:
            return None
        acts = single.activation_function(x_BPD[0].to(single.W_enc.dtype) @ single.W_enc.T + single.b_enc)[:, index]
        delta = torch.zeros_like(x_BPD)
        for position in at:
            delta[:, position] = (value_of(acts[position]) - acts[position]) * single.W_dec[index]  # type: ignore[operator]
        kept["delta"] = delta
        return x_BPD + delta

    def behind(at_layer: int, x_BPD: Tensor) -> Tensor | None:
        return x_BPD + kept["delta"] if at_layer == layer else None

    visits = {place: visit} | ({"hook_resid_post": behind} if place == "hook_resid_mid" else {})
    return ModelRun(model.parts, visits)(ids).final[0]


def saved_autoencoders(
    folder: Path, model: str, layers: tuple[int, ...] = (0, 2), point: str = "hook_resid_post"
) -> Path:
    """SAELens's files, as the trainer writes them."""
    dictionary = tiny_transcoder("plt", torch.float32, activation="jump_relu")
    for layer in layers:
        one, place = dictionary[layer], folder / f"layer_{layer}"
        place.mkdir(parents=True)
        tensors = {"W_enc": one.W_enc.T, "W_dec": one.W_dec, "b_enc": one.b_enc, "b_dec": one.b_dec}
        threshold = dictionary.activation(layer).threshold.expand(len(one.b_enc))  # type: ignore[attr-defined]
        save_file({name: t.detach().clone().contiguous() for name, t in (tensors | {"threshold": threshold}).items()},
                  place / "sae_weights.safetensors")  # fmt: skip
        metadata = {"model_name": model, "hook_name": f"blocks.{layer}.{point}", "sae_lens_version": "6.0.0"}
        described = {"architecture": "jumprelu", "d_in": 16, "d_sae": 20, "dtype": "float32", "metadata": metadata}
        (place / "cfg.json").write_text(json.dumps(described), encoding="utf-8")
    return folder
