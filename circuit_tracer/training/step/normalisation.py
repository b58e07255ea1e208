"""The space of training: one mean and one scale for each layer (training/README.md §2).

Letters: S source layers, B tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from circuit_tracer import huge_pages
from circuit_tracer.errors import NumericalError


@dataclass(frozen=True)
class Normalisation:
    """x' = scale_x (x - mean_x), y' = scale_y (y - mean_y), so that E|x'|^2 = E|y'|^2 = D. All float32."""

    mean_x_SD: Tensor
    scale_x_S: Tensor
    mean_y_SD: Tensor
    scale_y_S: Tensor

    @classmethod
    def from_moments(
        cls, mean_x_SD: Tensor, variance_x_S: Tensor, mean_y_SD: Tensor, variance_y_S: Tensor
    ) -> Normalisation:
        """From means and E|x - mean|^2. Raises NumericalError for a layer that does not vary or is not finite."""
        scales = []
        for name, mean_SD, variance_S in (("input", mean_x_SD, variance_x_S), ("output", mean_y_SD, variance_y_S)):
            for layer, variance in enumerate(variance_S.tolist()):
                if not 0 < variance < float("inf"):
                    raise NumericalError(
                        f"the {name} of source layer {layer} has variance {variance} over the tokens measured; a positive "
                        "number is expected. Check the model's weights and data.statistics_tokens."
                    )
            scales.append((mean_SD.shape[1] / variance_S.double()).sqrt().float())
        return cls(mean_x_SD.float(), scales[0], mean_y_SD.float(), scales[1])

    def x(self, layer: int, x_BD: Tensor) -> Tensor:
        """Inputs of one layer in the space of training."""
        return _difference(x_BD, self.mean_x_SD[layer]).mul_(self.scale_x_S[layer])

    def y(self, y_BSD: Tensor) -> Tensor:
        """Outputs of all layers in the space of training."""
        return _difference(y_BSD, self.mean_y_SD).mul_(self.scale_y_S[:, None])

    def to(self, device: torch.device) -> Normalisation:
        """On another device."""
        return Normalisation(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    @classmethod
    def names(cls) -> list[str]:
        """Of the tensors."""
        return [field.name for field in fields(cls)]

    def tensors(self) -> dict[str, Tensor]:
        """By name, for checkpoints."""
        return {name: getattr(self, name) for name in self.names()}


def _difference(rows: Tensor, mean: Tensor) -> Tensor:
    """Every step makes these arrays anew: small pages of fresh memory cost several times what the numbers do."""
    out = huge_pages.empty(rows.shape, torch.promote_types(rows.dtype, mean.dtype), rows.device)
    return torch.sub(rows, mean, out=out)
