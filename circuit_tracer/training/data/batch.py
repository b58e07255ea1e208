"""What a training step consumes. Letters: B tokens, S source layers, D width."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import itemgetter

import torch
from torch import Tensor


@dataclass(frozen=True)
class ActivationBatch:
    """B tokens' activations at all source layers, float32, in the model's own space, on the model's device."""

    x_BSD: Tensor  # what the dictionary reads
    y_BSD: Tensor  # what it reconstructs; the same object as x_BSD for a sparse autoencoder
    # For Jacobian matching (training/README.md §5): v', differences to other tokens, and J_MLP(x) v', not yet times s_y / s_x.
    direction_BSD: Tensor | None = None
    derivative_BSD: Tensor | None = None

    @property
    def n_tokens(self) -> int:
        """B."""
        return self.x_BSD.shape[0]

    def to(self, device: torch.device | str, dtype: torch.dtype) -> ActivationBatch:
        """The same elsewhere, or in another number format."""
        return self._each(lambda whole: whole.to(device, dtype))

    def split(self, parts: int) -> Iterator[ActivationBatch]:
        """Parts of equal size, views; what is left over when ``parts`` does not divide B is dropped."""
        size = self.n_tokens // parts
        for start in range(0, parts * size, size):
            yield self._each(itemgetter(slice(start, start + size)))

    def _each(self, change: Callable[[Tensor], Tensor]) -> ActivationBatch:
        return ActivationBatch(
            change(self.x_BSD),
            change(self.y_BSD),
            None if self.direction_BSD is None else change(self.direction_BSD),
            None if self.derivative_BSD is None else change(self.derivative_BSD),
        )
