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
from circuit_tracer.training.evaluation.intervals import MOST_UNITS, Estimate, by_unit, in_float64
from circuit_tracer.training.evaluation.results import DENSITY_EDGES, HeldOutReconstruction
from circuit_tracer.transcoders.base import Transcoders
from circuit_tracer.transcoders.writes import reconstruct


class Spread:
    """Mean and summed squared distance from it, accumulated in float64 over batches (Chan, Golub and LeVeque 1979).

    By unit U, for what both are without one: tokens, and sums of y and its square, as distances from the first batch's mean.
    """

    def __init__(self) -> None:
        self.n = 0
        self.mean_SD: Tensor = torch.zeros(())
        self.squares_S: Tensor = torch.zeros(())
        self.units: _Units | None = None

    def add(self, y_NSD: Tensor, unit_N: Tensor | None = None) -> None:
        """Take a batch; unit_N as in `Batch`."""
        n, means, squares = len(y_NSD), [], []
        for y_ND in y_NSD.unbind(1):  # one layer at a time in float64
            y_ND = in_float64(y_ND)
            means.append(y_ND.mean(0))
            squares.append((y_ND - means[-1]).square().sum())
        mean_SD, squares_S = torch.stack(means), torch.stack(squares)
        if unit_N is not None:
            self.units = self.units or _Units(mean_SD.cpu())
            self.units.add(y_NSD, unit_N)
        if self.n:
            away_SD, total = mean_SD - self.mean_SD, self.n + n
            squares_S = squares_S + self.squares_S + away_SD.square().sum(1) * (self.n * n / total)
            mean_SD = self.mean_SD + away_SD * (n / total)
        self.n, self.mean_SD, self.squares_S = self.n + n, mean_SD, squares_S


class _Units:
    """Sums by unit: tokens (U,), y (U, S, D) and its square (U, S), both around a centre (S, D)."""

    def __init__(self, centre_SD: Tensor) -> None:
        self.centre_SD = centre_SD
        self.n_U = torch.zeros(MOST_UNITS, dtype=torch.float64)
        self.sums_USD = torch.zeros(MOST_UNITS, *centre_SD.shape, dtype=torch.float64)
        self.squares_US = torch.zeros(MOST_UNITS, len(centre_SD), dtype=torch.float64)

    def add(self, y_NSD: Tensor, unit_N: Tensor) -> None:
        """Take a batch."""
        self.n_U += by_unit(torch.ones(len(unit_N)), unit_N)
        for layer, y_ND in enumerate(y_NSD.unbind(1)):
            y_ND = in_float64(y_ND)
            away_ND = y_ND - self.centre_SD[layer].to(y_ND)
            self.sums_USD[:, layer] += by_unit(away_ND, unit_N)
            self.squares_US[:, layer] += by_unit(away_ND.square().sum(1), unit_N)

    def squares_without(self) -> Tensor:
        """(U, S) summed squared distance from the mean, without each unit."""
        left_US = self.squares_US.sum(0) - self.squares_US
        sums_SD, n_U1 = self.sums_USD.sum(0), (self.n_U.sum() - self.n_U)[:, None]
        lengths_US = torch.stack([(sums_SD - one_SD).square().sum(1) for one_SD in self.sums_USD])
        return left_US - lengths_US / n_U1.clamp_min(1)


class Meter:
    """What one dictionary does over batches."""

    def __init__(self, transcoders: Transcoders) -> None:
        self.transcoders = transcoders
        self.errors_S: Tensor = torch.zeros((), dtype=torch.float64)
        self.counts: list[Any] = [0] * transcoders.n_layers  # tensors (F,) from the first batch on
        self.errors_US = torch.zeros(MOST_UNITS, transcoders.n_layers, dtype=torch.float64)
        self.active_U = torch.zeros(MOST_UNITS, dtype=torch.float64)

    def add(self, x_NSD: Tensor, y_NSD: Tensor, unit_N: Tensor | None = None) -> None:
        """Take a batch; unit_N as in `Batch`. NumericalError, naming the layer, for a reconstruction not finite."""
        active_N = torch.zeros(len(x_NSD), dtype=torch.int64, device=x_NSD.device)
        y_hat_NSD, counts = reconstruct(self.transcoders, x_NSD, active_N)
        y_hat_NSD -= y_NSD
        errors_NS = torch.stack([in_float64(error_ND).square().sum(1) for error_ND in y_hat_NSD.unbind(1)], dim=1)
        errors_S = errors_NS.sum(0)
        if not errors_S.isfinite().all():
            raise NumericalError(
                f"the reconstruction of layer {int((~errors_S.isfinite()).nonzero()[0])} is not finite. Check the "
                "transcoder's decoder weights, biases and skip matrices for NaN."
            )
        self.errors_S = self.errors_S.to(errors_S.device) + errors_S
        self.counts = [before + now for before, now in zip(self.counts, counts, strict=True)]
        if unit_N is not None:
            self.errors_US += by_unit(errors_NS, unit_N)
            self.active_U += by_unit(active_N, unit_N)

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
            estimates=self._estimates(spread, [layer for layer in self.transcoders.layers if densities[layer].numel()]),
        )

    def _estimates(self, spread: Spread, layers: list[int]) -> dict[str, Estimate]:
        """Mean NMSE over the layers that have features, and L0 of all together."""
        errors_S, squares_S, total = (
            self.errors_S.cpu(),
            spread.squares_S.cpu(),
            sum(int(one.sum()) for one in self.counts),
        )
        found = {
            "mean_nmse": Estimate(float((errors_S / squares_S)[layers].mean())),
            "total_l0": Estimate(total / spread.n),
        }
        if spread.units is None:
            return found
        there = spread.units.n_U > 0
        nmse_US = (errors_S - self.errors_US) / spread.units.squares_without()
        l0_U = (total - self.active_U) / (spread.n - spread.units.n_U)
        without = {"mean_nmse": nmse_US[:, layers].mean(1), "total_l0": l0_U}
        return {name: Estimate(one.value, tuple(without[name][there].tolist())) for name, one in found.items()}


def measure(
    dictionaries: Mapping[str, Transcoders], activations: Activations
) -> tuple[dict[str, HeldOutReconstruction], Tensor]:
    """(numbers of each dictionary, mean output (S, D) float64), all in one reading of the activations.

    In memory at a time: one batch of activations and one of reconstructions, whatever the number of features.
    """
    spread = Spread()
    meters = {name: Meter(transcoders) for name, transcoders in dictionaries.items()}
    for batch in activations.batches():
        spread.add(batch.y_NSD, batch.unit_N)
        for meter in meters.values():
            meter.add(*batch)
    return {name: meter.result(spread) for name, meter in meters.items()}, spread.mean_SD


def _histogram(density_F: Tensor) -> list[int]:
    """Features that fire, by density, in the bins that end at each of DENSITY_EDGES after the first."""
    fires = density_F[density_F > 0].cpu()
    upper = torch.tensor(DENSITY_EDGES[1:], dtype=torch.float64)
    # A density that is an edge belongs to the bin below it; rounding must not lift it over.
    place = torch.bucketize(fires * (1 - 1e-12), upper).clamp_max(len(upper) - 1)
    return torch.bincount(place, minlength=len(upper)).tolist()
