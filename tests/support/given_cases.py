"""Activations of no model in particular, written down or sent, and a configuration that trains on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from circuit_tracer.ranks import Ranks
from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.data import BatchStream, open_stream
from circuit_tracer.training.data.given.source import unseen_model
from circuit_tracer.training.feature_ranks import FeatureRanks
from tests.support.data_cases import config

S, D = 3, 4
HOOKS = {"input_hook": "hook_resid_mid", "output_hook": "hook_mlp_out"}
SAID: dict[str, Any] = {"model": "tiny", "layers": list(range(S)), **HOOKS}


def made(n_rows: int = 700, seed: int = 0, **others: torch.Tensor) -> dict[str, torch.Tensor]:
    """Rows of no model in particular."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(n_rows, S, D, generator=generator) for name in ("x", "y")} | others


def pieces(whole: dict[str, torch.Tensor], size: int, first: int = 0) -> Iterator[dict[str, torch.Tensor]]:
    """The rows from `first` on, a few at a time."""
    for start in range(first, len(whole["x"]), size):
        yield {name: tensor[start : start + size] for name, tensor in whole.items()}


def given(path: object, folder: Path, **changes: Any) -> TrainingConfig:
    """A configuration that trains on what is at a path."""
    plain = {"data__context_length": 256, "data__sequences_per_pass": 16, "data__kind": "activations"}
    return config(folder, **plain, data__path=str(path), **changes)


def opened(settings: TrainingConfig) -> BatchStream:
    return open_stream(settings, unseen_model(settings, torch.device("cpu"), Ranks()), None, FeatureRanks())
