"""What a model must offer to be traced and intervened on."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from circuit_tracer.attribution.input_shift import with_known_shift
from circuit_tracer.attribution.paired_attention import name_of_attention, paired_attention
from circuit_tracer.attribution.prompt import paired
from circuit_tracer.errors import warn
from circuit_tracer.graph.dictionary_parts import ATTENTION, DictionaryPart
from circuit_tracer.models.parts import ModelParts, bind
from circuit_tracer.models.remembered import weights_of
from circuit_tracer.models.sites import check_hooks
from circuit_tracer.models.tokenization import Prompt, tokenize, zero_positions
from circuit_tracer.models.verify import verify
from circuit_tracer.transcoders.base import Transcoders, described_layers
from circuit_tracer.transcoders.transcoder_set import TranscoderSet


class Traceable:
    """A model with its transcoders and tokenizer, checked to belong together. `ReplacementModel` is one that can be loaded.
    In the transcoders' place it takes autoencoders, with which all can be done but traces.

    attention: a dictionary of attention outputs, whose features are nodes of a graph too; numbered behind those of the
    transcoders.
    prepend_bos: whether prompts that do not begin with a special token get one in front; may be changed at any time.
    Raises CompatibilityError for transcoders of another model.
    """

    prepend_bos = True

    def __init__(
        self, parts: ModelParts, transcoders: Transcoders, tokenizer: Any, attention: TranscoderSet | None = None
    ) -> None:
        transcoders = paired(parts, transcoders)
        check_hooks(parts, transcoders.feature_input_hook, transcoders.feature_output_hook)
        if len(transcoders.layers) < transcoders.n_layers and not transcoders.is_autoencoder:
            said = f"{described_layers(transcoders)}: the MLPs of the others are error nodes, with nothing of them explained"
            warn(said)
        transcoders = with_known_shift(parts, transcoders, tokenizer)
        self.parts, self.transcoders, self.tokenizer = parts, transcoders, tokenizer
        self.attention = None if attention is None else paired_attention(parts, attention, transcoders)
        self._bound_to = _state(parts)

    @property
    def dictionary_parts(self) -> tuple[DictionaryPart, ...]:
        """The dictionaries that features belong to, in the order in which they are numbered."""
        own = [DictionaryPart(name, "mlp", first) for name, first in self.transcoders.sections]
        if self.attention is not None:
            own.append(DictionaryPart(name_of_attention(self.attention), ATTENTION, self.transcoders.d_transcoder))
        return tuple(own)

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
