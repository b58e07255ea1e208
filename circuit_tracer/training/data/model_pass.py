"""One forward pass over a batch of sequences that keeps the activations at the points of a dictionary, and no more of the
model than they need: it stops behind the last point and never reaches the language-model head.

Letters: b sequences, P positions, n = b * P tokens, S layers read, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from circuit_tracer.errors import CompatibilityError, InputError, NumericalError
from circuit_tracer.models import attention
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.training.data.points import Keep, Points, listen


class _Done(Exception):
    """Every point is read; the rest of the model need not run."""


class ModelPass:
    """Reads activations off the model. Raises InputError when sequences are longer than the model's context."""

    def __init__(self, parts: ModelParts, points: Points, context_length: int) -> None:
        limit = parts.context_length
        if limit is not None and context_length > limit:
            raise InputError(
                f"data.context_length is {context_length}, but the model's context length is {limit}; use at most {limit}"
            )
        self.parts, self.points = parts, points

    def run(self, ids_bP: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """(x, y): S inputs and S outputs (n, D) in the model's dtype, tokens of a sequence side by side. They are the tensors
        that the model computed with, not copies: read only. For an sae both lists are the same.

        Raises CompatibilityError for ids outside the model's vocabulary.
        """
        self._check_ids(ids_bP)
        read: dict[tuple[int, str], Tensor] = {}
        points = {self.points.input, self.points.output}
        wanted = len(self.points.layers) * len(points)

        def keep(key: tuple[int, str]) -> Keep:
            def kept(activation: Tensor) -> None:
                read[key] = activation
                if len(read) == wanted:
                    raise _Done

            return kept

        handles = [
            listen(self.parts.layers[layer], point, keep((layer, point)))
            for layer in self.points.layers
            for point in points
        ]
        try:
            with torch.no_grad():
                self.parts.model.base_model(input_ids=ids_bP.to(self.parts.device), use_cache=False)
        except _Done:
            pass
        finally:
            for handle in handles:
                handle.remove()
        inputs = [read[layer, self.points.input] for layer in self.points.layers]
        if self.points.same:
            return inputs, inputs
        return inputs, [read[layer, self.points.output] for layer in self.points.layers]

    def _check_ids(self, ids_bP: Tensor) -> None:
        least, most, vocabulary = int(ids_bP.min()), int(ids_bP.max()), self.parts.config.d_vocab
        if least < 0 or most >= vocabulary:
            raise CompatibilityError(
                f"the data hold token id {most if most >= vocabulary else least}, but the model's vocabulary is "
                f"0..{vocabulary - 1}: they were tokenised for another model. Use the model's own tokenizer, or token "
                "files made with it."
            )


@contextmanager
def fast_attention(parts: ModelParts) -> Iterator[None]:
    """Inside the block the model uses torch's fused attention where that is exact, else this package's (softcap, sinks)."""
    model = parts.model
    before = model.config._attn_implementation
    try:
        if getattr(model.config, "attn_logit_softcapping", None):
            attention.install(model)
        else:
            try:
                model.set_attn_implementation("sdpa")
            except ValueError:  # transformers' word for: not with this architecture
                attention.install(model)
        yield
    finally:
        model.set_attn_implementation(before)


def token_norms(activations: list[Tensor]) -> Tensor:
    """Norms (n, S) of S activations (n, D), in at least float32."""
    dtype = torch.promote_types(activations[0].dtype, torch.float32)
    return torch.stack([torch.linalg.vector_norm(one, dim=1, dtype=dtype) for one in activations], dim=1)


def require_finite(norm_nS: Tensor, layers: Sequence[int], point: str) -> None:
    """Raises NumericalError, naming the layer, when a norm says that an activation is NaN or infinite."""
    finite_nS = torch.isfinite(norm_nS)
    if bool(finite_nS.all()):
        return
    bad = int((~finite_nS.all(dim=0)).nonzero()[0])
    raise NumericalError(
        f"the model's activations at {point} of layer {layers[bad]} are not finite for {int((~finite_nS[:, bad]).sum())} of "
        f"{len(norm_nS)} tokens. Check the model's weights; if they are sound, run the model in float32."
    )
