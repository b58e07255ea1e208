"""Does a head copy? The eigenvalues of W_U W_O W_V W_E, which leads from the token it reads to the logits it writes.

That matrix is as large as the vocabulary, squared, and has no more than d_head eigenvalues that are not zero: those of the
d_head x d_head matrix W_V (W_E W_U) W_O, which is what is computed, with W_E W_U (D, D) made once for all heads.

Letters: V vocabulary, L layers, H heads, D d_model, d d_head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from circuit_tracer.models.parts import LayerParts, ModelParts

ROWS = 2**14  # of the vocabulary, multiplied at once


def ov_copying(parts: ModelParts) -> Tensor:
    """(L, H) float64: the sum of the eigenvalues over the sum of their absolute values, real parts, from -1 to 1.

    1: the head raises the logits of the tokens that it reads, -1: it lowers them; NaN: it does neither (the matrix is zero, up
    to rounding). Gains and centring of the norms before attention, behind it and before the unembedding are in the weights, and
    the mean over the vocabulary is taken from W_U, since softmax does not see it; what scales a position as a whole (1/sigma,
    multipliers) changes no ratio, and biases are left out. V D^2 + L H D^2 d products.
    """
    through_DD = _embedding_times_unembedding(parts)
    return torch.stack([_of_layer(parts, layer, through_DD) for layer in parts.layers])


def _embedding_times_unembedding(parts: ModelParts) -> Tensor:
    """Sum over tokens of embedding x unembedding, (D, D) float64 on the CPU; summed there over slices of the vocabulary."""
    embedding, unembedding = parts.model.get_input_embeddings().weight, parts.unembed.weight
    norm, dtype = parts.final_norm.parameters.freeze(torch.ones(())), parts.compute_dtype
    n_tokens, width = min(len(embedding), len(unembedding)), embedding.shape[1]
    total = torch.zeros(width, width, dtype=torch.float64)
    embedding_D, unembedding_D = torch.zeros(2, width, dtype=torch.float64)
    for start in range(0, n_tokens, ROWS):
        rows = slice(start, min(start + ROWS, n_tokens))
        read, made = embedding[rows].detach().to(dtype), norm.columns(unembedding[rows].detach().to(dtype))
        total += (read.T @ made).double().cpu()
        embedding_D += read.double().sum(0).cpu()
        unembedding_D += made.double().sum(0).cpu()
    return total - torch.outer(embedding_D, unembedding_D) / n_tokens


def _of_layer(parts: ModelParts, layer: LayerParts, through_DD: Tensor) -> Tensor:
    """(H,)."""
    n_heads, n_kv = layer.n_heads, layer.n_kv
    value, output = layer.value_weight.detach(), layer.output_weight.detach().to(parts.compute_dtype)
    value = value.to(parts.compute_dtype)
    if layer.attention_norm is not None:
        value = layer.attention_norm.parameters.freeze(torch.ones(())).columns(value)
    if (norm := layer.attention_post_norm) is not None:
        output = output - output.mean(0, keepdim=True) if norm.parameters.centred else output
        output = output * norm.parameters.gain[:, None]
    value_KdD = value.double().cpu().unflatten(0, (n_kv, -1))
    output_HDd = output.double().cpu().unflatten(1, (n_heads, -1)).transpose(0, 1)
    matrix_Hdd = value_KdD.repeat_interleave(n_heads // n_kv, dim=0) @ through_DD @ output_HDd
    eigenvalues = torch.linalg.eigvals(matrix_Hdd)
    size_H = value_KdD.norm() * through_DD.norm() * output_HDd.norm(dim=(1, 2))
    total_H = eigenvalues.abs().sum(-1)
    zero_H = total_H <= torch.finfo(parts.compute_dtype).eps * size_H
    return torch.where(zero_H, torch.nan, eigenvalues.real.sum(-1) / total_H)
