"""Reconstruction on held-out tokens: normalised error, active features, densities (README.md §1).

Letters: N tokens, S layers, F features of a layer, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.errors import NumericalError
from circuit_tracer.training.evaluation.activations import Activations
from circuit_tracer.training.evaluation.results import DENSITY_EDGES, HeldOutReconstruction
from circuit_tracer.transcoders.base import Transcoders
from circuit_tracer.transcoders.writes import reconstruct


class Spread:
    """Mean and summed squared distance from it, accumulated in float64 over batches (Chan, Golub and LeVeque 1979)."""

    def __init__(self) -> None:
        self.n = 0
        self.mean_SD: Tensor = torch.zeros(())
        self.squares_S: Tensor = torch.zeros(())

    def add(self, y_NSD: Tensor) -> None:
        """Take a batch."""
        n, means, squares = len(y_NSD), [], []
        for y_ND in y_NSD.unbind(1):  # one layer at a time in float64
            y_ND = in_float64(y_ND)
            means.append(y_ND.mean(0))
            squares.append((y_ND - means[-1]).square().sum())
        mean_SD, squares_S = torch.stack(means), torch.stack(squares)
        if self.n:
            away_SD, total = mean_SD - self.mean_SD, self.n + n
            squares_S = squares_S + self.squares_S + away_SD.square().sum(1) * (self.n * n / total)
            mean_SD = self.mean_SD + away_SD * (n / total)
        self.n, self.mean_SD, self.squares_S = self.n + n, mean_SD, squares_S


class Meter:
    """What one dictionary does over batches."""

    def __init__(self, transcoders: Transcoders) -> None:
        self.transcoders = transcoders
        self.errors_S: Tensor = torch.zeros((), dtype=torch.float64)
        self.counts: list[Any] = [0] * transcoders.n_layers  # tensors (F,) from the first batch on

    def add(self, x_NSD: Tensor, y_NSD: Tensor) -> None:
        """Take a batch. Raises NumericalError, naming the layer, when the reconstruction is not finite."""
        y_hat_NSD, counts = reconstruct(self.transcoders, x_NSD)
        y_hat_NSD -= y_NSD
        errors_S = torch.stack([in_float64(error_ND).square().sum() for error_ND in y_hat_NSD.unbind(1)])
        if not errors_S.isfinite().all():
            raise NumericalError(
                f"the reconstruction of layer {int((~errors_S.isfinite()).nonzero()[0])} is not finite. Check the "
                "transcoder's decoder weights, biases and skip matrices for NaN."
            )
        self.errors_S = self.errors_S.to(errors_S.device) + errors_S
        self.counts = [before + now for before, now in zip(self.counts, counts, strict=True)]

    def result(self, spread: Spread) -> HeldOutReconstruction:
        """The numbers, given how the true outputs of the same tokens spread."""
        nmse_S = (self.errors_S / spread.squares_S).masked_fill(spread.squares_S == 0, torch.nan)
        nmse_S[[layer for layer in range(len(nmse_S)) if layer not in self.transcoders.layers]] = torch.nan
        densities = [in_float64(counts) / spread.n for counts in self.counts]
        return HeldOutReconstruction(
            tokens=spread.n,
            nmse=nmse_S.tolist(),
            l0=[float(counts.sum()) / spread.n for counts in self.counts],
            features=[len(density) for density in densities],
            never_active=[int((density == 0).sum()) for density in densities],
            max_density=[float(density.max()) if len(density) else 0.0 for density in densities],
            density_histogram=[_histogram(density) for density in densities],
        )


def measure(
    dictionaries: Mapping[str, Transcoders], activations: Activations
) -> tuple[dict[str, HeldOutReconstruction], Tensor]:
    """(numbers of each dictionary, mean output (S, D) float64), all in one reading of the activations.

    In memory at a time: one batch of activations and one of reconstructions, whatever the number of features.
    """
    spread = Spread()
    meters = {name: Meter(transcoders) for name, transcoders in dictionaries.items()}
    for x_NSD, y_NSD in activations.batches():
        spread.add(y_NSD)
        for meter in meters.values():
            meter.add(x_NSD, y_NSD)
    return {name: meter.result(spread) for name, meter in meters.items()}, spread.mean_SD


def in_float64(values: Tensor) -> Tensor:
    """In float64, on the CPU if the device has none (mps)."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def _histogram(density_F: Tensor) -> list[int]:
    """Features that fire, by density, in the bins that end at each of DENSITY_EDGES after the first."""
    fires = density_F[density_F > 0].cpu()
    upper = torch.tensor(DENSITY_EDGES[1:], dtype=torch.float64)
    # A density that is an edge belongs to the bin below it; rounding must not lift it over.
    place = torch.bucketize(fires * (1 - 1e-12), upper).clamp_max(len(upper) - 1)
    return torch.bincount(place, minlength=len(upper)).tolist()
