"""Adam on gradients as they come: each block of rows is updated at once and its gradient forgotten (training/README.md §8)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.adam import adam

from circuit_tracer.training.config.schema import OptimizerSection
from circuit_tracer.training.step.counter_random import round_stochastically
from circuit_tracer.training.step.dictionary import Dictionary, row_norms

# Parameters that learn faster, by so many times. A step moves log theta by about the learning rate: a threshold could not
# follow pre-activations, whose encoder weights of 1/sqrt(D) change by much larger shares.
OWN_RATE = {"log_threshold": 3.0}


class Adam:
    """The sink of a training step (`step.Sink`) that changes the dictionary's weights. Moments are float32 or wider.

    ``begin`` comes before each step. bfloat16 weights are rounded stochastically under a key of seed, step and place, so
    that a resumed run and any number of ranks round alike.
    """

    def __init__(self, dictionary: Dictionary, settings: OptimizerSection, seed: int) -> None:
        self.dictionary, self.settings, self.seed = dictionary, settings, seed
        self.weights = dictionary.tensors()
        self.names = {name: number for number, name in enumerate(sorted(self.weights))}
        self.first = {name: _moment(tensor) for name, tensor in self.weights.items()}
        self.second = {name: _moment(tensor) for name, tensor in self.weights.items()}
        self.step, self.rate = 0, 0.0

    def begin(self, step: int, rate: float) -> None:
        """Updates from now on are those of ``step`` (0, 1, ...) with this learning rate."""
        self.step, self.rate = step, rate

    def rate_of(self, name: str) -> float:
        """The learning rate of one parameter at this step."""
        return self.rate * OWN_RATE.get(name.partition(".")[0], 1.0)

    def gradient(self, name: str, grad: Tensor) -> None:
        """Update one parameter."""
        self._update(name, slice(None), grad.view(self.weights[name].shape))

    def decoder_gradient(self, source: int, rows: slice, grad_nC: Tensor) -> None:
        """Update a block of decoder rows and their norms, while they are in the cache."""
        name = f"W_dec.{source}"
        self._update(name, rows, grad_nC)
        self.dictionary.norms[source][rows] = row_norms(self.weights[name][rows])

    def _update(self, name: str, rows: slice, grad: Tensor) -> None:
        weight = self.weights[name][rows]
        first, second = self.first[name][rows], self.second[name][rows]
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
            lr=self.rate_of(name),
            weight_decay=0.0,
            eps=self.settings.eps,
            maximize=False,
        )
        if wide is not weight:
            width = weight[0].numel() if len(weight) else 0
            first_row = (rows.start or 0) + (self.dictionary.owned.start if "." in name else 0)
            weight.copy_(round_stochastically(wide, first_row * width, self.seed, self.step, self.names[name]))


def _moment(weight: Tensor) -> Tensor:
    return torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
