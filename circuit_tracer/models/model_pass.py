"""One forward pass over a batch of sequences that reads the activations at the points of a dictionary, and no more of the
model than they need: it stops behind the last point and never reaches the language-model head.

Letters: b sequences, P positions, n = b * P tokens, S layers read, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from circuit_tracer.errors import CompatibilityError, InputError
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.models.run import read


@dataclass(frozen=True)
class Points:
    """What a dictionary reads of the model: the layers, and the two sites of each (the same one for an autoencoder)."""

    layers: tuple[int, ...]  # S, ascending
    input: str
    output: str

    @property
    def same(self) -> bool:
        """Whether the dictionary writes where it reads."""
        return self.input == self.output


class ModelPass:
    """Reads activations off the model. Raises InputError when sequences are longer than the model's context."""

    def __init__(self, parts: ModelParts, points: Points, context_length: int) -> None:
        require_context(parts, context_length)
        self.parts, self.points = parts, points

    def run(self, ids_bP: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """(x, y): S inputs and S outputs (n, D) in the model's dtype, tokens of a sequence side by side. They are the tensors
        that the model computed with, not copies: read only. For an sae both lists are the same.

        Raises CompatibilityError for ids outside the model's vocabulary.
        """
        self._check_ids(ids_bP)
        sites, layers = (self.points.input, self.points.output), self.points.layers
        places = [(site, layer) for layer in layers for site in sites]
        found = read(self.parts, ids_bP, places, norms=None, own_attention=False)
        inputs, outputs = ([found[site, layer].detach().flatten(0, 1) for layer in layers] for site in sites)
        return inputs, inputs if self.points.same else outputs

    def _check_ids(self, ids_bP: Tensor) -> None:
        least, most, vocabulary = int(ids_bP.min()), int(ids_bP.max()), self.parts.config.d_vocab
        if least < 0 or most >= vocabulary:
            raise CompatibilityError(
                f"the data hold token id {most if most >= vocabulary else least}, but the model's vocabulary is "
                f"0..{vocabulary - 1}: they were tokenised for another model. Use the model's own tokenizer, or token "
                "files made with it."
            )


def require_context(parts: ModelParts, context_length: int) -> None:
    """Raise InputError when sequences of ``context_length`` tokens are longer than the model's context."""
    limit = parts.context_length
    if limit is not None and context_length > limit:
        raise InputError(
            f"context_length is {context_length}, but the model's context length is {limit}; use at most {limit}"
        )
