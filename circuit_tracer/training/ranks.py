"""The processes of a run: one, or those that torchrun started (training/README.md §10).

Every collective is called by all ranks in the same order; with one process each is the identity.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from circuit_tracer.errors import InputError

# A rank that waits this long for another one ends with an error instead of hanging.
TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class Ranks:
    """This process among ``world``."""

    rank: int = 0
    world: int = 1

    @classmethod
    def from_environment(cls, device: torch.device) -> Ranks:
        """Join the group that torchrun set up (nccl on CUDA, gloo elsewhere); alone without torchrun."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this rank writes what is written once."""
        return self.rank == 0

    def share(self, n_features: int) -> slice:
        """The features this rank owns, of every layer. Raises InputError when they cannot be shared out evenly."""
        if n_features % self.world:
            raise InputError(
                f"dictionary.features is {n_features}, which {self.world} ranks cannot share evenly; "
                f"take {n_features // self.world * self.world or self.world} or another number of ranks."
            )
        size = n_features // self.world
        return slice(self.rank * size, (self.rank + 1) * size)

    def all_reduce_(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def all_gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks, rank 0 first, joined along dimension 0; shapes may differ in that dimension."""
        if self.world == 1:
            return tensor
        sizes: list[int] = [0] * self.world
        dist.all_gather_object(sizes, tensor.shape[0])
        padded = tensor.new_zeros(max(sizes), *tensor.shape[1:])
        padded[: tensor.shape[0]] = tensor
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def barrier(self) -> None:
        """Wait for all."""
        if self.world > 1:
            dist.barrier()
