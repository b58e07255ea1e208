"""What a model must offer to be traced and intervened on."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from circuit_tracer.attribution.prompt import check_pair
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.models.sites import check_hooks
from circuit_tracer.models.tokenization import Prompt, tokenize
from circuit_tracer.transcoders.base import Transcoders


class Traceable:
    """A model with its transcoders and tokenizer, checked to belong together. `ReplacementModel` is one that can be loaded.

    prepend_bos: whether prompts that do not begin with a special token get one in front; may be changed at any time.
    Raises CompatibilityError for transcoders of another model.
    """

    prepend_bos = True

    def __init__(self, parts: ModelParts, transcoders: Transcoders, tokenizer: Any) -> None:
        check_pair(parts, transcoders)
        check_hooks(parts, transcoders.feature_input_hook, transcoders.feature_output_hook)
        self.parts, self.transcoders, self.tokenizer = parts, transcoders, tokenizer

    def ensure_tokenized(self, prompt: Prompt) -> Tensor:
        """Token ids (P,) int64, by the one rule used everywhere (models/tokenization.py)."""
        return tokenize(prompt, self.tokenizer, self.prepend_bos)
