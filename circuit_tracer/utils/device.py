"""circuit-tracer's `circuit_tracer.utils.device`."""

from __future__ import annotations

import torch

from circuit_tracer.models.loading import resolve_device

__all__ = ["get_default_device"]


def get_default_device() -> torch.device:
    """The device a model is loaded on when none is named."""
    return resolve_device(None)
