"""Linear attention by the gated delta rule (Qwen3-Next, Qwen3.5), as a pattern of its values.

    S_i = exp(g_i) S_{i-1} + k_i (beta_i (v_i - k_i . exp(g_i) S_{i-1}))        out_i = q_i . S_i

With queries, keys and the gates g and beta held still, what comes out is linear in the values: out = M v, with one matrix M a
head, lower triangular. Let G be the cumulative sum of g, C_ij = exp(G_i - G_j) for i >= j, A_ij = beta_i C_ij <k_i, k_j> for
i > j. Then the updates u solve (1 + A) u = beta v, and

    M = (C o <q_i, k_j>) (1 + A)^-1 diag(beta)

Values are behind a short convolution and a SiLU, whose sigmoid is held still; the outputs are normed and multiplied by a gate,
both of which are held still (`models/mixing.py`).

Letters: B sequences, P positions, D d_model, H heads of values, e width of a query or key, d width of a head's values,
V = O = H * d, J taps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from circuit_tracer.errors import UnsupportedModelError
from circuit_tracer.models.architecture import LinearAttention
from circuit_tracer.models.mixing import Held, Scales, convolved
from circuit_tracer.models.plain import projection, require_plain, require_untouched


class _Streams(NamedTuple):
    """What the module's projections make, (B, P, ...); queries, keys and values before their convolution."""

    query: Tensor  # (..., keys' heads * e)
    key: Tensor
    value: Tensor  # (..., V)
    gate: Tensor  # (..., O)
    beta: Tensor  # (..., H) before its sigmoid
    step: Tensor  # (..., H) before its softplus


@dataclass(frozen=True)
class DeltaNet:
    """One layer's module; the weight that makes its values, and the taps of their convolution."""

    module: Any
    streams: Callable[[Any, Tensor], _Streams]
    value_weight: Tensor  # (V, D)
    taps_VJ: Tensor

    @property
    def n_heads(self) -> int:
        """H."""
        return int(self.module.num_v_heads)

    def run(
        self, hidden_BPD: Tensor, held: Held | None, seen: Callable[[Tensor], Tensor] = lambda pattern: pattern
    ) -> tuple[Tensor, Held]:
        """What the module gives (B, P, D), and what was held still in it: what is given as such, or what the pass itself makes.
        seen: is shown the pattern (B, H, P, P), and returns what is used instead.
        """
        module, dtype = self.module, torch.promote_types(hidden_BPD.dtype, torch.float32)
        made = _Streams(*(each.to(dtype) for each in self.streams(module, hidden_BPD)))
        values = convolved(made.value, self.taps_VJ.to(dtype))
        value_scale = values.sigmoid() if held is None else cast(Tensor, held.scales.value)
        still = self._pattern(made) if held is None else held.pattern
        used = seen(still.expand(len(hidden_BPD), -1, -1, -1))
        heads = (values * value_scale).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        mixed = (used @ heads).transpose(1, 2)  # (B, P, H, d)
        output_scale = self._output_scale(mixed, made.gate) if held is None else cast(Tensor, held.scales.output)
        out: Tensor = module.out_proj((mixed.flatten(2) * output_scale).to(hidden_BPD.dtype))
        return out, Held(still, Scales(value=value_scale, output=output_scale))

    def _pattern(self, made: _Streams) -> Tensor:
        """M, (B, H, P, P)."""
        module = self.module
        taps = module.conv1d.weight[:, 0].detach().to(made.query.dtype)
        width = made.query.shape[-1]
        query, key = (
            self._by_head(silu(convolved(each, taps[start : start + width])))
            for each, start in ((made.query, 0), (made.key, width))
        )
        query = query * query.shape[-1] ** -0.5
        beta = made.beta.sigmoid().transpose(1, 2)  # (B, H, P)
        step = softplus(made.step + module.dt_bias.to(made.step.dtype))
        decay = (-module.A_log.to(step.dtype).exp() * step).cumsum(1).transpose(1, 2)
        between = (decay[..., :, None] - decay[..., None, :]).tril().exp().tril()
        among = (beta[..., None] * between * (key @ key.mT)).tril(-1)
        read = between * (query @ key.mT)
        pattern: Tensor = torch.linalg.solve_triangular(among, read, upper=False, left=False, unitriangular=True)
        return pattern * beta[..., None, :]

    def _by_head(self, joined_BPE: Tensor) -> Tensor:
        """(B, P, heads of keys * e) -> (B, H, P, e) of length one; heads of values in a group have the same."""
        heads = joined_BPE.unflatten(-1, (self.module.num_k_heads, -1)).transpose(1, 2)
        heads = heads * torch.rsqrt(heads.pow(2).sum(-1, keepdim=True) + _LENGTH_EPSILON)
        repeated: Tensor = heads.repeat_interleave(self.n_heads // self.module.num_k_heads, dim=1)
        return repeated

    def _output_scale(self, mixed_BPHd: Tensor, gate_BPO: Tensor) -> Tensor:
        """(B, P, O): gain over sigma of each head's output, times the gate."""
        norm = self.module.norm
        inverse_sigma = torch.rsqrt(mixed_BPHd.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
        gain: Tensor = norm.weight.to(mixed_BPHd.dtype)
        return (gain * inverse_sigma).flatten(2) * silu(gate_BPO)


_LENGTH_EPSILON = 1e-6  # transformers' l2norm


def bind_delta_net(module: Any, name: str, names: LinearAttention) -> DeltaNet:
    """The module of a layer. Raises UnsupportedModelError for another kind."""
    for child in ("conv1d", "norm"):
        require_untouched(getattr(module, child), f"{name}.{child}")
    require_plain(module.norm, f"{name}.norm", ("weight",))
    if module.conv1d.bias is not None or getattr(module, "activation", "silu") != "silu":
        raise UnsupportedModelError(f"{name} has a bias in its convolution, or another activation than silu behind it")
    streams, value_rows = _STREAMS[names.streams]
    taps = module.conv1d.weight.detach()[2 * module.key_dim :, 0]
    return DeltaNet(module, streams, value_rows(module, name), taps)


def _apart(module: Any, hidden: Tensor) -> _Streams:
    """Qwen3.5: one projection each."""
    query, key, value = module.in_proj_qkv(hidden).split([module.key_dim, module.key_dim, module.value_dim], dim=-1)
    return _Streams(query, key, value, module.in_proj_z(hidden), module.in_proj_b(hidden), module.in_proj_a(hidden))


def _by_key_head(module: Any, hidden: Tensor) -> _Streams:
    """Qwen3-Next: two projections, heads of keys side by side with what belongs to them."""
    made = module.fix_query_key_value_ordering(module.in_proj_qkvz(hidden), module.in_proj_ba(hidden))
    return _Streams(*(each.flatten(2) for each in made))


def _values_apart(module: Any, name: str) -> Tensor:
    weight, _ = projection(module.in_proj_qkv, f"{name}.in_proj_qkv")
    return weight[2 * module.key_dim :]


def _values_by_key_head(module: Any, name: str) -> Tensor:
    weight, _ = projection(module.in_proj_qkvz, f"{name}.in_proj_qkvz")
    width, heads = module.value_dim // module.num_k_heads, weight.unflatten(0, (module.num_k_heads, -1))
    rows: Tensor = heads[:, 2 * module.head_k_dim : 2 * module.head_k_dim + width].flatten(0, 1)
    return rows


_STREAMS: dict[str, tuple[Callable[[Any, Tensor], _Streams], Callable[[Any, str], Tensor]]] = {
    "apart": (_apart, _values_apart),
    "by key head": (_by_key_head, _values_by_key_head),
}
