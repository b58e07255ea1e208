"""What a feature does to the output directly: the tokens that its decoder rows make likelier, and less likely.

effect_v = sum over the layers t it writes to of W_dec[f, t] . (gain * W_U[v]), less its mean over the vocabulary: the
change of the logits for an activation of 1 where the norms on its way divide by 1. Only the order and the proportions mean
something; attention and later features are left out. Rows that are not written to the stream itself are taken to it: those of
heads' outputs through the output projection, those before a norm behind attention or MLP through its gain.

Letters: n features, T layers written to, D d_model, V vocabulary, k tokens kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.models.parts import ModelParts, Norm
from circuit_tracer.models.sites import SITES
from circuit_tracer.models.surroundings import plain_torch
from circuit_tracer.transcoders.base import Transcoders

BLOCK_BYTES = 2**26  # of effects (n, V) in hand, and of decoder rows (n, T, D)


@dataclass(frozen=True)
class LogitEffects:
    """Token ids and effects (n, k) of the tokens most promoted and most suppressed, strongest first.

    spread (n,): standard deviation of a feature's effects over the ``vocabulary`` tokens.
    """

    top: Tensor
    top_value: Tensor
    bottom: Tensor
    bottom_value: Tensor
    spread: Tensor
    vocabulary: int


@plain_torch()
@torch.no_grad()
def logit_effects(
    parts: ModelParts, transcoders: Transcoders, layer: int, index_n: Tensor, tokens: int, vocabulary: int
) -> LogitEffects:
    """Effects of features ``index_n`` (n,) of a layer on the first ``vocabulary`` tokens. Costs 2 n V D FLOP."""
    tokens = min(tokens, vocabulary)
    if not len(index_n):
        ids, values = torch.zeros(0, tokens, dtype=torch.int64), torch.zeros(0, tokens)
        return LogitEffects(ids, values, ids, values, values.sum(1), vocabulary)
    widest = max(vocabulary, len(transcoders.target_layers(layer)) * transcoders.d_model)
    block = max(1, BLOCK_BYTES // (4 * widest))
    found: list[tuple[Tensor, ...]] = []
    for index in index_n.split(block):
        effect_nV = vocabulary_effects(parts, written_to_stream(parts, transcoders, layer, index), vocabulary)
        top, bottom = effect_nV.topk(tokens), effect_nV.topk(tokens, largest=False)
        spread = effect_nV.std(-1, correction=0)
        found.append((top.indices, top.values, bottom.indices, bottom.values, spread))
    top_n, top_value, bottom_n, bottom_value, spreads = (torch.cat(column).cpu() for column in zip(*found, strict=True))
    return LogitEffects(top_n, top_value, bottom_n, bottom_value, spreads, vocabulary)


def written_to_stream(parts: ModelParts, transcoders: Transcoders, layer: int, index_n: Tensor) -> Tensor:
    """(n, D) what features ``index_n`` (n,) of a layer write to the residual stream, of all layers together."""
    gain, place = parts.final_norm.parameters.gain, transcoders.feature_output_hook
    rows_nTD = transcoders.decoder_rows(layer, index_n).to(gain)
    behind = "attention_post_norm" if place == "attn.hook_z" else SITES[place].norm
    written_nD = rows_nTD.new_zeros(len(index_n), parts.config.d_model)
    for slot, target in enumerate(transcoders.target_layers(layer)):
        rows_nD, at = rows_nTD[:, slot], parts.layers[target]
        if place == "attn.hook_z":
            rows_nD = rows_nD @ at.output_weight.to(gain).T
        norm: Norm | None = None if behind is None else getattr(at, behind)
        if norm is not None:
            centred = rows_nD - rows_nD.mean(-1, keepdim=True) if norm.parameters.centred else rows_nD
            rows_nD = centred * norm.parameters.gain
        written_nD += rows_nD
    return written_nD


def vocabulary_effects(parts: ModelParts, written_nD: Tensor, vocabulary: int) -> Tensor:
    """(n, V) what vectors (n, D) added to the stream do to the logits of the first ``vocabulary`` tokens; see above."""
    norm, weight_VD = parts.final_norm.parameters, parts.unembed.weight[:vocabulary]
    written_nD = written_nD.to(norm.gain)
    written_nD = written_nD - written_nD.mean(-1, keepdim=True) if norm.centred else written_nD
    effect_nV = ((written_nD * norm.gain).to(weight_VD) @ weight_VD.T).to(norm.gain)
    return effect_nV - effect_nV.mean(-1, keepdim=True)


def vocabulary_of(model: Traceable) -> int:
    """Tokens that have a text; the output matrix may be padded beyond them."""
    rows = len(model.parts.unembed.weight)
    return rows if model.tokenizer is None else min(rows, len(model.tokenizer))
