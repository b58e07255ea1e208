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
from circuit_tracer.kernels.encode import above_cuts, k_largest
from circuit_tracer.kernels.encode.kept import Kept
from circuit_tracer.kernels.encode.product import where
from circuit_tracer.transcoders.activations import Activation, JumpReLU, ReLU, Selected, TopK
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
    kept: Kept | None = None,
) -> Selected:
    """Active entries of activation(x @ W_enc.T + b_enc), sorted by (position, index); with a router, of its factor times these.

    Computes in float32, or float64 when ``x_PD`` or the weights are. Costs 2 P F D FLOP and one reading of the encoder. What
    float32's own rounding would leave open on a CPU is decided by exact sums (kernels/encode/README.md). kept: of this encoder.
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
    if router is None and compute is torch.float32 and n_features:
        settled = _settled(x_PD, encoder, bias_F, activation, kept or Kept(may_copy=False))
        if settled is not None:
            return settled
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


def _settled(x_PD: Tensor, encoder: WeightRows, bias_F: Tensor, activation: Activation, kept: Kept) -> Selected | None:
    """The same of float32 weights in memory on a CPU; None for others, and where something may not be finite."""
    devices = {x_PD.device.type, encoder.device.type, bias_F.device.type}
    if encoder.dtype is not torch.float32 or devices != {"cpu"} or not x_PD.numel():
        return None
    weights = kept.of(encoder.block(0, encoder.shape[0]), len(x_PD))
    rows = weights.rows(x_PD, bias_F)
    if not rows.largest * weights.largest + weights.largest_bias(bias_F) < torch.finfo(torch.float32).max:
        return None
    if isinstance(activation, TopK):
        found = k_largest(rows, weights, activation.k)
        if found is None or not activation.nonnegative:
            return found
        return where(found[2] > 0, found)
    if not isinstance(activation, ReLU | JumpReLU):
        return None
    if isinstance(activation, ReLU):
        return above_cuts(rows, weights, weights.zero_F)
    threshold, n_features = activation.threshold, encoder.shape[0]
    cut_F = rounded_down(threshold).expand(n_features)
    found = above_cuts(rows, weights, cut_F)
    return found if weights.least_cut(cut_F) >= 0 else where(found[2] != 0, found)


def features_per_block(n_positions: int, d_model: int, dtype: torch.dtype, block_bytes: int) -> int:
    """Features whose pre-activations (P each) and whose encoder rows (D each) both fit into ``block_bytes``."""
    return max(1, block_bytes // (dtype.itemsize * max(n_positions, d_model, 1)))


def rounded_down(threshold: Tensor) -> Tensor:
    """The largest float32 not above a threshold: what float32 numbers are above, they are above the threshold."""
    rounded = threshold.float()
    if threshold.dtype is torch.float32:
        return rounded
    return torch.where(rounded > threshold, torch.nextafter(rounded, rounded.new_tensor(-torch.inf)), rounded)


def _require_finite_input(x_PD: Tensor, layer: int) -> None:
    if torch.isfinite(x_PD.sum()):  # as for blocks, below
        return
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
