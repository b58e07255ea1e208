"""Low-rank sparse attention (Lorsa, arXiv 2504.20938): a dictionary whose features are heads of rank one with shared patterns.

Feature i reads the normalised input n of a layer at all earlier positions, through the pattern of its QK head h(i):

    pre_i(p) = sum_q A^h(p,q) (w_V,i . n_q + b_V,i)        A^h = softmax over q <= p of <Q^h(p), K^h(q)> / scale

and writes a_i w_O,i to what attention adds. With the patterns as they are on a prompt, pre_i is affine in n.
Letters: P positions, D d_model, H QK heads, d their width, F features, G = F / H features of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from circuit_tracer.errors import InputError
from circuit_tracer.transcoders.activations import Selected
from circuit_tracer.transcoders.base import Scan
from circuit_tracer.transcoders.frozen import FrozenModule
from circuit_tracer.transcoders.single_layer import SingleLayerTranscoder
from circuit_tracer.transcoders.transcoder_set import TranscoderSet

READS, WRITES = "ln1.hook_normalized", "hook_attn_out"


@dataclass(frozen=True)
class Rotary:
    """Rotary embedding of the first `width` numbers of queries and keys. adjacent: pairs are neighbours, not halves."""

    width: int
    base: float
    adjacent: bool = False

    def __call__(self, x_HPd: Tensor) -> Tensor:
        """Queries or keys (H, P, d), rotated by their positions."""
        turned, rest = x_HPd[..., : self.width], x_HPd[..., self.width :]
        exponent = torch.arange(self.width // 2, device=x_HPd.device, dtype=torch.float64) / (self.width / 2)
        place = torch.arange(x_HPd.shape[1], device=x_HPd.device, dtype=torch.float64)
        angle = place[:, None] / self.base**exponent
        angle = angle.repeat_interleave(2, dim=1) if self.adjacent else torch.cat([angle, angle], dim=1)
        if self.adjacent:
            across = torch.stack([-turned[..., 1::2], turned[..., ::2]], dim=-1).flatten(-2)
        else:
            first, second = turned.chunk(2, dim=-1)
            across = torch.cat([-second, first], dim=-1)
        turned = turned * angle.cos().to(x_HPd) + across * angle.sin().to(x_HPd)
        return torch.cat([turned, rest], dim=-1)


class QueriesKeys(FrozenModule):
    """The patterns of one layer: `W_Q`, `W_K` (H, D, d), `b_Q`, `b_K` (H, d); optional gains `ln_q`, `ln_k` (H, d) of an RMS
    norm behind the projections. scale: what scores are divided by.
    """

    W_Q: Tensor
    W_K: Tensor
    b_Q: Tensor
    b_K: Tensor
    ln_q: Tensor | None
    ln_k: Tensor | None

    def __init__(
        self, weights: Mapping[str, Tensor], scale: float, rotary: Rotary | None = None, epsilon: float = 1e-6
    ) -> None:
        super().__init__()
        for name in ("W_Q", "W_K", "b_Q", "b_K", "ln_q", "ln_k"):
            self.set_frozen(name, weights.get(name))
        self.scale, self.rotary, self.epsilon = scale, rotary, epsilon

    @property
    def n_heads(self) -> int:
        """H."""
        return int(self.W_Q.shape[0])

    def pattern(self, x_PD: Tensor) -> Tensor:
        """(H, P, P), rows = queries, on normalised inputs x."""
        query = self._made(x_PD, self.W_Q, self.b_Q, self.ln_q)
        key = self._made(x_PD, self.W_K, self.b_K, self.ln_k)
        scores = query @ key.transpose(1, 2) / self.scale
        ahead = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device).triu(1)
        return torch.softmax(scores.masked_fill(ahead, -torch.inf), dim=-1)

    def _made(self, x_PD: Tensor, weight_HDd: Tensor, bias_Hd: Tensor, gain_Hd: Tensor | None) -> Tensor:
        dtype = torch.promote_types(x_PD.dtype, weight_HDd.dtype)
        made = x_PD.to(dtype) @ weight_HDd.to(dtype) + bias_Hd.to(dtype)[:, None]
        if gain_Hd is not None:
            made = made * torch.rsqrt(made.pow(2).mean(-1, keepdim=True) + self.epsilon) * gain_Hd.to(dtype)[:, None]
        return made if self.rotary is None else self.rotary(made)


class Lorsa(TranscoderSet):
    """Lorsa of all layers or of some: the OV side as a set of single layers (W_enc = w_V, b_enc = b_V, W_dec = w_O), and the
    patterns by layer. Raises InputError where features do not divide among QK heads.
    """

    kind: ClassVar[str] = "lorsa"

    def __init__(
        self,
        layers: Mapping[int, SingleLayerTranscoder],
        patterns: Mapping[int, QueriesKeys],
        scan: Scan = None,
        n_layers: int | None = None,
    ) -> None:
        super().__init__(layers, READS, WRITES, scan, n_layers)
        for layer in self.layers:
            if self.n_features(layer) % patterns[layer].n_heads:
                raise InputError(
                    f"layer {layer}: {self.n_features(layer)} features do not divide among {patterns[layer].n_heads} QK heads"
                )
        self.patterns = nn.ModuleDict({str(layer): patterns[layer] for layer in self.layers})

    def covering(self, n_layers: int) -> Lorsa:
        if n_layers == self.n_layers:
            return self
        layers = {layer: self[layer] for layer in self.layers}
        return Lorsa(layers, {layer: self.queries_keys(layer) for layer in layers}, self.scan, n_layers)

    def require_native(self) -> None:
        raise InputError("circuit-tracer's files have no place for the patterns of Lorsa: keep the files it came in.")

    def to_safetensors(self, save_dir: str | Path) -> None:
        self.require_native()

    def queries_keys(self, layer: int) -> QueriesKeys:
        """What makes the patterns of a layer."""
        return cast(QueriesKeys, self.patterns[str(layer)])

    def head_of(self, layer: int, index: Tensor) -> Tensor:
        """The QK heads of features (n,)."""
        return index // (self.n_features(layer) // self.queries_keys(layer).n_heads)

    def pre_activations(self, layer: int, x_PD: Tensor, pattern_HPP: Tensor) -> Tensor:
        """(P, F) on normalised inputs, through patterns that are given."""
        return torch.cat([block for _, block in self._blocks(layer, x_PD, pattern_HPP)], dim=1)

    def _blocks(self, layer: int, x_PD: Tensor, pattern_HPP: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The pre-activations (P, G) of one QK head after the other, each with its first feature."""
        group = self.n_features(layer) // len(pattern_HPP)
        for head, pattern_PP in enumerate(pattern_HPP):
            first = head * group
            weight = self.encoder(layer).block(first, first + group).to(x_PD)
            bias = self.encoder_bias(layer)[first : first + group].to(x_PD)
            yield first, pattern_PP.to(x_PD) @ (x_PD @ weight.T + bias)

    def encode_layer(self, x: Tensor, layer_id: int, apply_activation_function: bool = True) -> Tensor:
        """Dense activations (P, F) of one prompt, x (P, D)."""
        self._require_layer(layer_id)
        pre = self.pre_activations(layer_id, x, self.queries_keys(layer_id).pattern(x))
        return self.apply_activation_function(layer_id, pre) if apply_activation_function else pre

    @torch.no_grad()
    def encode_positions(self, layer: int, x_PD: Tensor) -> Selected:
        self._require_layer(layer)
        x_PD = x_PD.detach()
        if layer not in self.layers:
            nothing = torch.empty(0, dtype=torch.int64, device=x_PD.device)
            return nothing, nothing, x_PD.new_empty(0)
        selector = self.activation(layer).selector()
        for first, pre_PG in self._blocks(layer, x_PD, self.queries_keys(layer).pattern(x_PD)):
            selector.add(pre_PG, first)
        return selector.finish()
