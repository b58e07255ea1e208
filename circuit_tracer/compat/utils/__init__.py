"""circuit-tracer's `circuit_tracer.utils`."""

from __future__ import annotations

import torch

from circuit_tracer.models.loading import resolve_device
from circuit_tracer.utils.create_graph_files import create_graph_files

__all__ = ["create_graph_files", "get_default_device"]


def get_default_device() -> torch.device:
    """The device a model is loaded on when none is named."""
    return resolve_device(None)
