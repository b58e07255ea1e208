"""Norms of activations, token by token; none may be infinite. Letters: n tokens, S layers read, D width."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from circuit_tracer.errors import NumericalError


def token_norms(activations: list[Tensor]) -> Tensor:
    """Norms (n, S) of S activations (n, D), in at least float32."""
    dtype = torch.promote_types(activations[0].dtype, torch.float32)
    return torch.stack([torch.linalg.vector_norm(one, dim=1, dtype=dtype) for one in activations], dim=1)


def require_finite(norm_nS: Tensor, layers: Sequence[int], point: str) -> None:
    """Raises NumericalError, naming the layer, when a norm says that an activation is NaN or infinite."""
    finite_nS = torch.isfinite(norm_nS)
    if bool(finite_nS.all()):
        return
    bad = int((~finite_nS.all(dim=0)).nonzero()[0])
    raise NumericalError(
        f"the model's activations at {point} of layer {layers[bad]} are not finite for {int((~finite_nS[:, bad]).sum())} of "
        f"{len(norm_nS)} tokens. Check the model's weights; if they are sound, run the model in float32."
    )
