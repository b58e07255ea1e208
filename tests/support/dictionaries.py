"""Small random transcoders, and the plain formulas they are tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from circuit_tracer.transcoders import (
    Activation,
    CrossLayerTranscoder,
    JumpReLU,
    ReLU,
    SingleLayerTranscoder,
    TopK,
    Transcoders,
    TranscoderSet,
)

ACTIVATIONS = ("relu", "jump_relu", "topk", "topk_nonnegative")
KINDS = ("transcoder_set", "cross_layer_transcoder")


def uniform(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.rand(shape, dtype=torch.float64) * 2 - 1).to(dtype)


def make_activation(name: str, n_features: int, k: int = 3, dtype: torch.dtype = torch.float32) -> Activation:
    if name == "jump_relu":
        return JumpReLU(torch.rand(n_features).to(dtype))
    return {"relu": ReLU(), "topk": TopK(k), "topk_nonnegative": TopK(k, nonnegative=True)}[name]


def random_set(
    activation: str = "relu",
    skip: bool = False,
    n_layers: int = 3,
    n_features: int = 13,
    d_model: int = 5,
    dtype: torch.dtype = torch.float32,
    k: int = 3,
) -> TranscoderSet:
    layers = {}
    for layer in range(n_layers):
        function = make_activation(activation, n_features, k, dtype)
        single = SingleLayerTranscoder(d_model, n_features, function, layer, skip_connection=skip, dtype=dtype)
        for parameter in (single.W_enc, single.W_dec, single.b_enc, single.b_dec, single.W_skip):
            if parameter is not None:
                parameter.copy_(uniform(*parameter.shape))
        layers[layer] = single
    return TranscoderSet(layers, "mlp.hook_in", "mlp.hook_out", scan="tiny")


def random_clt(
    activation: str = "relu",
    skip: bool = False,
    n_layers: int = 3,
    n_features: int = 13,
    d_model: int = 5,
    dtype: torch.dtype = torch.float32,
    k: int = 3,
) -> CrossLayerTranscoder:
    function = "jump_relu" if activation == "jump_relu" else make_activation(activation, n_features, k)
    clt = CrossLayerTranscoder(n_layers, n_features, d_model, function, skip, lazy_decoder=False, dtype=dtype)
    for parameter in clt.parameters():
        parameter.copy_(uniform(*parameter.shape))
    if isinstance(clt.activation_function, JumpReLU):
        clt.activation_function.threshold.abs_()
    return clt


def random_transcoders(kind: str, activation: str = "relu", skip: bool = False, **sizes: int) -> Transcoders:
    make = random_set if kind == "transcoder_set" else random_clt
    return make(activation, skip, **sizes)  # type: ignore[arg-type]


def naive_activation(pre: Tensor, activation: Activation) -> Tensor:
    """Activations of dense pre-activations, entry by entry."""
    if isinstance(activation, JumpReLU):
        return torch.where(pre > activation.threshold, pre, torch.zeros_like(pre))
    if isinstance(activation, TopK):
        pre = pre.clamp(min=0) if activation.nonnegative else pre
        out = torch.zeros_like(pre)
        for row, kept in zip(pre, out, strict=True):
            best = sorted(range(len(row)), key=lambda f: (-float(row[f]), f))[: activation.k]
            kept[best] = row[best]
        return out
    return pre.clamp(min=0)


def naive_reconstruction(transcoders: Transcoders, acts_LPF: Tensor, x_LPD: Tensor) -> Tensor:
    """y[t, p] = sum over l, f of a[l, p, f] W_dec[l][f -> t] + b_dec[t] + x[t, p] @ S[t]."""
    y = torch.zeros_like(x_LPD)
    for target in range(transcoders.n_layers):
        for layer in range(transcoders.n_layers):
            targets = transcoders.target_layers(layer)
            if target in targets:
                decoder = transcoders.decoder(layer).whole()[:, target - targets.start]
                y[target] += acts_LPF[layer] @ decoder
        y[target] += transcoders.decoder_bias(target)
        skip = transcoders.skip_matrix(target)
        if skip is not None:
            y[target] += x_LPD[target] @ skip
    return y
