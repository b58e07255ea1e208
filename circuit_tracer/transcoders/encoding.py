"""Encoding one layer in blocks of features: x_PD -> (position, index, value) of what is active.

pre_PF = x_PD @ W_enc.T + b_enc, a = activation(pre) (method: per-layer and cross-layer transcoders alike). At no time
do more than `BLOCK_BYTES` of pre-activations exist, nor of converted encoder rows.
Letters: P positions, D d_model, F features a layer, B features of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from circuit_tracer.errors import InputError, NumericalError
from circuit_tracer.transcoders.activations import Activation, Selected
from circuit_tracer.transcoders.router import Router
from circuit_tracer.transcoders.weight_rows import WeightRows

BLOCK_BYTES = 64 * 2**20


def encode_in_blocks(
    x_PD: Tensor,
    encoder: WeightRows,
    bias_F: Tensor,
    activation: Activation,
    router: Router | None = None,
    *,
    layer: int,
    block_bytes: int = BLOCK_BYTES,
) -> Selected:
    """Active entries of activation(x @ W_enc.T + b_enc), sorted by (position, index); with a router, of its factor times these.

    Computes in float32, or float64 when ``x_PD`` or the weights are. Costs 2 P F D FLOP and one reading of the encoder.
    Raises InputError for a wrong shape, NumericalError (naming the layer and the place) for NaN or infinity.
    """
    n_features, d_model = encoder.shape
    if x_PD.ndim != 2 or x_PD.shape[1] != d_model:
        raise InputError(
            f"layer {layer}: the transcoder reads (positions, {d_model}) inputs, found shape {tuple(x_PD.shape)}. "
            "Give the activations of one prompt at the transcoder's input hook."
        )
    compute = torch.promote_types(torch.promote_types(x_PD.dtype, encoder.dtype), torch.float32)
    x_PD = x_PD.to(compute)
    _require_finite_input(x_PD, layer)
    if n_features == 0:  # a layer without a transcoder
        nothing = torch.empty(0, dtype=torch.int64, device=x_PD.device)
        return nothing, nothing, x_PD.new_empty(0)
    block = features_per_block(x_PD.shape[0], d_model, compute, block_bytes)
    selector, routed = activation.selector(), None if router is None else router.route(x_PD)
    for start in range(0, n_features, block):
        stop = min(start + block, n_features)
        weight_BD = encoder.block(start, stop).to(device=x_PD.device, dtype=compute)
        pre_PB = functional.linear(x_PD, weight_BD, bias_F[start:stop].to(weight_BD))
        _require_finite_block(pre_PB, layer, start)
        selector.add(pre_PB if routed is None else pre_PB * routed.factor(start, stop), start)
    return selector.finish()


def features_per_block(n_positions: int, d_model: int, dtype: torch.dtype, block_bytes: int) -> int:
    """Features whose pre-activations (P each) and whose encoder rows (D each) both fit into ``block_bytes``."""
    return max(1, block_bytes // (dtype.itemsize * max(n_positions, d_model, 1)))


def _require_finite_input(x_PD: Tensor, layer: int) -> None:
    bad = ~torch.isfinite(x_PD).all(dim=1)
    if bad.any():
        raise NumericalError(
            f"layer {layer}: the transcoder's input at position {int(bad.nonzero()[0])} contains NaN or infinity. "
            "Check the model's weights and dtype (float16 overflows in many models: use bfloat16 or float32)."
        )


def _require_finite_block(pre_PB: Tensor, layer: int, start: int) -> None:
    # The sum is finite when all entries are, short of an overflow, which the exact test then sorts out.
    if torch.isfinite(pre_PB.sum()):
        return
    bad = (~torch.isfinite(pre_PB)).nonzero()
    if bad.numel():
        position, offset = bad[0].tolist()
        raise NumericalError(
            f"layer {layer}: the pre-activation of feature {start + offset} at position {position} is NaN or infinite. "
            "Check the transcoder's encoder weights and biases."
        )
