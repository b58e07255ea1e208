"""circuit-tracer's `circuit_tracer.replacement_model.common`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from circuit_tracer.interventions.features.settings import Intervention
from circuit_tracer.interventions.features.settings import open_ended as convert_open_ended_interventions
from circuit_tracer.models.tokenization import Prompt, tokenize

__all__ = ["Intervention", "convert_open_ended_interventions", "ensure_tokenized"]


def ensure_tokenized(prompt: Prompt, tokenizer: Any, device: torch.device | str | None, model_name: str) -> Tensor:
    """Ids (P,) of a prompt, with a special token in front. `model_name` decides nothing here."""
    return tokenize(prompt, tokenizer).to(device)
