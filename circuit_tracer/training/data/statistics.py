"""Means and mean squares of the rows, before training (training/README.md §2). Letters: S source layers, D width, n rows."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from circuit_tracer.training.data.block import Block

ROWS_AT_A_TIME = 1024  # of which a float64 copy is made


@dataclass(frozen=True)
class Statistics:
    """Moments of `n_tokens` rows, float64, in the model's own space. For an sae those of y are those of x."""

    n_tokens: int
    mean_x_SD: Tensor
    mean_square_x_S: Tensor  # E|x|^2
    mean_y_SD: Tensor
    mean_square_y_S: Tensor

    @property
    def variance_x_S(self) -> Tensor:
        """E|x - mean|^2."""
        return self.mean_square_x_S - self.mean_x_SD.square().sum(-1)

    @property
    def variance_y_S(self) -> Tensor:
        """E|y - mean|^2."""
        return self.mean_square_y_S - self.mean_y_SD.square().sum(-1)


class Moments:
    """Sums over rows, in float64."""

    def __init__(self) -> None:
        self.n_tokens = 0
        self._sum: dict[str, Tensor] = {}
        self._square: dict[str, Tensor] = {}

    def add(self, block: Block, end: int) -> None:
        """Take the first `end` rows of a block."""
        self.n_tokens += end
        for start in range(0, end, ROWS_AT_A_TIME):
            for name in ("x", "y"):
                if name in block.layout.names:
                    self._add(name, block.rows(name, start, min(start + ROWS_AT_A_TIME, end)))

    def _add(self, name: str, rows_nSD: Tensor) -> None:
        rows = rows_nSD.cpu().double() if rows_nSD.device.type == "mps" else rows_nSD.double()
        total, square = rows.sum(0), rows.square_().sum((0, 2))
        self._sum[name] = self._sum[name] + total if name in self._sum else total
        self._square[name] = self._square[name] + square if name in self._square else square

    def result(self) -> Statistics:
        """Means of what was added, at least one row."""
        mean = {name: total.cpu() / self.n_tokens for name, total in self._sum.items()}
        square = {name: total.cpu() / self.n_tokens for name, total in self._square.items()}
        out = "y" if "y" in mean else "x"
        return Statistics(self.n_tokens, mean["x"], square["x"], mean[out], square[out])
