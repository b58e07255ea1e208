"""What a model must offer to be traced and intervened on."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

from circuit_tracer.attribution.input_shift import with_known_shift
from circuit_tracer.attribution.prompt import paired
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.models.sites import check_hooks
from circuit_tracer.models.tokenization import Prompt, tokenize
from circuit_tracer.transcoders.base import Transcoders, described_layers


class Traceable:
    """A model with its transcoders and tokenizer, checked to belong together. `ReplacementModel` is one that can be loaded.

    prepend_bos: whether prompts that do not begin with a special token get one in front; may be changed at any time.
    Raises CompatibilityError for transcoders of another model.
    """

    prepend_bos = True

    def __init__(self, parts: ModelParts, transcoders: Transcoders, tokenizer: Any) -> None:
        transcoders = paired(parts, transcoders)
        check_hooks(parts, transcoders.feature_input_hook, transcoders.feature_output_hook)
        if len(transcoders.layers) < transcoders.n_layers:
            said = f"{described_layers(transcoders)}: the MLPs of the others are error nodes, with nothing of them explained"
            warnings.warn(said, stacklevel=3)
        transcoders = with_known_shift(parts, transcoders, tokenizer)
        self.parts, self.transcoders, self.tokenizer = parts, transcoders, tokenizer

    def ensure_tokenized(self, prompt: Prompt) -> Tensor:
        """Token ids (P,) int64, by the one rule used everywhere (models/tokenization.py)."""
        return tokenize(prompt, self.tokenizer, self.prepend_bos)
