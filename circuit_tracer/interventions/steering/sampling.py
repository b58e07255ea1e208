"""Temperature and cuts of a distribution over the next token. Letters: V vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

from circuit_tracer.errors import InputError


def require_cuts(top_k: int | None, top_p: float | None) -> None:
    """Refuse cuts that leave no token, or mean nothing."""
    if (top_k is not None and top_k < 1) or (top_p is not None and not 0 < top_p <= 1):
        raise InputError(f"top_k is {top_k} and top_p {top_p}; at least 1, and in (0, 1]")


def warp(logits_V: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """Logits (V,) over the temperature, -inf for what the cuts leave out."""
    if not torch.isfinite(logits_V.abs().max() / temperature):  # then only the distance from the largest has a meaning
        logits_V = logits_V - logits_V.max()
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    none = torch.empty(1, 0, dtype=torch.int64)
    scores = TemperatureLogitsWarper(float(temperature))(none, logits_V[None])
    if top_k is not None:
        scores = TopKLogitsWarper(top_k)(none, scores)
    if top_p is not None:
        scores = TopPLogitsWarper(top_p)(none, scores)
    found: Tensor = scores[0]
    return found
