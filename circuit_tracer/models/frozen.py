"""The linear network of one prompt: attention patterns and norm scales are constants (attribution/README.md §2 and §4).

Every map exists twice: forward (vectors of the residual stream) and adjoint (rows of gradients). `propagate` runs the whole
network forward and is the independent check of the adjoint: what it adds to every read-out must be what the rows say.

Letters: L layers, P positions, D d_model, H heads, T rows in flight, n arbitrary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from circuit_tracer.errors import InputError
from circuit_tracer.kernels.attend_back import Scores, rows_a_chunk
from circuit_tracer.kernels.product import factor, product
from circuit_tracer.models.capture import LayerCapture, PromptCapture
from circuit_tracer.models.mixing import Mixing
from circuit_tracer.models.norms import FrozenNorm
from circuit_tracer.models.parts import LayerParts, ModelParts, Norm
from circuit_tracer.models.side_patterns import SidePatterns
from circuit_tracer.models.sites import SITES, Side, Site, check_hooks

KEPT_PROJECTIONS = 2**21  # bytes of one layer that are kept without being asked to


class Projections(NamedTuple):
    """Weights of the linear part of attention, with what norms and multipliers do to them, and what is left to multiply the
    pattern with: its columns by 1/sigma of the norm before, its rows by that of the one behind.
    """

    output: Tensor  # (D, O)
    value: Tensor  # (V, D)
    before: Tensor | None  # (P,)
    after: Tensor | None  # (P,)

    def each(self, change: Callable[[Tensor], Tensor]) -> Projections:
        """The same with both weights changed."""
        return self._replace(output=change(self.output), value=change(self.value))

    @property
    def nbytes(self) -> int:
        """Of the weights."""
        return self.output.nbytes + self.value.nbytes


@dataclass(frozen=True)
class FrozenLayer:
    """One layer as linear maps."""

    parts: LayerParts
    mixing: Mixing
    attention_norm: FrozenNorm | None
    latent_inverse_sigma: Tensor | None  # (P,) of the norm between the two projections of values, where there are two
    attention_post_norm: FrozenNorm | None
    mlp_norm: FrozenNorm | None
    mlp_post_norm: FrozenNorm | None
    _factors: dict[torch.dtype, Projections] = field(init=False, repr=False, compare=False, default_factory=dict)

    def attend(self, resid_PD: Tensor, constants: bool) -> Tensor:
        """What attention adds to the residual stream, (P, D); `constants` adds biases and norm shifts."""
        return self.project(self.heads(resid_PD, constants), constants) * self.parts.residual_multiplier

    def heads(self, resid_PD: Tensor, constants: bool) -> Tensor:
        """Outputs of the heads, side by side (P, H * d): `attn.hook_z`."""
        dtype = resid_PD.dtype
        x = resid_PD if self.attention_norm is None else self.attention_norm.forward(resid_PD, constants)
        values = x @ self.parts.value_weight.to(dtype).T
        if constants and self.parts.value_bias is not None:
            values = values + self.parts.value_bias.to(dtype)
        if self.latent_inverse_sigma is not None:
            values = values * self.latent_inverse_sigma[:, None]
        return self.mixing.forward(values)

    def project(self, z_PO: Tensor, constants: bool) -> Tensor:
        """Outputs of the heads (P, H * d) -> `hook_attn_out`, (P, D)."""
        dtype = z_PO.dtype
        out = z_PO @ self.parts.output_weight.to(dtype).T
        if constants and self.parts.output_bias is not None:
            out = out + self.parts.output_bias.to(dtype)
        return out if self.attention_post_norm is None else self.attention_post_norm.forward(out, constants)

    @property
    def pattern(self) -> Tensor | Scores | SidePatterns:
        """That of `mixing`."""
        return self.mixing.pattern

    @property
    def n_kv(self) -> int:
        """K."""
        return self.mixing.n_kv

    def heads_back(self, z_nO: Tensor, position_n: Tensor, n_pos: int) -> Tensor:
        """Adjoint of the linear part of `heads`, for vectors (n, O) at given positions: (n, P, D) among the first `n_pos`."""
        _, value, before, _ = self._factors_of(z_nO.dtype)
        rows, n_value = [], value.shape[-2]
        for some in torch.arange(len(z_nO), device=z_nO.device).split(rows_a_chunk(n_pos * n_value * z_nO.itemsize)):
            if not self.mixing.plain:
                z_nPO = z_nO.new_zeros(len(some), n_pos, z_nO.shape[1])
                z_nPO[torch.arange(len(some)), position_n[some]] = z_nO[some]
                rows.append(product(self.mixing.back(z_nPO, before, None, None), value))
                continue
            looks = self.pattern_rows(position_n[some], n_pos)
            looks = looks if before is None else looks * before[:n_pos]
            looks = looks.unflatten(1, (self.n_kv, -1))
            heads = z_nO[some].unflatten(1, (*looks.shape[1:3], -1))
            rows.append(product(torch.einsum("nkgp,nkgd->npkd", looks, heads).flatten(2), value))
        return torch.cat(rows) if rows else z_nO.new_zeros(0, n_pos, value.shape[-1])

    def attend_back_at(self, g_nD: Tensor, position_n: Tensor, n_pos: int) -> Tensor:
        """Adjoint of `r + attend(r)` for gradients (n, D) at one position each: (n, P, D) among the first `n_pos`."""
        output, _, _, after = self._factors_of(g_nD.dtype)
        z_nO = product(g_nD, output)
        made = self.heads_back(z_nO if after is None else z_nO * after[position_n][:, None], position_n, n_pos)
        made[torch.arange(len(g_nD), device=g_nD.device), position_n] += g_nD
        return made

    def pattern_rows(self, position_n: Tensor, n_pos: int) -> Tensor:
        """Where the queries at some positions look among the first `n_pos`: (n, H, P)."""
        if isinstance(self.pattern, SidePatterns):
            raise InputError("patterns of several prompts have no rows of their own; trace this prompt by itself")
        if not isinstance(self.pattern, Scores):
            return self.pattern[:, position_n, :n_pos].transpose(0, 1)
        unique, inverse = torch.unique(position_n, return_inverse=True)
        keys, heads = slice(0, n_pos), range(self.n_kv)
        rows = [
            torch.cat([self.pattern.tile(head, slice(p, p + 1), keys) for head in heads])[:, 0] for p in unique.tolist()
        ]
        return torch.stack(rows)[inverse]

    def attend_back_(self, g_TPD: Tensor, prompt_T: Tensor | None = None) -> None:
        """Adjoint of `r + attend(r)`, in place on rows of gradients (T, P, D). prompt_T: whose each row is, of several."""
        output, value, before, after = self._factors_of(g_TPD.dtype)
        if self.mixing.plain:
            self.mixing.attend_back_(g_TPD, output, value, before, after, prompt_T)
            return
        step = rows_a_chunk(2 * g_TPD.shape[1] * (output.shape[-1] + value.shape[-2]) * g_TPD.element_size())
        for first in range(0, len(g_TPD), step):
            rows = g_TPD[first : first + step]
            whose = None if prompt_T is None else prompt_T[first : first + step]
            rows += product(self.mixing.back(product(rows, output), before, after, whose), value)

    def projections(self, dtype: torch.dtype) -> Projections:
        """The weights in a dtype."""
        made = self._factors_of(dtype)
        return made if made.output.dtype is dtype else self._folded(dtype).each(lambda weight: weight.to(dtype))

    def keep_projections(self, dtype: torch.dtype) -> None:
        """Make what rows of a dtype are multiplied by once for all that follow."""
        self._factors_of(dtype, keep=True)

    def release_projections(self) -> bool:
        """Keep none; False if there were none."""
        there = bool(self._factors)
        self._factors.clear()
        return there

    def _factors_of(self, dtype: torch.dtype, keep: bool = False) -> Projections:
        """What rows of a dtype are multiplied by: each weight as a `factor`.

        Small ones are kept: a block of few rows would spend more on making them than on multiplying with them.
        """
        if (kept := self._factors.get(dtype)) is not None:
            return kept
        made = self._folded(dtype).each(lambda weight: factor(weight, dtype))
        if keep or made.nbytes <= KEPT_PROJECTIONS:
            self._factors[dtype] = made
        return made

    def _folded(self, dtype: torch.dtype) -> Projections:
        """Each weight in this dtype, or as the model has it where nothing is folded into it."""
        output, value = self.parts.output_weight, self.parts.value_weight
        if self.parts.residual_multiplier != 1:
            output = output.to(dtype) * self.parts.residual_multiplier
        before = after = None
        if self.attention_norm is not None:
            before = self.attention_norm.inverse_sigma
            value = self.attention_norm.columns(value.to(dtype))
        if self.latent_inverse_sigma is not None:
            before = self.latent_inverse_sigma if before is None else before * self.latent_inverse_sigma
        if self.attention_post_norm is not None:
            after = self.attention_post_norm.inverse_sigma
            output = output.to(dtype)
            if self.attention_post_norm.centred:
                output = output - output.mean(0, keepdim=True)
            output = output * self.attention_post_norm.gain[:, None]
        return Projections(output, value, before, after)


class FrozenNetwork:
    """The frozen linear network of one prompt, or of several side by side, with the transcoder's two hook points.

    `input_hook` and `output_hook` are circuit-tracer's names (attribution/README.md §4.4); a hook that the architecture does
    not have raises CompatibilityError. Where they are one place, that of autoencoders, it is only what was captured there
    (`capture(..., places=[...])`) that they read and rebuild; nothing is traced through it.
    """

    def __init__(self, parts: ModelParts, captured: PromptCapture, input_hook: str, output_hook: str) -> None:
        check_hooks(parts, input_hook, output_hook)
        self.parts, self.captured = parts, captured
        self.input_site, self.output_site = SITES[input_hook], SITES[output_hook]
        self.parallel = parts.parallel
        patterns: Sequence[Tensor | Scores | SidePatterns] = captured.several or captured.patterns or captured.scores
        self.layers = [
            _freeze_layer(layer, kept, pattern, parts.compute_dtype)
            for layer, kept, pattern in zip(parts.layers, captured.layers, patterns, strict=True)
        ]
        self.final_norm = parts.final_norm.parameters.freeze(captured.final_inverse_sigma)

    @property
    def n_layers(self) -> int:
        """L."""
        return len(self.layers)

    def keep_projections(self) -> None:
        """Make what rows of gradients are multiplied by in every attention once for all that follow."""
        for layer in self.layers:
            layer.keep_projections(self.parts.compute_dtype)

    def release_projections(self) -> bool:
        """Keep none; False if there were none."""
        return sum([layer.release_projections() for layer in self.layers]) > 0

    def transcoder_input(self, layer: int) -> Tensor:
        """x_l (P, D): the true activation at the input hook."""
        if self.input_site is self.output_site:
            return self.captured.layers[layer].places[self.input_site.name]
        return self.read(layer, self.captured.layers[layer].resid_mid, constants=True)

    def transcoder_output(self, layer: int) -> Tensor:
        """y_l (P, D): the true activation at the output hook, with what an intervention has added there."""
        if self.input_site is self.output_site:
            return self.transcoder_input(layer)
        kept, norm = self.captured.layers[layer], self.layers[layer].mlp_post_norm
        out = kept.mlp_out if norm is None or self.output_site.norm is not None else norm.forward(kept.mlp_out)
        return out if kept.added is None else out + kept.added

    def stream(self, layer: int, entering: bool) -> Tensor:
        """The true residual stream (P, D) that enters a layer (L: that leaves the last one), or what its MLP (or the norm
        before it) reads.
        """
        if not entering or (self.parallel and layer < self.n_layers):
            return self.captured.layers[layer].resid_mid
        if layer == 0:
            positions = self.captured.position_embedding
            return self.captured.embedding if positions is None else self.captured.embedding + positions
        below = self.captured.layers[layer - 1].resid_mid
        above = below + self.write(layer - 1, self.transcoder_output(layer - 1), constants=True)
        above = above + self.layers[layer - 1].attend(below, constants=True) if self.parallel else above
        return above * self.parts.layers[layer - 1].multiplier

    def read(self, layer: int, resid_mid: Tensor, constants: bool) -> Tensor:
        """Residual stream (P, D) before the MLP -> activation at the input hook."""
        norm = self._norm(layer, self.input_site)
        if norm is None:
            return resid_mid
        return norm.normalise(resid_mid) if self._before_gain else norm.forward(resid_mid, constants)

    def read_at(self, layer: int, r_nD: Tensor, position_n: Tensor) -> Tensor:
        """Linear part of `read` for vectors (n, D) at given positions."""
        norm = self._norm(layer, self.input_site)
        return r_nD if norm is None else norm.at(r_nD, position_n, gain=not self._before_gain)

    def read_adjoint(self, layer: int, e_nD: Tensor, position_n: Tensor) -> Tensor:
        """Adjoint of `read` for vectors (n, D) at given positions."""
        norm = self._norm(layer, self.input_site)
        return e_nD if norm is None else norm.adjoint_at(e_nD, position_n, gain=not self._before_gain)

    def write(self, layer: int, y: Tensor, constants: bool) -> Tensor:
        """Activation (P, D) at the output hook -> what is added to the residual stream."""
        norm = self._norm(layer, self.output_site)
        return (y if norm is None else norm.forward(y, constants)) * self.parts.residual_multiplier

    def write_at(self, layer: int, d_nD: Tensor, position_n: Tensor) -> Tensor:
        """Linear part of `write` for vectors (n, D) at given positions."""
        norm = self._norm(layer, self.output_site)
        if self.parts.residual_multiplier != 1:
            d_nD = d_nD * self.parts.residual_multiplier
        return d_nD if norm is None else norm.at(d_nD, position_n)

    def writes_plainly(self, layer: int) -> bool:
        """Whether the linear part of `write` is the identity."""
        return self.parts.residual_multiplier == 1 and self._norm(layer, self.output_site) is None

    def write_adjoint(self, layer: int, g_nD: Tensor, position_n: Tensor) -> Tensor:
        """Adjoint of `write` for rows of gradients (n, D) at given positions."""
        norm = self._norm(layer, self.output_site)
        if self.parts.residual_multiplier != 1:
            g_nD = g_nD * self.parts.residual_multiplier
        return g_nD if norm is None else norm.adjoint_at(g_nD, position_n)

    def propagate(
        self,
        embedding: Tensor,
        writes: Callable[[int, Tensor], Tensor],
        constants: bool,
        seen: Callable[[int, bool, Tensor], None] = lambda layer, entering, resid: None,
        attends: Mapping[int, Tensor] = MappingProxyType({}),
    ) -> tuple[list[Tensor], Tensor]:
        """Run the frozen network forward.

        embedding: (P, D) residual stream at the input. `writes(layer, x)` gives the activation (P, D) at the output hook, when
        the input hook reads x. `constants` adds every bias. `seen(layer, entering, resid)` is shown the stream (P, D) that
        enters a layer (L: that leaves the last one), and the one that its MLP reads. attends: what stands for the attention of
        some layers, as it is added to the stream (P, D). Returns the L inputs (P, D) and the final norm's output (P, D).
        """
        resid, inputs = embedding, []
        for index, layer in enumerate(self.layers):
            seen(index, True, resid)
            attended = attends[index] if index in attends else layer.attend(resid, constants)
            mid = resid if self.parallel else resid + attended
            seen(index, False, mid)
            inputs.append(self.read(index, mid, constants))
            out = self.write(index, writes(index, inputs[-1]), constants)
            resid = (resid + attended + out) * layer.parts.multiplier
        seen(len(self.layers), True, resid)
        return inputs, self.final_norm.forward(resid, constants)

    @property
    def _before_gain(self) -> bool:
        return self.input_site.side is Side.NORMALISED

    def _norm(self, layer: int, site: Site) -> FrozenNorm | None:
        """The norm between a place and the residual stream."""
        norm: FrozenNorm | None = None if site.norm is None else getattr(self.layers[layer], site.norm)
        return norm


def _freeze_layer(
    layer: LayerParts, kept: LayerCapture, pattern: Tensor | Scores | SidePatterns, dtype: torch.dtype
) -> FrozenLayer:
    def frozen(name: str) -> FrozenNorm | None:
        norm: Norm | None = getattr(layer, name)
        return None if norm is None else norm.parameters.freeze(kept.inverse_sigma[name])

    scales, latent = kept.scales, kept.inverse_sigma.get("value_norm")
    if latent is not None and latent.ndim > 1:  # (P, K) of each head's values
        scales = replace(scales, value=latent.repeat_interleave(layer.d_head, dim=1))
        latent = None
    return FrozenLayer(
        parts=layer,
        mixing=Mixing(pattern, layer.n_kv, scales, None if layer.linear is None else layer.linear.taps_VJ.to(dtype)),
        attention_norm=frozen("attention_norm"),
        latent_inverse_sigma=latent,
        attention_post_norm=frozen("attention_post_norm"),
        mlp_norm=frozen("mlp_norm"),
        mlp_post_norm=frozen("mlp_post_norm"),
    )
