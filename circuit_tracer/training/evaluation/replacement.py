"""The model with all its MLPs replaced, no error nodes, attention and norms live (README.md §2).

Letters: B sequences, P positions, N = B * P tokens, n predictions, L layers, D width, V vocabulary.
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
from circuit_tracer.training.evaluation.passes import StandIn, run
from circuit_tracer.training.evaluation.reconstruction import in_float64
from circuit_tracer.training.evaluation.results import ModelItself, Replacement
from circuit_tracer.training.evaluation.sequences import LEFT_OUT, Sequences
from circuit_tracer.transcoders.base import Transcoders
from circuit_tracer.transcoders.writes import add_writes_, constant_writes

FILTER_PROBABILITY = 0.8  # README.md §2
LOGIT_BYTES = 64 * 2**20  # logits of one kind in hand


class Reconstructions:
    """The dictionary's reconstruction stands in for the MLP outputs, from the inputs of the replaced pass itself.

    MLPs of layers without transcoders run as they are.
    """

    def __init__(self, transcoders: Transcoders) -> None:
        self.transcoders = transcoders
        self._writes_NLD: Tensor = torch.empty(0)

    def read(self, layer: int, x_ND: Tensor) -> None:
        """Encode a layer's inputs; what its features write waits for the layers ahead."""
        if layer == 0:
            self._writes_NLD = x_ND.new_zeros(len(x_ND), self.transcoders.n_layers, x_ND.shape[1])
        selected = self.transcoders.encode_positions(layer, x_ND)
        add_writes_(self._writes_NLD, self.transcoders, layer, selected)
        self._writes_NLD[:, layer] += constant_writes(self.transcoders, layer, x_ND)

    def write(self, layer: int, y_ND: Tensor) -> Tensor:
        """What was collected for this layer."""
        return self._writes_NLD[:, layer] if layer in self.transcoders.layers else y_ND


@dataclass(frozen=True)
class Constant:
    """The same vector at every token, in ``layers`` (None: in all): ablation."""

    mean_LD: Tensor
    layers: tuple[int, ...] | None = None

    def read(self, layer: int, x_ND: Tensor) -> None:
        """Nothing to learn from it."""

    def write(self, layer: int, y_ND: Tensor) -> Tensor:
        """The layer's vector, N times."""
        if self.layers is not None and layer not in self.layers:
            return y_ND
        return self.mean_LD[layer].to(y_ND).expand_as(y_ND)


@dataclass(frozen=True)
class FromPositionOne:
    """A stand-in that leaves the first position of every sequence to the model, as tracing does."""

    inner: StandIn
    length: int  # P

    def read(self, layer: int, x_ND: Tensor) -> None:
        """As the inner one."""
        self.inner.read(layer, x_ND)

    def write(self, layer: int, y_ND: Tensor) -> Tensor:
        """As the inner one, but at the first position what the model wrote."""
        own_N1 = (torch.arange(len(y_ND), device=y_ND.device) % self.length < LEFT_OUT)[:, None]
        return torch.where(own_N1, y_ND, self.inner.write(layer, y_ND))


@dataclass
class _Sums:
    """Over predictions, float64."""

    cross_entropy: float = 0.0
    kl: float = 0.0
    same: int = 0
    same_filtered: int = 0


@dataclass
class _Clean:
    predictions: int = 0
    filtered: int = 0
    right: int = 0
    cross_entropy: float = 0.0


@dataclass
class Comparison:
    """Replaced passes beside the model's own, over held-out sequences."""

    parts: ModelParts
    stand_ins: Mapping[str, tuple[Points, StandIn]]
    clean: _Clean = field(default_factory=_Clean, init=False)
    sums: dict[str, _Sums] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.sums = {name: _Sums() for name in self.stand_ins}

    def add(self, ids_BP: Tensor, counted_BP: Tensor) -> None:
        """Take sequences of one length; predictions at the tokens counted, of the token that follows in the sequence."""
        length = ids_BP.shape[1]
        (rows,) = (counted_BP & (torch.arange(length) < length - 1)).flatten().nonzero(as_tuple=True)
        if not len(rows):
            return
        following = ids_BP.flatten()[rows + 1].to(self.parts.device)
        rows = rows.to(self.parts.device)
        own_nD = run(self.parts, ids_BP)[rows]
        finals = {name: final_outputs(self.parts, ids_BP, *pair)[rows] for name, pair in self.stand_ins.items()}
        step = max(1, LOGIT_BYTES // (self.parts.config.d_vocab * own_nD.element_size()))
        for start in range(0, len(rows), step):
            chunk = slice(start, start + step)
            self._compare(own_nD[chunk], following[chunk], {name: final[chunk] for name, final in finals.items()})

    def model(self) -> ModelItself:
        """The model's own numbers."""
        clean = self.clean
        return ModelItself(
            clean.predictions,
            clean.filtered,
            clean.cross_entropy / clean.predictions,
            clean.right / clean.predictions,
        )

    def results(self, zero: str) -> dict[str, Replacement]:
        """All numbers; ``zero`` names the stand-in that cross-entropy is recovered from."""
        clean, n = self.clean, self.clean.predictions
        lost = self.sums[zero].cross_entropy - clean.cross_entropy
        return {
            name: Replacement(
                cross_entropy=one.cross_entropy / n,
                kl=one.kl / n,
                top1=one.same / n,
                top1_filtered=one.same_filtered / clean.filtered if clean.filtered else math.nan,
                ce_recovered=(self.sums[zero].cross_entropy - one.cross_entropy) / lost if lost else math.nan,
            )
            for name, one in self.sums.items()
        }

    def _compare(self, own_nD: Tensor, following: Tensor, finals: Mapping[str, Tensor]) -> None:
        own_nV = self._log_probabilities(own_nD, "the model's own logits")
        best = own_nV.max(-1)
        right = best.indices == following
        filtered = right & (best.values < math.log(FILTER_PROBABILITY))
        self.clean.predictions += len(following)
        self.clean.filtered += int(filtered.sum())
        self.clean.right += int(right.sum())
        self.clean.cross_entropy += _cross_entropy(own_nV, following)
        for name, final_nD in finals.items():
            other_nV = self._log_probabilities(final_nD, f"the logits with MLPs replaced ({name})")
            same = other_nV.argmax(-1) == best.indices
            sums = self.sums[name]
            sums.cross_entropy += _cross_entropy(other_nV, following)
            sums.kl += float(in_float64((own_nV.exp() * (own_nV - other_nV)).sum(-1)).sum())
            sums.same += int(same.sum())
            sums.same_filtered += int((same & filtered).sum())

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
    if not comparison.clean.predictions:
        raise InputError(
            "the held-out sequences hold no prediction: a token that is not at position 0, not special and not the last one "
            "of its sequence. Give longer sequences, or replacement_tokens 0."
        )
    return comparison


def _cross_entropy(log_nV: Tensor, following: Tensor) -> float:
    return -float(in_float64(log_nV.gather(1, following[:, None])).sum())
