"""The processes of a run: one, or those that torchrun started.

Every collective is called by all ranks in the same order; with one process each is the identity. When a process has died or
no longer answers, the others raise ResourceError instead of waiting for ever.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import ClassVar, Self

import torch
import torch.distributed as dist
from torch import Tensor

from circuit_tracer.errors import InputError, ResourceError

TIMEOUT = timedelta(minutes=10)  # in a collective of a step, where all have the same to do
# While one rank works alone (evaluation, files) the others wait this long. One that died is noticed at once all the same.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """This process among ``world``."""

    advice: ClassVar[str] = "Look for the first error among the processes, then start again."

    rank: int = 0
    world: int = 1
    device: torch.device = field(default=torch.device("cpu"))  # where collectives of this process happen
    _waiting: dist.ProcessGroup | None = field(default=None, repr=False, compare=False)
    _group: dist.ProcessGroup | None = field(default=None, repr=False, compare=False)  # None: all processes

    @classmethod
    def from_environment(cls, device: torch.device, timeout: timedelta = TIMEOUT) -> Self:
        """Join the group that torchrun set up (nccl on CUDA, gloo elsewhere); alone without torchrun.

        On CUDA without a number every process of a machine takes a device of its own. Raises InputError if they are too few.
        """
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            return cls(device=device)
        if device.type == "cuda" and device.index is None:
            _take_device(int(os.environ.get("LOCAL_RANK", "0")))
        if not dist.is_initialized():
            with cls._others():
                dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timeout)
        with cls._others():
            return cls(dist.get_rank(), world, device, dist.new_group(backend="gloo", timeout=PATIENCE))

    @property
    def first(self) -> bool:
        """Whether this rank writes what is written once."""
        return self.rank == 0

    @property
    def local(self) -> int:
        """How many processes share this machine, as torchrun says."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if self.world > 1 else 1

    def all_reduce_(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        if self.world > 1:
            with self._others():
                dist.all_reduce(tensor, group=self._group)
        return tensor

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, where the tensor lies: the same bits on all."""
        return self.all_reduce_(tensor.to(self.device)).to(tensor.device) if self.world > 1 else tensor

    def broadcast(self, tensor: Tensor) -> Tensor:
        """The tensor (n,) of rank 0, whatever it is here, where the one given lies."""
        if self.world == 1:
            return tensor
        size = torch.tensor([len(tensor)], device=self.device)
        with self._others():
            dist.broadcast(size, 0)
            sent = tensor.to(self.device) if self.first else tensor.new_empty(int(size), device=self.device)
            dist.broadcast(sent, 0)
        return sent.to(tensor.device)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks, rank 0 first, joined along dimension 0, where the one given lies.

        Shapes may differ in that dimension.
        """
        if self.world == 1:
            return tensor
        here = tensor.to(self.device)
        sizes = [int(size) for size in self._gathered(torch.tensor([here.shape[0]], device=here.device))]
        padded = here.new_zeros(max(sizes), *here.shape[1:])
        padded[: here.shape[0]] = here
        parts = self._gathered(padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]).to(tensor.device)

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` holds on any rank: the same answer on all."""
        return bool(self.all_reduce_(torch.tensor([int(flag)], device=self.device))) if self.world > 1 else flag

    def barrier(self) -> None:
        """Wait for all, however long one of them works alone. Of all processes only, not of `among`."""
        if self.world > 1:
            with self._others():
                dist.barrier(group=self._waiting)

    def among(self, members: Sequence[Sequence[int]]) -> Ranks:
        """This process among those of one list in ``members``, which deal out all ranks. All ranks call this together."""
        mine = Ranks(device=self.device)
        for ranks in members:
            with self._others():
                group = dist.new_group(list(ranks))
            if self.rank in ranks and len(ranks) > 1:
                mine = Ranks(list(ranks).index(self.rank), len(ranks), self.device, _group=group)
        return mine

    def close(self) -> None:
        """End the group, when all have come this far."""
        if self.world > 1:
            self.barrier()
            dist.destroy_process_group()

    def _gathered(self, tensor: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(tensor) for _ in range(self.world)]
        with self._others():
            dist.all_gather(parts, tensor, group=self._group)
        return parts

    @classmethod
    @contextmanager
    def _others(cls) -> Iterator[None]:
        """What torch.distributed says when another process is gone, said with the next step."""
        try:
            yield
        except RuntimeError as error:
            raise ResourceError(
                f"another process of this run ended or does not answer ({error}). {cls.advice}"
            ) from error


def _take_device(number: int) -> None:
    found = torch.cuda.device_count()
    if number >= found:
        raise InputError(
            f"process {number} of this machine needs a CUDA device of its own; there are {found}. Start fewer."
        )
    torch.cuda.set_device(number)
