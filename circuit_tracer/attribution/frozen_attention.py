"""A dictionary of attention outputs on one prompt: what its features read of the stream, and what they write (README.md §10).

Its features, errors and bias stand for the attention of a layer. With patterns and norms frozen, what a feature reads is
affine in the stream that enters the layer, at all positions that its query looks at: the adjoint of a read is spread over them,
and no row passes through such an attention.

Letters: P positions, D d_model, H heads, K key/value heads, d d_head, O = H * d, n rows, V and W widths at the
dictionary's input and output hook.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from circuit_tracer.attribution.attention_reads import AttentionReads
from circuit_tracer.models.frozen import FrozenNetwork
from circuit_tracer.models.norms import FrozenNorm
from circuit_tracer.transcoders.activations import Selected
from circuit_tracer.transcoders.lorsa import Lorsa
from circuit_tracer.transcoders.transcoder_set import TranscoderSet

Z, OUT = "attn.hook_z", "hook_attn_out"  # where dictionaries of attention outputs stand


@dataclass(frozen=True)
class FrozenAttention:
    """The dictionary with the prompt's patterns and norm scales."""

    network: FrozenNetwork
    dictionary: TranscoderSet
    _lorsa: dict[int, Tensor] = field(
        default_factory=dict
    )  # patterns (H, P, P) of Lorsa, by layer, once they were needed

    @property
    def layers(self) -> tuple[int, ...]:
        """Those whose attention is replaced."""
        return self.dictionary.layers

    def encode(self, layer: int) -> Selected:
        """(position, index, value) of the active features of a layer, by position and index."""
        return self.dictionary.encode_positions(layer, self.true_input(layer))

    def true_input(self, layer: int) -> Tensor:
        """What the dictionary reads on this prompt."""
        return self.input(layer, self.network.stream(layer, True), constants=True)

    def true_output(self, layer: int) -> Tensor:
        """(P, W) at the output hook."""
        if isinstance(self.dictionary, Lorsa):
            return self._attention_out(layer, self.network.stream(layer, True), True)
        return self.true_input(layer)

    def input(self, layer: int, resid_PD: Tensor, constants: bool) -> Tensor:
        """The activation (P, V) at the input hook, when resid (P, D) enters the layer."""
        if isinstance(self.dictionary, Lorsa):
            norm = self.network.layers[layer].attention_norm
            return resid_PD if norm is None else norm.normalise(resid_PD)
        if self.dictionary.feature_input_hook == Z:
            return self.network.layers[layer].heads(resid_PD, constants)
        return self._attention_out(layer, resid_PD, constants)

    def _attention_out(self, layer: int, resid_PD: Tensor, constants: bool) -> Tensor:
        frozen = self.network.layers[layer]
        return frozen.project(frozen.heads(resid_PD, constants), constants)

    def into_stream(self, layer: int, y_PW: Tensor, constants: bool = True) -> Tensor:
        """What an output (P, W) adds to the residual stream, (P, D); `constants` adds the bias of the projection, if it is
        ahead, and the shift of a norm."""
        frozen = self.network.layers[layer]
        out = frozen.project(y_PW, constants) if self.dictionary.feature_output_hook == Z else y_PW
        return out * frozen.parts.residual_multiplier

    def write_at(self, layer: int, rows_nW: Tensor, position_n: Tensor) -> Tensor:
        """The linear part of it, for vectors (n, W) at given positions: (n, D)."""
        frozen = self.network.layers[layer]
        out = rows_nW
        if self.dictionary.feature_output_hook == Z:
            out = out @ frozen.parts.output_weight.to(out.dtype).T
            if frozen.attention_post_norm is not None:
                out = frozen.attention_post_norm.at(out, position_n)
        return out if frozen.parts.residual_multiplier == 1 else out * frozen.parts.residual_multiplier

    def writes_plainly(self, layer: int) -> bool:
        """Whether that is the identity."""
        return self.dictionary.feature_output_hook != Z and self.network.layers[layer].parts.residual_multiplier == 1

    def write_adjoint(self, layer: int, g_nD: Tensor, position_n: Tensor) -> Tensor:
        """Its adjoint, for rows of gradients (n, D) at given positions: (n, W)."""
        frozen = self.network.layers[layer]
        out = g_nD if frozen.parts.residual_multiplier == 1 else g_nD * frozen.parts.residual_multiplier
        if self.dictionary.feature_output_hook == Z:
            if frozen.attention_post_norm is not None:
                out = frozen.attention_post_norm.adjoint_at(out, position_n)
            out = out @ frozen.parts.output_weight.to(out.dtype)
        return out

    def pre_activations(self, layer: int, input_PV: Tensor, reads: AttentionReads) -> Tensor:
        """(n,) of features at one layer, when their dictionary reads input (P, V)."""
        position, vector = reads.position.to(input_PV.device), reads.vector.to(input_PV)
        bias = reads.bias.to(input_PV)
        if not isinstance(self.dictionary, Lorsa):
            return (input_PV[position] * vector).sum(1) + bias
        looks_nP = self._lorsa_rows(layer, reads, len(input_PV))
        return (looks_nP * (vector @ input_PV.T + bias[:, None])).sum(1)

    def back(self, layer: int, reads: AttentionReads, n_pos: int) -> Tensor:
        """The adjoint of the reads of features at one layer: rows (n, P, D) of the stream that enters it, P = n_pos."""
        frozen, place = self.network.layers[layer], self.network.captured.embedding
        vector = reads.vector.to(place)
        if isinstance(self.dictionary, Lorsa):
            spread = self._lorsa_rows(layer, reads, n_pos)[:, :, None] * vector[:, None]
            return spread if frozen.attention_norm is None else _normalise_back(frozen.attention_norm, spread)
        position = reads.position.to(vector.device)
        if self.dictionary.feature_input_hook == OUT:
            if frozen.attention_post_norm is not None:
                vector = frozen.attention_post_norm.adjoint_at(vector, position)
            vector = vector @ frozen.parts.output_weight.to(vector.dtype)
        return frozen.heads_back(vector, position, n_pos)

    def pattern(self, layer: int) -> Tensor:
        """Lorsa's own patterns (H, P, P) of a layer on this prompt."""
        assert isinstance(self.dictionary, Lorsa)
        if layer not in self._lorsa:
            self._lorsa[layer] = self.dictionary.queries_keys(layer).pattern(self.true_input(layer))
        return self._lorsa[layer]

    def _lorsa_rows(self, layer: int, reads: AttentionReads, n_pos: int) -> Tensor:
        """Where features look: (n, P) of the first `n_pos` positions."""
        assert isinstance(self.dictionary, Lorsa)
        pattern, head = self.pattern(layer), self.dictionary.head_of(layer, reads.index)
        return pattern[head.to(pattern.device), reads.position.to(pattern.device), :n_pos]


def _normalise_back(norm: FrozenNorm, g_nPD: Tensor) -> Tensor:
    g = g_nPD * norm.inverse_sigma[: g_nPD.shape[1], None]
    return g - g.mean(-1, keepdim=True) if norm.centred else g
