"""One training step: loss and every gradient, touching active features only (training/README.md §§5, 6, 10).

Gradients go to a sink as soon as they are known, decoder rows in blocks, so that no gradient of all weights ever exists.

Letters: S source layers, T layers a source writes to, B tokens, f features of a layer owned by this rank, D width, n entries.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from circuit_tracer.kernels.decode import gradients, value_gradients, value_sums, weight_gradients
from circuit_tracer.kernels.device import on_gpu
from circuit_tracer.kernels.sparse_activations import SparseActivations
from circuit_tracer.training.config.schema import SparsitySection
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.sparsity import rule_of
from circuit_tracer.training.sparsity.base import Now, Rule
from circuit_tracer.training.sparsity.penalty import PenaltyRule
from circuit_tracer.training.sparsity.selection import Selection
from circuit_tracer.training.step import dead_features, jacobian
from circuit_tracer.training.step.dead_features import Dead
from circuit_tracer.training.step.dictionary import Dictionary
from circuit_tracer.training.step.gates import Gates, open_gates
from circuit_tracer.training.step.outputs import predict_prefixes
from circuit_tracer.training.step.prefixes import Prefixes
from circuit_tracer.training.step.questions import Questions
from circuit_tracer.training.step.scratch import Scratch
from circuit_tracer.training.step.spikes import StepRefused

# Bytes of a source's decoder gradient that exist at a time on a CPU (on a GPU: all of them) ...
GRADIENT_BYTES = 256 * 2**20
# ... and of the rows handed over at a time: few enough to be in a CPU's last cache when their norms are taken, and enough that
# what it takes to begin an update is nothing beside it.
BLOCK_BYTES = 16 * 2**20


class Sink(Protocol):
    """Takes gradients in float32 (float64 for a float64 dictionary); may change the weights they belong to at once.

    Every parameter gets exactly one gradient a step, decoders one for each block of rows. Their memory is used again.
    """

    def gradient(self, name: str, grad: Tensor) -> None:
        """Of the parameter that `Dictionary.tensors` calls ``name``."""

    def decoder_gradient(self, source: int, rows: slice, grad_nC: Tensor) -> None:
        """Of ``W_dec[source][rows]``."""


@dataclass(frozen=True)
class Batch:
    """Activations in the space of training (§2)."""

    x_SBD: Sequence[Tensor]  # (B, D) each
    y_BSD: Tensor
    direction_SBD: Sequence[Tensor] | None = None  # v' of Jacobian matching (§5)
    derivative_SBD: Sequence[Tensor] | None = None  # u'


@dataclass(frozen=True)
class Moment:
    """What the schedules and the past say about this step."""

    step: int
    active: float  # k
    penalty: float  # lambda
    dead: Sequence[Tensor]  # (f,) bool a source
    running_cut: float | None = None
    derivative_scale_S: Tensor | None = None  # U_s
    highest_error: float = math.inf  # mean normalised error above which the step is refused
    part: int = 0  # of ``parts`` of the batch that are computed one after the other
    parts: int = 1


@dataclass
class StepOutcome:
    """What a step measured. Terms of the loss are over all ranks."""

    terms: dict[str, float]
    error_S: list[float]  # squared error of each layer over D, the normalised error (§5)
    fired: list[Tensor]  # (f,) int64 a source: entries of each feature owned here, among the tokens of all ranks
    cut: float | None

    @property
    def loss(self) -> float:
        """All terms together."""
        return sum(self.terms.values())


@dataclass
class _Parts:
    """Gradients of one source that collect from several terms before they are complete."""

    encoder_fD: Tensor
    bias_f: Tensor
    # (values, gradients of outputs): each adds sum_b value * gradient to decoder rows; the slice says which columns
    decoder: list[tuple[SparseActivations, Tensor, slice]] = field(default_factory=list)
    whole_fC: Tensor | None = (
        None  # the sum of the first of these for all rows, where it was computed with the values' gradient
    )
    dead: tuple[Tensor, Tensor] | None = None  # ids, and what is added to their decoder rows (n, C)
    scale_f: Tensor | None = None  # times the decoder row itself: the penalty's share


@dataclass(frozen=True)
class _Penalty:
    """The penalty of one source: loss (0-d), its gradient by what it counts (n,), that of n_f as a scale of the row."""

    loss: Tensor
    da_n: Tensor
    scale_f: Tensor


def train_step(
    dictionary: Dictionary,
    batch: Batch,
    settings: SparsitySection,
    moment: Moment,
    sink: Sink,
    ranks: FeatureRanks,
    scratch: Scratch,
) -> StepOutcome:
    """Loss of §5 over the batch; hands every gradient of §6 to ``sink``. Raises StepRefused, while nothing has changed yet, if
    the loss is not finite or the error above ``moment.highest_error``.

    ``scratch`` is that of the step before. A GPU is waited for twice: for how many entries there are, and for the loss, before
    anything changes.
    """
    questions = Questions()
    now = Now(moment.active, moment.running_cut, moment.step, scratch.rooms, questions, moment.part, moment.parts)
    rule = rule_of(settings)
    dead = None
    if settings.aux_active or settings.pre_activation_weight:
        dead = Dead(moment.dead, ranks, questions)
    selection = rule.select(dictionary, batch.x_SBD, now, ranks)
    prefixes = Prefixes.at(settings, dictionary.n_features, moment.step)
    error_BMSD = predict_prefixes(dictionary, batch.x_SBD, selection.all_activations(), prefixes, ranks, scratch)
    error_BMSD -= batch.y_BSD[:, None]
    step = _Step(dictionary, batch, settings, rule, moment, sink, ranks, selection, prefixes, dead, questions, scratch)
    error_S, terms = step.losses(error_BMSD)
    _require_finite(error_S)
    _require_finite_terms(terms)
    _require_usual(terms["reconstruction"], moment.highest_error)
    grad_BMSD = error_BMSD.mul_(2 / error_BMSD.numel())
    prefixes.collect_(grad_BMSD)
    sink.gradient("b_dec", grad_BMSD[:, 0].sum(0))
    step.skip_gradient(grad_BMSD[:, 0])
    for source in range(dictionary.n_layers):
        step.source(source, grad_BMSD)
    for name, parts in step.shared.items():
        sink.gradient(name, torch.stack(parts))
    return StepOutcome(terms, error_S, step.fired(), selection.cut)


@dataclass
class _Step:
    """What the parts of one step share."""

    dictionary: Dictionary
    batch: Batch
    settings: SparsitySection
    rule: Rule
    moment: Moment
    sink: Sink
    ranks: FeatureRanks
    selection: Selection
    prefixes: Prefixes
    dead: Dead | None
    questions: Questions
    scratch: Scratch
    # made by `losses`, one a source
    aux: dead_features.Auxiliary | None = None
    gates: Gates | None = None
    derivative: jacobian.Matched | None = None
    penalties: list[_Penalty] = field(default_factory=list)
    lifts: list[dead_features.Lift] = field(default_factory=list)
    # made by `source`, a part each: gradients of a rule's parameters that all ranks have alike
    shared: dict[str, list[Tensor]] = field(default_factory=dict)

    def losses(self, error_BMSD: Tensor) -> tuple[list[float], dict[str, float]]:
        """Squared error of each layer over D, and all terms of the loss, over all ranks; what their gradients need is kept."""
        sources, error_BSD = range(self.dictionary.n_layers), error_BMSD[:, -1]
        self.aux, self.derivative = self._auxiliary(error_BSD), self._match()
        if self.moment.penalty:
            self.penalties = [self._penalty(source) for source in sources]
        if self.settings.pre_activation_weight and self.dead is not None and self.dead.total:
            self.lifts = [self._lift(source) for source in sources]
        if self.rule.gated:
            x_SBD, y_BSD = self.batch.x_SBD, self.batch.y_BSD
            self.gates = open_gates(self.dictionary, x_SBD, y_BSD, self.selection, self.ranks, self.scratch)
        asked = {
            "aux": None if self.aux is None else self.aux.loss,
            "gate": None if self.gates is None else self.gates.loss,
            "balance": self._balance(),
            "jacobian": None if self.derivative is None else self.derivative.loss,
            "sparsity": self._over_ranks([each.loss for each in self.penalties]),
            "pre_activation": self._over_ranks([each.loss for each in self.lifts]),
        }
        # the norm makes no array of squares
        norm_MS = torch.linalg.vector_norm(error_BMSD, dim=(0, 3))
        if self.ranks.replicas.world > 1:
            norm_MS = self.ranks.mean_(norm_MS.double().square()).sqrt()
        norms = self.questions.ask("error norm", norm_MS)
        answers = {
            name: self.questions.ask(name, self.ranks.mean_(loss)) for name, loss in asked.items() if loss is not None
        }
        full = self.questions.ask("full", self.aux.full) if self.aux is not None and self.aux.full is not None else None
        if full is not None and full.number:
            self.aux = self._auxiliary(error_BSD, all_rooms=True)
            assert self.aux is not None
            answers["aux"] = self.questions.ask("aux", self.ranks.mean_(self.aux.loss))
        errors = [norm**2 / error_BSD[:, 0].numel() for norm in norms.numbers]
        terms = {"reconstruction": sum(errors) / len(errors)}
        return errors[-len(sources) :], terms | {name: answer.number for name, answer in answers.items()}

    def _over_ranks(self, losses: list[Tensor]) -> Tensor | None:
        """The sum of terms that each rank knows only of its own features."""
        return self.ranks.all_reduce_(torch.stack(losses).double().sum()) if losses else None

    def _auxiliary(self, error_BSD: Tensor, all_rooms: bool = False) -> dead_features.Auxiliary | None:
        if not self.settings.aux_active:
            return None
        assert self.dead is not None
        return dead_features.auxiliary(
            self.dictionary, self.batch.x_SBD, error_BSD, self.settings, self.dead, self.ranks, all_rooms
        )

    def _balance(self) -> Tensor | None:
        if self.selection.routes is None:
            return None
        weight = self.settings.balance_weight / self.dictionary.n_layers
        return torch.stack([one.balance(weight)[0] for one in self.selection.routes]).sum()

    def _match(self) -> jacobian.Matched | None:
        """Jacobian matching: values c of the active entries and the gradient of their outputs."""
        if not self.settings.jacobian_weight:
            return None
        batch, scale_S = self.batch, self.moment.derivative_scale_S
        assert batch.direction_SBD is not None
        assert batch.derivative_SBD is not None
        assert scale_S is not None
        return jacobian.match(
            self.dictionary,
            self.selection,
            batch.direction_SBD,
            batch.derivative_SBD,
            scale_S,
            self.settings.jacobian_weight,
            self.ranks,
        )

    def _penalty(self, source: int) -> _Penalty:
        """lambda / (B S) sum of what each costs by n_f a, or by n_f and its gate."""
        assert isinstance(self.rule, PenaltyRule)
        counted = self.rule.penalised(self.selection, source)
        norm_f = self.dictionary.norms[source].to(counted.value.dtype)
        weight = self.moment.penalty / (counted.n_rows * self.dictionary.n_layers)
        norm_n = norm_f[counted.feature]
        cost_n, slope_n = self.rule.penalty(norm_n * counted.value)
        slope_n = weight * slope_n
        by_norm_f = value_sums(counted.with_value(slope_n * counted.value))
        return _Penalty(weight * cost_n.sum(), slope_n * norm_n, torch.where(norm_f > 0, by_norm_f / norm_f, 0))

    def _lift(self, source: int) -> dead_features.Lift:
        assert self.dead is not None
        x_BD, cut = self.batch.x_SBD[source], self.moment.running_cut
        return dead_features.lift(self.dictionary, source, x_BD, self.settings, self.dead, cut)

    def fired(self) -> list[Tensor]:
        """(f,) int64 a source: entries of each feature, without near misses."""
        entries, active = self.selection.entries, self.selection.active
        if self.selection.plain:
            counts = [one.columns.feature_ptr.diff() for one in entries]
        else:
            masks = (one.with_value(mask.float()) for one, mask in zip(entries, active, strict=True))
            counts = [value_sums(one).long() for one in masks]
        return [self.ranks.replicas.all_reduce_(counts_f) for counts_f in counts]

    def skip_gradient(self, grad_BSD: Tensor) -> None:
        """dL/dW_skip[t] = sum_b G[b, t] x[b, t] (and of the matched derivative)."""
        if self.dictionary.W_skip is None:
            return
        layers = []
        for target, x_BD in enumerate(self.batch.x_SBD):
            grad_DD = grad_BSD[:, target].T @ x_BD
            if self.derivative is not None:
                grad_DD += self.derivative.grad_SBD[target].T @ self.derivative.direction_SBD[target]
            layers.append(grad_DD)
        self.sink.gradient("W_skip", torch.stack(layers))

    def source(self, source: int, grad_BMSD: Tensor) -> None:
        """All gradients of one source layer, its decoder last: until then its rows must stay as they are."""
        dictionary = self.dictionary
        columns = dictionary.columns(source)
        parts = self._reconstruction(source, grad_BMSD.view(-1, dictionary.b_dec.numel())[:, columns])
        if self.aux is not None:
            self._through_dead(source, self.aux, columns, parts)
        if self.derivative is not None:
            self.derivative.add(dictionary, source, parts.encoder_fD, parts.decoder)
        if self.lifts:
            lifted = self.lifts[source]
            parts.encoder_fD.index_add_(0, lifted.ids, lifted.encoder_nD)
            parts.bias_f.index_add_(0, lifted.ids, lifted.bias_n)
        self.sink.gradient(f"W_enc.{source}", parts.encoder_fD)
        self.sink.gradient(f"b_enc.{source}", parts.bias_f)
        self._hand_over_decoder(source, parts)

    def _reconstruction(self, source: int, grad_RC: Tensor) -> _Parts:
        """What the main loss, the penalty and a rule's own losses say about one source. grad_RC: a row a token and prefix."""
        entries, x_BD, decoder = self.selection.entries[source], self.batch.x_SBD[source], self.dictionary.W_dec[source]
        activations, whole_fC = self.selection.activations(source), None
        written = self.prefixes.spread(activations, self.dictionary.owned.start)
        if on_gpu(grad_RC):
            whole_fC = self.scratch.take("decoder", grad_RC, *decoder.shape)
            da_n, _ = gradients(grad_RC, written, decoder, whole_fC)
        else:
            da_n = value_gradients(grad_RC, written, decoder)
        direct_n = self._direct(source)
        through = self.rule.through(self.dictionary, source, self.selection, x_BD, da_n, direct_n, self.ranks)
        for name, grad_f in through.own.items():
            self.sink.gradient(f"{name}.{source}", grad_f)
        for name, grad in through.shared.items():
            self.shared.setdefault(name, []).append(grad)
        encoder_fD = self.scratch.take("encoder", x_BD, len(decoder), x_BD.shape[1])
        weight_gradients(x_BD, entries.with_value(through.pre_n), 0, entries.n_features, encoder_fD)
        return _Parts(
            encoder_fD,
            value_sums(entries.with_value(through.pre_n if through.bias_n is None else through.bias_n)),
            [(written, grad_RC, slice(None))],
            whole_fC,
            scale_f=self.penalties[source].scale_f if self.penalties else None,
        )

    def _direct(self, source: int) -> Tensor | None:
        """What reaches entries of one source not by what they write."""
        parts = [self.penalties[source].da_n] if self.penalties else []
        if self.gates is not None:
            parts.append(self.gates.gradient(self.dictionary, source, self.selection))
        return sum(parts[1:], start=parts[0]) if parts else None

    def _through_dead(self, source: int, aux: dead_features.Auxiliary, columns: slice, parts: _Parts) -> None:
        """AuxK: entries with gradient 1 from pre-activation to activation, and the gradient of what they write."""
        ids, entries, x_BD = aux.ids[source], aux.entries[source], self.batch.x_SBD[source]
        da_n, decoder_nC = gradients(aux.grad_BC[:, columns], entries, self.dictionary.W_dec[source][ids])
        dpre = entries.with_value(da_n)
        parts.encoder_fD.index_add_(0, ids, weight_gradients(x_BD, dpre, 0, len(ids)))
        parts.bias_f.index_add_(0, ids, value_sums(dpre))
        parts.dead = ids, decoder_nC

    def _hand_over_decoder(self, source: int, parts: _Parts) -> None:
        decoder = self.dictionary.W_dec[source]
        in_hand, handed_over = GRADIENT_BYTES, BLOCK_BYTES
        if parts.whole_fC is not None:  # a GPU has no use for blocks
            in_hand = handed_over = 4 * decoder.numel()
        for rows in _row_blocks(slice(0, decoder.shape[0]), decoder.shape[1], in_hand):
            grad_nC = self._decoder_gradient(rows, decoder.shape[1], parts)
            for block in _row_blocks(rows, decoder.shape[1], handed_over):
                part_nC = grad_nC[block.start - rows.start : block.stop - rows.start]
                if parts.scale_f is not None:
                    part_nC.addcmul_(parts.scale_f[block, None], decoder[block].to(part_nC.dtype))
                self.sink.decoder_gradient(source, block, part_nC)

    def _decoder_gradient(self, rows: slice, width: int, parts: _Parts) -> Tensor:
        """What all terms but the penalty say about some decoder rows of a source."""
        (entries, grad_BC, _), *others = parts.decoder
        grad_nC = parts.whole_fC
        if grad_nC is None:
            grad_nC = self.scratch.take("decoder", grad_BC, rows.stop - rows.start, width)
            weight_gradients(grad_BC, entries, rows.start, rows.stop, grad_nC)
        for entries, grad_BC, columns in others:
            grad_nC[:, columns] += weight_gradients(grad_BC, entries, rows.start, rows.stop)
        if parts.dead is not None:
            ids, dead_nC = parts.dead
            if parts.whole_fC is None:
                first, last = torch.searchsorted(ids, torch.tensor([rows.start, rows.stop], device=ids.device)).tolist()
                ids, dead_nC = ids[first:last] - rows.start, dead_nC[first:last]
            grad_nC.index_add_(0, ids, dead_nC)
        return grad_nC


def _row_blocks(rows: slice, width: int, n_bytes: int) -> Iterator[slice]:
    """Parts of ``rows`` whose gradient, ``width`` numbers a row, takes about ``n_bytes``."""
    step = max(1, n_bytes // (width * 4))
    for start in range(rows.start, rows.stop, step):
        yield slice(start, min(start + step, rows.stop))


def _require_finite(error_S: list[float]) -> None:
    for layer, error in enumerate(error_S):
        if not error < float("inf"):
            raise StepRefused(
                f"the reconstruction error of source layer {layer} is {error}. Nothing was changed by this step; lower "
                "optimizer.learning_rate, or look for broken activations in the data."
            )


def _require_usual(error: float, highest: float) -> None:
    if error > highest:
        raise StepRefused(f"the error of {error:.3g} is above {highest:.3g}. Nothing was changed by this step.")


def _require_finite_terms(terms: dict[str, float]) -> None:
    for name, value in terms.items():
        if not value < float("inf"):
            raise StepRefused(
                f"the {name} loss is {value}. Nothing was changed by this step; lower its weight or "
                "optimizer.learning_rate, or look for broken activations in the data."
            )
