"""A gated short convolution in place of attention (LFM2): each position reads itself and the few before it.

    out[p] = C[p] * sum over j of taps[j] * (B * x)[p - (J - 1) + j]

B, C and x are projections of what enters. With the gates B and C held still, what comes out is linear in x
(`models/mixing.py`); each position looks at itself alone once x is convolved, so the pattern is the identity, of one head.

Letters: B sequences, P positions, D d_model, J taps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from circuit_tracer.errors import UnsupportedModelError
from circuit_tracer.models.mixing import Held, Scales, convolved
from circuit_tracer.models.plain import projection, require_untouched


@dataclass(frozen=True)
class ShortConv:
    """One layer's module; the weight that makes what is convolved, and its taps."""

    module: Any
    value_weight: Tensor  # (D, D)
    taps_VJ: Tensor
    n_heads: int = 1

    def run(
        self, hidden_BPD: Tensor, held: Held | None, seen: Callable[[Tensor], Tensor] = lambda pattern: pattern
    ) -> tuple[Tensor, Held]:
        """As `DeltaNet.run`."""
        module, dtype = self.module, torch.promote_types(hidden_BPD.dtype, torch.float32)
        into, out, values = module.in_proj(hidden_BPD).to(dtype).chunk(3, dim=-1)
        into = into if held is None else cast(Tensor, held.scales.first)
        out = out if held is None else cast(Tensor, held.scales.output)
        if held is None:
            n_pos = hidden_BPD.shape[1]
            alone = torch.eye(n_pos, dtype=dtype, device=hidden_BPD.device).expand(len(hidden_BPD), 1, -1, -1)
            held = Held(alone, Scales(first=into, output=out))
        mixed = convolved(values * into, self.taps_VJ.to(dtype))
        mixed = seen(held.pattern.expand(len(hidden_BPD), -1, -1, -1))[:, 0] @ mixed * out
        given: Tensor = module.out_proj(mixed.to(hidden_BPD.dtype))
        return given, held


def bind_short_conv(module: Any, name: str) -> ShortConv:
    """The module of a layer. Raises UnsupportedModelError where its convolution or projection has a bias."""
    require_untouched(module.conv, f"{name}.conv")
    weight, bias = projection(module.in_proj, f"{name}.in_proj")
    if bias is not None or module.conv.bias is not None:
        raise UnsupportedModelError(f"{name} has a bias (conv_bias), and none is expected in front of its convolution")
    return ShortConv(module, weight.chunk(3)[2], module.conv.weight.detach()[:, 0])
