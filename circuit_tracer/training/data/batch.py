"""What a training step consumes. Letters: B tokens, S source layers, D width."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ActivationBatch:
    """B tokens' activations at all source layers, float32, in the model's own space, on the model's device."""

    x_BSD: Tensor  # what the dictionary reads
    y_BSD: Tensor  # what it reconstructs; the same object as x_BSD for a sparse autoencoder
    direction_BSD: Tensor | None = (
        None  # v', differences to other tokens, for Jacobian matching (training/README.md §5)
    )
    derivative_BSD: Tensor | None = None  # J_MLP(x) v', not yet scaled by s_y / s_x

    @property
    def n_tokens(self) -> int:
        """B."""
        return self.x_BSD.shape[0]
