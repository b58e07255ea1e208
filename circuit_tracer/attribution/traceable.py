"""What a model must offer to be traced and intervened on."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from circuit_tracer.attribution.input_shift import with_known_shift
from circuit_tracer.attribution.prompt import paired
from circuit_tracer.errors import warn
from circuit_tracer.models.parts import ModelParts, bind
from circuit_tracer.models.remembered import weights_of
from circuit_tracer.models.sites import check_hooks
from circuit_tracer.models.tokenization import Prompt, tokenize, zero_positions
from circuit_tracer.models.verify import verify
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
            warn(said)
        transcoders = with_known_shift(parts, transcoders, tokenizer)
        self.parts, self.transcoders, self.tokenizer = parts, transcoders, tokenizer
        self._bound_to = _state(parts)

    def ensure_tokenized(self, prompt: Prompt) -> Tensor:
        """Token ids (P,) int64, by the one rule used everywhere (models/tokenization.py), of the model as it is now."""
        self.follow_weights()
        return tokenize(prompt, self.tokenizer, self.prepend_bos)

    def follow_weights(self) -> None:
        """Whoever runs the model starts here: its parts, some of which are made of weights, are then those of the weights that
        there are now, should they have been written in or exchanged. Modules that have been exchanged are verified again.
        """
        if (now := _state(self.parts)) != self._bound_to:
            parts = bind(self.parts.model, self.parts.config.model_name)
            if now.built != self._bound_to.built:
                verify(parts)
            self.parts, self._bound_to = parts, now
            self.transcoders = self.transcoders.rebound(parts)

    def left_out(self, ids: Tensor) -> list[int]:
        """Positions of a prompt that have no features and errors, by circuit-tracer's rule (models/tokenization.py)."""
        return zero_positions(ids, self.tokenizer, self.parts.architecture.model_type)


class _State(NamedTuple):
    """Numbers of a model: others once weights were written in, once they were exchanged, and once modules or settings were."""

    written: int
    exchanged: int
    built: int


def _state(parts: ModelParts) -> _State:
    model: nn.Module = parts.model
    weights = list(weights_of(model))
    written = sum(0 if weight.is_inference() else weight._version for weight in weights)
    exchanged = hash(tuple(weight.data_ptr() for weight in weights))
    return _State(written, exchanged, hash((*map(id, model.modules()), repr(parts.settings()))))
