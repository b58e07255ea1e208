"""Activations on disk, made once and read by every engine (quality.py). Imports numpy and torch only.

Folder: GROUP_x.npy, GROUP_y.npy (N, S, D) inputs and outputs of all layers, GROUP one of train, calibration, test;
order.npy (T,) the rows of train in the order of training, some perhaps more than once;
moments.npz mean_x, std_x, mean_y, std_y (S, D) of the rows of train; about.json what they are.

Letters: N rows, B tokens of a batch, S layers, D width.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

CHUNK = 512  # rows in hand


@dataclass(frozen=True)
class Rows:
    """One such folder; files stay on disk until rows are asked for."""

    folder: Path

    @property
    def about(self) -> dict[str, Any]:
        """What the activations are."""
        read: dict[str, Any] = json.loads((self.folder / "about.json").read_text())
        return read

    @property
    def moments(self) -> dict[str, Tensor]:
        """Means and standard deviations of each dimension, float32."""
        with np.load(self.folder / "moments.npz") as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The training batches (B, S, D), float32, always in the same order; a last partial one is dropped."""
        order = self.order()
        for start in range(0, len(order) - size + 1, size):
            yield self.chosen(order[start : start + size])

    def order(self) -> np.ndarray:
        """Numbers of the rows of train (T,) in the order of training."""
        return np.load(self.folder / "order.npy")

    def chosen(self, numbers: np.ndarray) -> tuple[Tensor, Tensor]:
        """Rows of train by number, float32."""
        x, y = self._open("train")
        return _float(x[numbers]), _float(y[numbers])

    def group(self, name: str) -> tuple[Tensor, Tensor]:
        """All rows of a small group, float32."""
        x, y = self._open(name)
        return _float(x[:]), _float(y[:])

    def _open(self, name: str) -> list[np.ndarray]:
        return [np.load(self.folder / f"{name}_{side}.npy", mmap_mode="r") for side in "xy"]


class Writer:
    """Fills a group of known size batch by batch."""

    def __init__(self, folder: Path, group: str, shape: tuple[int, ...], dtype: str) -> None:
        self.files = [
            np.lib.format.open_memmap(folder / f"{group}_{side}.npy", mode="w+", dtype=dtype, shape=shape)
            for side in "xy"
        ]
        self.filled = 0

    def add(self, x_BSD: Tensor, y_BSD: Tensor) -> None:
        """The next rows. SystemExit when a number is too large for the files' format."""
        for file, rows in zip(self.files, (x_BSD, y_BSD), strict=True):
            written = rows.numpy().astype(file.dtype)
            if not np.isfinite(written).all():
                raise SystemExit(f"an activation is too large for {file.dtype}, or not finite")
            file[self.filled : self.filled + len(rows)] = written
        self.filled += len(x_BSD)


def write_moments(folder: Path) -> None:
    """Measure the rows of train, in float64."""
    found: dict[str, np.ndarray] = {}
    for side in "xy":
        rows = np.load(folder / f"train_{side}.npy", mmap_mode="r")
        chunks = [slice(start, start + CHUNK) for start in range(0, len(rows), CHUNK)]
        mean = sum(rows[chunk].astype(np.float64).sum(0) for chunk in chunks) / len(rows)
        square = sum(np.square(rows[chunk] - mean).sum(0) for chunk in chunks) / len(rows)
        found |= {f"mean_{side}": mean.astype(np.float32), f"std_{side}": np.sqrt(square).astype(np.float32)}
    np.savez(folder / "moments.npz", **found)


def _float(rows: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(rows, dtype=np.float32))
