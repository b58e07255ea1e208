"""Adam on gradients as they come: each block of rows is updated at once and its gradient forgotten (training/README.md §8)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.adam import adam

from circuit_tracer.training.config.schema import OptimizerSection
from circuit_tracer.training.step.counter_random import round_stochastically
from circuit_tracer.training.step.dictionary import Dictionary, row_norms
from circuit_tracer.training.step.host import Streamed, host_zeros


class Adam:
    """The sink of a training step (`step.Sink`) that changes the dictionary's weights. Moments are float32 or wider.

    ``begin`` comes before each step. bfloat16 weights are rounded stochastically under a key of seed, step and place, so
    that a resumed run and any number of ranks round alike.
    """

    def __init__(self, dictionary: Dictionary, settings: OptimizerSection, seed: int) -> None:
        self.dictionary, self.settings, self.seed = dictionary, settings, seed
        self.weights = dictionary.tensors()
        self.names = {name: number for number, name in enumerate(sorted(self.weights))}
        self.host = Streamed(dictionary.b_dec.device) if settings.place == "host" else None
        self.first, self.second = (
            {name: self._moment(name, tensor) for name, tensor in self.weights.items()} for _ in range(2)
        )
        self.step, self.rate = 0, 0.0

    def begin(self, step: int, rate: float) -> None:
        """Updates from now on are those of ``step`` (0, 1, ...) with this learning rate."""
        self.step, self.rate = step, rate
        if self.host is not None:
            self.host.begin()

    def wait(self) -> None:
        """Until moments in the host's memory are those after the last update."""
        if self.host is not None:
            self.host.wait()

    def gradient(self, name: str, grad: Tensor) -> None:
        """Update one parameter."""
        self._update(name, slice(None), grad.view(self.weights[name].shape))

    def decoder_gradient(self, source: int, rows: slice, grad_nC: Tensor) -> None:
        """Update a block of decoder rows and their norms, while they are in the cache."""
        name = f"W_dec.{source}"
        self._update(name, rows, grad_nC)
        self.dictionary.norms[source][rows] = row_norms(self.weights[name][rows])

    def _update(self, name: str, rows: slice, grad: Tensor) -> None:
        moments = [self.first[name][rows], self.second[name][rows]]
        if self._on_host(name):
            assert self.host is not None
            with self.host.borrowed((name, rows.start or 0), moments) as (first, second):
                self._step(name, rows, grad, first, second)
        else:
            self._step(name, rows, grad, *moments)

    def _step(self, name: str, rows: slice, grad: Tensor, first: Tensor, second: Tensor) -> None:
        weight = self.weights[name][rows]
        wide = weight.float() if weight.dtype is torch.bfloat16 else weight
        adam(
            [wide],
            [grad.to(wide.dtype)],
            [first],
            [second],
            [],
            [torch.tensor(float(self.step), device=wide.device)],
            fused=True,
            amsgrad=False,
            beta1=self.settings.beta1,
            beta2=self.settings.beta2,
            lr=self.rate,
            weight_decay=0.0,
            eps=self.settings.eps,
            maximize=False,
        )
        if wide is not weight:
            width = weight[0].numel() if len(weight) else 0
            first_row = (rows.start or 0) + (self.dictionary.owned.start if "." in name else 0)
            weight.copy_(round_stochastically(wide, first_row * width, self.seed, self.step, self.names[name]))

    def _on_host(self, name: str) -> bool:
        """Vectors are small and stay beside the weights."""
        return self.host is not None and name.startswith(("W_enc.", "W_dec."))

    def _moment(self, name: str, weight: Tensor) -> Tensor:
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return host_zeros(weight, dtype) if self._on_host(name) else torch.zeros_like(weight, dtype=dtype)
