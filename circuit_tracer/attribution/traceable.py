"""What a model must offer to be traced and intervened on."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from circuit_tracer.models.parts import ModelParts
from circuit_tracer.models.tokenization import Prompt
from circuit_tracer.transcoders.base import Transcoders


class Traceable(Protocol):
    """A model with its transcoders, as `ReplacementModel` is."""

    parts: ModelParts
    transcoders: Transcoders
    tokenizer: Any

    def ensure_tokenized(self, prompt: Prompt) -> Tensor:
        """Token ids (P,) of a prompt."""
