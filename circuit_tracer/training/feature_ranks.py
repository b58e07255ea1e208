"""The processes of a training run: a grid that shares features one way and tokens the other (training/README.md §10)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from circuit_tracer.errors import InputError
from circuit_tracer.ranks import Ranks


def group_size(world: int, data_parallel: int) -> int:
    """How many of ``world`` processes share the features. Raises InputError when they cannot be dealt out evenly."""
    if world % data_parallel:
        raise InputError(
            f"run.data_parallel is {data_parallel}, but the run has {world} process{'es' * (world > 1)}, which so many groups "
            f"cannot share evenly. Start a multiple of {data_parallel} with torchrun, or set run.data_parallel to a divisor of "
            f"{world}."
        )
    return world // data_parallel


@dataclass(frozen=True)
class FeatureRanks(Ranks):
    """This process among the ``world`` that share the features and see the same tokens.

    ``replicas``: those that own the same features and see other tokens. ``whole``: all processes; None: no others.
    """

    advice: ClassVar[str] = (
        "The last complete checkpoint stays: look for the first error among the processes, then start again with --resume, "
        "on any number of ranks."
    )

    replicas: Ranks = field(default_factory=Ranks)
    whole: Ranks | None = None

    def grid(self, data_parallel: int) -> Self:
        """These processes as ``data_parallel`` groups that share the tokens of a batch; neighbours share features.

        All ranks call this together. Raises InputError when the processes cannot be dealt out evenly.
        """
        size = group_size(self.world, data_parallel)
        if data_parallel == 1:
            return self
        groups = [range(first, first + size) for first in range(0, self.world, size)]
        same = self.among(groups)
        replicas = self.among([range(first, self.world, size) for first in range(size)])
        return replace(self, rank=same.rank, world=same.world, _group=same._group, replicas=replicas, whole=self)

    @property
    def plain(self) -> Ranks:
        """All processes of the run, in one row."""
        return self.whole or self

    @property
    def first(self) -> bool:
        """Whether this rank, of all, writes what is written once."""
        return self.rank == self.replicas.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` holds on any process of the run."""
        return super().any(flag) if self.whole is None else self.whole.any(flag)

    def barrier(self) -> None:
        """Wait for all processes of the run."""
        if self.whole is None:
            super().barrier()
        else:
            self.whole.barrier()

    def share(self, n_features: int) -> slice:
        """The features this rank owns, of every layer. Raises InputError when they cannot be shared out evenly."""
        if n_features % self.world:
            raise InputError(
                f"dictionary.features is {n_features}, which {self.world} ranks cannot share evenly; "
                f"take {n_features // self.world * self.world or self.world} or another number of ranks."
            )
        size = n_features // self.world
        return slice(self.rank * size, (self.rank + 1) * size)

    def tokens(self, batch: int) -> slice:
        """Which rows of a batch this rank sees. Raises InputError when they cannot be shared out evenly."""
        if batch % self.replicas.world:
            raise InputError(
                f"run.batch is {batch}, which run.data_parallel {self.replicas.world} groups cannot share evenly; take "
                f"{max(1, batch // self.replicas.world) * self.replicas.world}, or another run.data_parallel."
            )
        size = batch // self.replicas.world
        return slice(self.replicas.rank * size, (self.replicas.rank + 1) * size)

    def mean_(self, tensor: Tensor) -> Tensor:
        """The mean over the groups that see different tokens, in place: of what each knows of its own share of a batch."""
        return self.replicas.all_reduce_(tensor).div_(self.replicas.world) if self.replicas.world > 1 else tensor

    def means(self, values: list[float]) -> list[float]:
        """The same of numbers."""
        if self.replicas.world == 1:
            return values
        found: list[float] = self.mean_(torch.tensor(values, dtype=torch.float64, device=self.device)).tolist()
        return found
