"""The model's activations on held-out tokens, streamed in batches of bounded size.

Letters: B sequences, P positions, N tokens, S layers of the dictionary, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from circuit_tracer.errors import InputError, NumericalError
from circuit_tracer.models.model_pass import ModelPass, Points
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.training.evaluation.intervals import unit_rows
from circuit_tracer.training.evaluation.sequences import Sequences


class Batch(NamedTuple):
    """Inputs and outputs (N, S, D) of some tokens; unit (N,): the sequence that each is of (`intervals.py`), if it is known."""

    x_NSD: Tensor
    y_NSD: Tensor
    unit_N: Tensor | None = None


class Activations(Protocol):
    """Inputs and outputs (N, S, D) of a dictionary's layers on held-out tokens, in float32 or wider."""

    def sample(self) -> tuple[Tensor, Tensor]:
        """Those of a few tokens, to calibrate on."""

    def batches(self) -> Iterator[Batch]:
        """Those of all tokens, a batch at a time; may be called again."""

    def describe(self) -> dict[str, Any]:
        """Plain values for the report, once `batches` has been through: what was read and what was left out."""


@dataclass
class ModelActivations:
    """What the model computes on token sequences. Tokens that do not count, and norm outliers, are left out.

    A token is an outlier when its input norm at some layer is above ``max_norm_ratio`` times that layer's median over the
    sample: the rule of training, without its dependence on batches.
    """

    parts: ModelParts
    points: Points
    sequences: Sequences
    sample_tokens: int
    batch_tokens: int
    max_norm_ratio: float | None
    progress: Callable[[int, int], None] = lambda done, total: None
    outliers: int = field(default=0, init=False)

    def sample(self) -> tuple[Tensor, Tensor]:
        """From the first sequences with ``sample_tokens`` tokens that count."""
        x_NSD, y_NSD = self._sample
        keep = self._ordinary(x_NSD)
        return x_NSD[keep], y_NSD[keep]

    def batches(self) -> Iterator[Batch]:
        """From sequences of one length at a time."""
        self.outliers = done = first = 0
        for ids_BP in self.sequences.batches(self.batch_tokens):
            x_NSD, y_NSD = self._read(ids_BP)
            keep = self._ordinary(x_NSD)
            unit_N = unit_rows(ids_BP, first)[self.sequences.counted(ids_BP).flatten()]
            first += len(ids_BP)
            self.outliers += int((~keep).sum())
            done += ids_BP.numel()
            self.progress(done, self.sequences.n_tokens)
            if keep.all():
                yield Batch(x_NSD, y_NSD, unit_N)
            elif keep.any():
                yield Batch(x_NSD[keep], y_NSD[keep], unit_N[keep.cpu()])

    def describe(self) -> dict[str, Any]:
        """What was read."""
        return {
            "sequences": len(self.sequences.ids),
            "tokens_read": self.sequences.n_tokens,
            "norm_outliers_left_out": self.outliers,
            "sha256": self.sequences.fingerprint,
        }

    @cached_property
    def _sample(self) -> tuple[Tensor, Tensor]:
        batches = self.sequences.sample(self.sample_tokens).batches(self.batch_tokens)
        inputs, outputs = zip(*(self._read(ids_BP) for ids_BP in batches), strict=True)
        return torch.cat(inputs), torch.cat(outputs)

    @cached_property
    def _limit_S(self) -> Tensor:
        assert self.max_norm_ratio is not None
        median_S: Tensor = self._sample[0].norm(dim=2).median(dim=0).values
        return self.max_norm_ratio * median_S

    def _ordinary(self, x_NSD: Tensor) -> Tensor:
        if self.max_norm_ratio is None:
            return torch.ones(len(x_NSD), dtype=torch.bool, device=x_NSD.device)
        within_NS: Tensor = x_NSD.norm(dim=2) <= self._limit_S
        return within_NS.all(1)

    def _read(self, ids_BP: Tensor) -> tuple[Tensor, Tensor]:
        (rows,) = self.sequences.counted(ids_BP).flatten().to(self.parts.device).nonzero(as_tuple=True)
        inputs, outputs = ModelPass(self.parts, self.points, ids_BP.shape[1]).run(ids_BP)
        x_NSD = self._chosen(inputs, rows, self.points.input)
        return x_NSD, x_NSD if self.points.same else self._chosen(outputs, rows, self.points.output)

    def _chosen(self, activations: list[Tensor], rows: Tensor, point: str) -> Tensor:
        """Rows (N, S, D) of the activations at one point. Raises NumericalError when they are not finite."""
        chosen_NSD = torch.stack([one[rows].to(self.parts.compute_dtype) for one in activations], dim=1)
        finite_S = chosen_NSD.isfinite().all(2).all(0)
        if not finite_S.all():
            layer = self.points.layers[int((~finite_S).nonzero()[0])]
            raise NumericalError(
                f"the model's activations at {point} of layer {layer} are not finite on the held-out tokens. Check the "
                "model's weights; a model trained in bfloat16 cannot run in float16."
            )
        return chosen_NSD


@dataclass
class GivenActivations:
    """Activations (N, S, D) that are there already, such as those of an `ActivationBatch`: all rows count."""

    x_NSD: Tensor
    y_NSD: Tensor
    sample_tokens: int = 1024
    batch_tokens: int = 2048

    def __post_init__(self) -> None:
        if self.x_NSD.ndim != 3 or self.x_NSD.shape != self.y_NSD.shape or not len(self.x_NSD):
            raise InputError(
                f"activations are {tuple(self.x_NSD.shape)} and {tuple(self.y_NSD.shape)}; expected (tokens, layers, width) "
                "twice, with one token or more"
            )

    def sample(self) -> tuple[Tensor, Tensor]:
        """The first rows."""
        return _wide(self.x_NSD[: self.sample_tokens]), _wide(self.y_NSD[: self.sample_tokens])

    def batches(self) -> Iterator[Batch]:
        """Rows in order."""
        inputs, outputs = self.x_NSD.split(self.batch_tokens), self.y_NSD.split(self.batch_tokens)
        for x_NSD, y_NSD in zip(inputs, outputs, strict=True):
            yield Batch(_wide(x_NSD), _wide(y_NSD))

    def describe(self) -> dict[str, Any]:
        """Only how many were given."""
        return {"activations_given": len(self.x_NSD)}


def _wide(activation: Tensor) -> Tensor:
    return activation.to(torch.promote_types(activation.dtype, torch.float32))
