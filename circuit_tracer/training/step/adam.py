"""Adam on gradients as they come: each block of rows is updated at once and its gradient forgotten (training/README.md §8)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from circuit_tracer import huge_pages
from circuit_tracer.kernels.adam import Rows, Update, adam_, packed
from circuit_tracer.kernels.random_bits import key_of
from circuit_tracer.training.config.schema import OptimizerSection
from circuit_tracer.training.step.dictionary import Dictionary
from circuit_tracer.training.step.host import Streamed, host_zeros

EXPONENT = ".exponent"  # behind the name of a moment in eight bits: the exponents its blocks share
HOST_BLOCK_BYTES = 2**28  # of the gradient of rows whose moments come from the host at a time
VECTOR_WIDTH = 1024  # a vector is updated as rows of at most so many

# Parameters that learn faster, by so many times. A step moves log theta by about the learning rate: a threshold could not
# follow pre-activations, whose encoder weights of 1/sqrt(D) change by much larger shares.
OWN_RATE = {"log_threshold": 3.0}


class Adam:
    """The sink of a training step (`step.Sink`) that changes the dictionary's weights.

    ``begin`` comes before each step. bfloat16 weights and moments that are narrower than float32 are rounded stochastically
    under a key of seed, step and place, so that a resumed run and any number of ranks round alike. Moments of biases and
    thresholds are float32 or wider.
    """

    def __init__(self, dictionary: Dictionary, settings: OptimizerSection, seed: int) -> None:
        self.dictionary, self.settings, self.seed = dictionary, settings, seed
        self.weights = dictionary.tensors()
        self.names = {name: number for number, name in enumerate(sorted(self.weights))}
        self.host = Streamed(dictionary.b_dec.device) if settings.place == "host" else None
        self.first: dict[str, Tensor] = {}
        self.second: dict[str, Tensor] = {}
        self.exponents: dict[str, tuple[Tensor, Tensor]] = {}  # of both moments, where they have eight bits
        for name, weight in self.weights.items():
            dtype = _kept_in(weight, settings.moments if _is_matrix(name) else "float32")
            self.first[name], self.second[name] = (self._zeros(name, weight.shape, dtype) for _ in range(2))
            if dtype is torch.uint8:
                shape = (*weight.shape[:-1], packed.n_blocks(weight.shape[-1]))
                self.exponents[name] = self._zeros(name, shape, dtype), self._zeros(name, shape, dtype)
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

    def moments(self, name: str) -> dict[str, Tensor]:
        """All that is kept of one parameter besides its weights, by its name in a file."""
        kept = {"m": self.first[name], "v": self.second[name]}
        for moment, exponent in zip(("m", "v"), self.exponents.get(name, ()), strict=False):
            kept[moment + EXPONENT] = exponent
        return kept

    def rate_of(self, name: str) -> float:
        """The learning rate of one parameter at this step."""
        return self.rate * OWN_RATE.get(name.partition(".")[0], 1.0)

    def gradient(self, name: str, grad: Tensor) -> None:
        """Update one parameter."""
        self._update(name, slice(None), grad.view(self.weights[name].shape))

    def decoder_gradient(self, source: int, rows: slice, grad_nC: Tensor) -> None:
        """Update some decoder rows and their norms."""
        self._update(f"W_dec.{source}", rows, grad_nC, self.dictionary.norms[source][rows])

    def _update(self, name: str, rows: slice, grad: Tensor, norm: Tensor | None = None) -> None:
        if self.host is None or not self._on_host(name):
            self._update_beside(name, rows, grad, norm, self._kept(name, rows))
            return
        start, size = rows.start or 0, max(1, HOST_BLOCK_BYTES // (4 * grad.shape[-1]))
        for first in range(0, len(grad), size):
            part = slice(first, min(first + size, len(grad)))
            block = slice(start + part.start, start + part.stop)
            with self.host.borrowed((name, block.start), self._kept(name, block)) as kept:
                self._update_beside(name, block, grad[part], None if norm is None else norm[part], kept)

    def _update_beside(self, name: str, rows: slice, grad: Tensor, norm: Tensor | None, moments: list[Tensor]) -> None:
        """Update rows with their ``moments`` (and exponents), which lie beside them."""
        weight, width = self.weights[name], self.weights[name].shape[-1]
        if weight.ndim == 1:
            width = math.gcd(len(weight), VECTOR_WIDTH)
        first_RC, second_RC = (part.view(-1, width) for part in moments[:2])
        first_RK, second_RK = [part.view(-1, part.shape[-1]) for part in moments[2:]] or (None, None)
        kept = Rows(weight[rows].view(-1, width), first_RC, second_RC, first_RK, second_RK, norm)
        first_row = (rows.start or 0) + (self.dictionary.owned.start if "." in name else 0)
        key = (self.seed, self.step, self.names[name])
        update = Update(
            self.step,
            self.rate_of(name),
            self.settings.beta1,
            self.settings.beta2,
            self.settings.eps,
            place=first_row * width if weight.ndim > 1 else first_row,
            keys=(key_of(*key), key_of(*key, 1), key_of(*key, 2)),
        )
        adam_(kept, grad.reshape(-1, width), update)

    def _kept(self, name: str, rows: slice) -> list[Tensor]:
        """Both moments of some rows, and their exponents if there are any."""
        return [part[rows] for part in (self.first[name], self.second[name], *self.exponents.get(name, ()))]

    def _on_host(self, name: str) -> bool:
        """Vectors are small and stay beside the weights."""
        return self.host is not None and name.startswith(("W_enc.", "W_dec."))

    def _zeros(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        if self._on_host(name):
            return host_zeros(shape, dtype, self.weights[name].device)
        return huge_pages.zeros(shape, dtype, self.weights[name].device)


def _is_matrix(name: str) -> bool:
    """Not a bias or a threshold: those are small, and nothing is gained by narrow moments."""
    return name.startswith("W_")


def _kept_in(weight: Tensor, asked: str) -> torch.dtype:
    wide = torch.promote_types(weight.dtype, torch.float32)
    return {"float32": wide, "bfloat16": torch.bfloat16, "int8": torch.uint8}[asked]
