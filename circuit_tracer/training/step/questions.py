"""What the host wants to know of the device: many numbers in one transfer, because each transfer waits for the device."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from circuit_tracer.kernels.device import on_gpu


@dataclass
class Answer:
    """Numbers that are on their way; asking for them waits for all that are."""

    asked: Questions
    name: str
    found: list[float] | None = None

    @property
    def numbers(self) -> list[float]:
        """In the order of the tensor asked about."""
        if self.found is None:
            self.asked.fetch()
        assert self.found is not None
        return self.found

    @property
    def number(self) -> float:
        """Of a tensor with one element."""
        return self.numbers[0]


@dataclass
class Questions:
    """Collects tensors until the first answer is needed. Whole numbers are exact up to 2^53."""

    _open: list[tuple[Tensor, Answer]] = field(default_factory=list)

    def ask(self, name: str, tensor: Tensor) -> Answer:
        """The elements of a tensor, later; ``name`` says what they are."""
        answer = Answer(self, name)
        self._open.append((tensor.detach().reshape(-1), answer))
        return answer

    def fetch(self) -> None:
        """Answer all that was asked."""
        asked, self._open = self._open, []
        tensors = [tensor for tensor, _ in asked]
        if tensors and on_gpu(tensors[0]):
            joined = torch.cat([tensor.double() for tensor in tensors]).tolist()
        else:
            joined = [number for tensor in tensors for number in tensor.tolist()]
        for tensor, answer in asked:
            answer.found, joined = joined[: len(tensor)], joined[len(tensor) :]
