"""The active features of one prompt: a table sorted by (layer, position, index), never a dense L x P x F array."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from circuit_tracer.errors import InputError


@dataclass(frozen=True)
class ActiveFeatures:
    """N active features; all columns have shape (N,) and lie on one device.

    ``layer``, ``position``, ``index`` are int64, ``value`` is the activation (raw units of the transcoder's pre-activation:
    for ReLU, JumpReLU and TopK an active feature's value equals its pre-activation). Rows are sorted by (layer, position,
    index), which is the order of feature nodes in a graph.

    Attributes:
        held: bool (N,), features whose value an intervention has set, whatever they read; None: there are none.
    """

    layer: Tensor
    position: Tensor
    index: Tensor
    value: Tensor
    held: Tensor | None = None

    def __post_init__(self) -> None:
        n = self.value.shape
        columns = {"layer": self.layer, "position": self.position, "index": self.index}
        for name, column in columns.items():
            if column.dtype != torch.int64 or column.shape != n or column.ndim != 1:
                raise InputError(
                    f"active features: {name} must be int64 of shape {tuple(n)}, as value is; "
                    f"found {column.dtype} of shape {tuple(column.shape)}."
                )

    def __len__(self) -> int:
        return int(self.value.shape[0])

    @property
    def device(self) -> torch.device:
        return self.value.device

    @classmethod
    def from_layers(cls, layers: Iterable[tuple[Tensor, Tensor, Tensor]]) -> ActiveFeatures:
        """Join the (position, index, value) of layers 0, 1, 2, ..., each sorted by (position, index) already.

        At least one layer is needed, so that the device and the dtype of the values are known.
        """
        parts = list(layers)
        if not parts:
            raise InputError("active features: at least one layer is needed, found none.")
        layer = torch.cat([torch.full_like(position, depth) for depth, (position, _, _) in enumerate(parts)])
        position, index, value = (torch.cat([part[column] for part in parts]) for column in range(3))
        return cls(layer, position, index, value)

    def of_layer(self, layer: int) -> slice:
        """The rows of one layer, found by bisection: O(log N)."""
        bounds = torch.tensor([layer, layer + 1], device=self.device)
        start, stop = torch.searchsorted(self.layer, bounds).tolist()
        return slice(start, stop)

    def distinct(self, n_layers: int) -> Tensor:
        """(L,) how many features of each layer are active anywhere."""
        width = int(self.index.max()) + 1 if len(self) else 1
        return torch.bincount(torch.unique(self.layer * width + self.index) // width, minlength=n_layers)

    def to(self, device: torch.device | str) -> ActiveFeatures:
        """The same table on another device."""
        if self.device == torch.device(device):
            return self
        held = None if self.held is None else self.held.to(device)
        layer, position, index = torch.stack([self.layer, self.position, self.index]).to(device)  # one copy
        return ActiveFeatures(layer, position, index, self.value.to(device), held)

    def to_sparse(self, shape: tuple[int, int, int]) -> Tensor:
        """Coalesced COO tensor of ``shape`` (L, P, F), as circuit-tracer hands activations around."""
        where = torch.stack((self.layer, self.position, self.index))
        return torch.sparse_coo_tensor(where, self.value, shape, is_coalesced=True, check_invariants=True)
