"""What the export kept: error, active features and divergence, as trained and of the files, on the same tokens.

Letters: B tokens of a batch, S source layers, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.errors import NumericalError
from circuit_tracer.models.model_pass import Points
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.models.run import fast_attention
from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.data.given.source import UnseenModel
from circuit_tracer.training.data.points import points_of
from circuit_tracer.training.evaluation.intervals import in_float64
from circuit_tracer.training.evaluation.reconstruction import Spread
from circuit_tracer.training.evaluation.replacement import compare
from circuit_tracer.training.evaluation.sequences import Sequences
from circuit_tracer.training.export.trained import Trained, TrainedStandIn
from circuit_tracer.training.sparsity import rule_of
from circuit_tracer.transcoders.base import Transcoders
from circuit_tracer.transcoders.writes import reconstruct

Batches = Sequence[tuple[Tensor, Tensor]]  # (x, y), each (B, S, D), the model's own activations, in the host's memory

PASS_TOKENS = 2048  # of a replaced pass; changes no result
TRAINED = "trained"


@dataclass(frozen=True)
class Subject:
    """What a run trains on and is measured on. layers: the model's, of its sources. held_out: sequences, each (P,); none of a
    model that is not here.
    """

    config: TrainingConfig
    parts: ModelParts
    tokenizer: Any
    layers: Sequence[int]
    held_out: Sequence[Tensor]


@dataclass(frozen=True)
class Side:
    """One of the two: mean NMSE over layers, active features a token over all layers, KL(model || all MLPs replaced).

    ``kl`` is None for a dictionary that replaces no model, and where replacement is not measured.
    """

    nmse: float
    l0: float
    kl: float | None = None


@dataclass(frozen=True)
class Kept:
    """Both sides, on ``tokens`` held-out tokens that no threshold was calibrated on (KL: on those of the evaluation)."""

    tokens: int
    trained: Side
    exported: Side

    @property
    def loss(self) -> float:
        """How much NMSE rose, relative to the trained one."""
        return self.exported.nmse / self.trained.nmse - 1

    def __str__(self) -> str:
        before, after = self.trained, self.exported
        parts = [f"NMSE {before.nmse:.4f} -> {after.nmse:.4f}", f"L0 {before.l0:.1f} -> {after.l0:.1f}"]
        if before.kl is not None and after.kl is not None:
            parts.append(f"KL {before.kl:.3f} -> {after.kl:.3f}")
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"loss": self.loss, "summary": str(self)}

    def require(self, config: TrainingConfig) -> None:
        """Raise NumericalError, with the next step, if NMSE rose by more than ``config.run.export_loss``."""
        limit = config.run.export_loss
        if self.loss <= limit:
            return
        remedy = ""
        if config.export_dtype != "float32":
            remedy = "set run.export_dtype float32, or "
        elif rule_of(config.sparsity).needs_level:
            remedy = "train with sparsity.activation topk, which is exported as it is, or "
        raise NumericalError(
            f"the files in {config.run.out / 'transcoder'} are not the dictionary that was trained: on {self.tokens} held-out "
            f"tokens {self}, {self.loss:.1%} more error where run.export_loss allows {limit:.1%}. They stay. To make them anew "
            f"from the last checkpoint, {remedy}take this loss with run.export_loss {1.1 * self.loss:.2g}, and go on with "
            "--resume."
        )


def replaces_model(points: Points, parts: ModelParts) -> bool:
    """Whether a dictionary stands in for all MLPs of the model."""
    return not points.same and len(points.layers) == parts.config.n_layers


@torch.no_grad()
def trained_side(trained: Trained, batches: Batches, subject: Subject) -> Side:
    """Of the dictionary in training: its rule applied to batches like those of training. All ranks call this.

    KL is that of the held-out sequences on which an evaluation replaces MLPs, by `Trained.alone`.
    """
    config, parts = subject.config, subject.parts
    side = _side(trained.reconstruct, batches, parts.device)
    if not config.evaluation.replacement_tokens or isinstance(parts, UnseenModel):
        return side
    if not replaces_model(points := points_of(config.dictionary, parts), parts):
        return side
    chosen = Sequences.of(subject.held_out, parts, subject.tokenizer, config.evaluation_tokens)
    sequences = chosen.first(config.evaluation.replacement_tokens)
    with fast_attention(parts):
        compared = compare(parts, {TRAINED: (points, TrainedStandIn(trained))}, sequences, PASS_TOKENS)
    return replace(side, kl=compared.results(TRAINED)[TRAINED].kl)


def exported_side(transcoders: Transcoders, batches: Batches, kl: float | None) -> Side:
    """Of the files, as a reader computes with them."""

    def found(x_BSD: Tensor) -> tuple[Tensor, list[int]]:
        y_BSD, counts = reconstruct(transcoders, x_BSD)
        return y_BSD, [int(count.sum()) for count in counts]

    return replace(_side(found, batches, transcoders.device), kl=kl)


def _side(reconstructed: Callable[[Tensor], tuple[Tensor, list[int]]], batches: Batches, device: torch.device) -> Side:
    """Sums in float64. Layers whose outputs do not vary are left out."""
    spread, active = Spread(), 0
    errors_S: Tensor | float = 0.0
    for x_BSD, y_BSD in batches:
        error_BSD, counts = reconstructed(x_BSD.to(device))
        error_BSD -= y_BSD.to(device)
        errors_S = errors_S + torch.stack([in_float64(error_BD).square().sum() for error_BD in error_BSD.unbind(1)])
        spread.add(y_BSD.to(device))
        active += sum(counts)
    nmse_S = torch.as_tensor(errors_S) / spread.squares_S
    return Side(float(nmse_S[spread.squares_S > 0].mean()), active / spread.n)
