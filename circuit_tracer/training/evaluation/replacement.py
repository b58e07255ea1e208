"""The model with something in place of its MLP outputs or its stream, attention and norms live, against itself (README.md §2).

Letters: B sequences, P positions, N = B * P tokens, n predictions, U units, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from circuit_tracer.errors import InputError, NumericalError
from circuit_tracer.models.capture import logits_at
from circuit_tracer.models.model_pass import Points
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.training.evaluation.intervals import MOST_UNITS, by_unit, estimates, unit_rows
from circuit_tracer.training.evaluation.passes import StandIn, run
from circuit_tracer.training.evaluation.results import REPLACEMENT_NUMBERS, ModelItself, Replacement
from circuit_tracer.training.evaluation.sequences import Sequences
from circuit_tracer.training.evaluation.stand_ins import FromPositionOne

ZERO, MEAN = "zero", "mean"  # names of the two ablations
FILTER_PROBABILITY = 0.8  # README.md §2
LOGIT_BYTES = 64 * 2**20  # logits of one kind in hand

# Columns of sums over the predictions of each unit: of the model itself, and of one stand-in.
_CLEAN = ("predictions", "filtered", "right", "cross_entropy")
_REPLACED = ("cross_entropy", "kl", "same", "same_filtered")


@dataclass
class Comparison:
    """Replaced passes beside the model's own, over held-out sequences. Sums (U, 4) are float64, columns as above."""

    parts: ModelParts
    stand_ins: Mapping[str, tuple[Points, StandIn]]
    clean_U4: Tensor = field(init=False)
    sums: dict[str, Tensor] = field(init=False)
    sequences: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.clean_U4 = torch.zeros(MOST_UNITS, len(_CLEAN), dtype=torch.float64)
        self.sums = {name: torch.zeros_like(self.clean_U4) for name in self.stand_ins}

    @property
    def predictions(self) -> int:
        """How many were made."""
        return int(self.clean_U4[:, 0].sum())

    def add(self, ids_BP: Tensor, counted_BP: Tensor) -> None:
        """Take sequences of one length; predictions at the tokens counted, of the token that follows in the sequence."""
        length, first = ids_BP.shape[1], self.sequences
        self.sequences += len(ids_BP)
        (rows,) = (counted_BP & (torch.arange(length) < length - 1)).flatten().nonzero(as_tuple=True)
        if not len(rows):
            return
        following = ids_BP.flatten()[rows + 1].to(self.parts.device)
        unit_n = unit_rows(ids_BP, first)[rows]
        rows = rows.to(self.parts.device)
        own_nD = run(self.parts, ids_BP)[rows]
        finals = {name: final_outputs(self.parts, ids_BP, *pair)[rows] for name, pair in self.stand_ins.items()}
        step = max(1, LOGIT_BYTES // (self.parts.config.d_vocab * own_nD.element_size()))
        for start in range(0, len(rows), step):
            chunk = slice(start, start + step)
            self._compare(
                own_nD[chunk], following[chunk], unit_n[chunk], {name: final[chunk] for name, final in finals.items()}
            )

    def model(self) -> ModelItself:
        """The model's own numbers."""
        predictions, filtered, right, cross_entropy = self.clean_U4.sum(0).tolist()
        return ModelItself(int(predictions), int(filtered), cross_entropy / predictions, right / predictions)

    def results(self, zero: str = ZERO, mean: str = MEAN) -> dict[str, Replacement]:
        """All numbers; ``zero`` and ``mean`` name the stand-ins that cross-entropy is recovered from: not defined without."""
        unknown = torch.full_like(self.clean_U4, math.nan)
        lost = [self.sums.get(name, unknown)[:, :1] for name in (zero, mean)]
        found = {}
        for name, sums_U4 in self.sums.items():
            numbers = estimates(torch.cat([self.clean_U4, *lost, sums_U4], dim=1), _numbers)
            named = dict(zip(REPLACEMENT_NUMBERS, numbers, strict=True))
            found[name] = Replacement(**{key: one.value for key, one in named.items()}, estimates=named)
        return found

    def _compare(self, own_nD: Tensor, following: Tensor, unit_n: Tensor, finals: Mapping[str, Tensor]) -> None:
        own_nV = self._log_probabilities(own_nD, "the model's own logits")
        best = own_nV.max(-1)
        right = best.indices == following
        filtered = right & (best.values < math.log(FILTER_PROBABILITY))
        clean = (torch.ones_like(best.values), filtered, right, _cross_entropy(own_nV, following))
        self.clean_U4 += _table(clean, unit_n)
        for name, final_nD in finals.items():
            other_nV = self._log_probabilities(final_nD, f"the logits of the replaced pass ({name})")
            same = other_nV.argmax(-1) == best.indices
            kl_n = (own_nV.exp() * (own_nV - other_nV)).sum(-1)
            self.sums[name] += _table((_cross_entropy(other_nV, following), kl_n, same, same & filtered), unit_n)

    def _log_probabilities(self, final_nD: Tensor, what: str) -> Tensor:
        logits_nV = logits_at(self.parts, final_nD)
        if not logits_nV.isfinite().all():
            raise NumericalError(f"{what} are not finite on the held-out tokens. Check weights and dtype.")
        return logits_nV.log_softmax(-1)


def final_outputs(parts: ModelParts, ids_BP: Tensor, points: Points, stand_in: StandIn) -> Tensor:
    """The final norm's outputs (N, D) of a pass over ids (B, P) with a stand-in from position 1 on."""
    return run(parts, ids_BP, points, FromPositionOne(stand_in, ids_BP.shape[1]))


def compare(
    parts: ModelParts,
    stand_ins: Mapping[str, tuple[Points, StandIn]],
    sequences: Sequences,
    batch_tokens: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Comparison:
    """Run all stand-ins over all sequences. Raises InputError when the sequences hold no prediction to make."""
    comparison, done = Comparison(parts, stand_ins), 0
    for ids_BP in sequences.batches(batch_tokens):
        comparison.add(ids_BP, sequences.counted(ids_BP))
        done += ids_BP.numel()
        progress(done, sequences.n_tokens)
    if not comparison.predictions:
        raise InputError(
            "the held-out sequences hold no prediction: a token that is not at position 0, not special and not the last one "
            "of its sequence. Give longer sequences, or replacement_tokens 0."
        )
    return comparison


def _numbers(sums: Tensor) -> Tensor:
    """(..., 10) sums: the model's, cross-entropy without what is ablated, the stand-in's -> (..., 6) `REPLACEMENT_NUMBERS`."""
    predictions, filtered, _, clean, zero, mean, cross_entropy, kl, same, same_filtered = sums.unbind(-1)
    recovered = [(lost - cross_entropy) / (lost - clean) for lost in (zero, mean)]
    numbers = [cross_entropy / predictions, kl / predictions, same / predictions, same_filtered / filtered, *recovered]
    return torch.stack(numbers, dim=-1).masked_fill(~torch.stack(numbers, dim=-1).isfinite(), math.nan)


def _table(columns: tuple[Tensor, ...], unit_n: Tensor) -> Tensor:
    return torch.stack([by_unit(column, unit_n) for column in columns], dim=1)


def _cross_entropy(log_nV: Tensor, following: Tensor) -> Tensor:
    return -log_nV.gather(1, following[:, None])[:, 0]
