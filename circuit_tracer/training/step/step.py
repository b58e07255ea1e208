"""One training step: loss and every gradient, touching active features only (training/README.md §§5, 6, 10).

Gradients go to a sink as soon as they are known, decoder rows in blocks, so that no gradient of all weights ever exists.

Letters: S source layers, T layers a source writes to, B tokens, f features of a layer owned by this rank, D width, n entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from circuit_tracer.errors import NumericalError
from circuit_tracer.kernels.decode import decode_, value_gradients, weight_gradients
from circuit_tracer.kernels.sparse_activations import SparseActivations
from circuit_tracer.training.config.schema import SparsitySection
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.sparsity import rule_of
from circuit_tracer.training.sparsity.base import Now, Rule
from circuit_tracer.training.sparsity.selection import Selection
from circuit_tracer.training.step import dead_features, jacobian
from circuit_tracer.training.step.dictionary import Dictionary
from circuit_tracer.training.step.scratch import Scratch

# Bytes of a source's decoder gradient that exist at a time ...
GRADIENT_BYTES = 256 * 2**20
# ... and of the rows handed over at a time: they stay in a CPU's cache from the update to their norms.
BLOCK_BYTES = 4 * 2**20


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
    scale_f: Tensor | None = None  # times the decoder row itself: the penalty's share


def train_step(
    dictionary: Dictionary,
    batch: Batch,
    settings: SparsitySection,
    moment: Moment,
    sink: Sink,
    ranks: FeatureRanks,
    scratch: Scratch,
) -> StepOutcome:
    """Loss of §5 over the batch; hands every gradient of §6 to ``sink``. Raises NumericalError if the loss is not finite.

    ``scratch`` is that of the step before.
    """
    rule, now = rule_of(settings), Now(moment.active, moment.running_cut, moment.step)
    selection = rule.select(dictionary, batch.x_SBD, now, ranks)
    error_BSD = predict(dictionary, batch.x_SBD, selection, ranks, scratch).sub_(batch.y_BSD)
    # the norm makes no array of squares
    error_S = [norm**2 / error_BSD[:, 0].numel() for norm in torch.linalg.vector_norm(error_BSD, dim=(0, 2)).tolist()]
    error_S = ranks.means(error_S)
    _require_finite(error_S)
    terms = {"reconstruction": sum(error_S) / len(error_S)}
    step = _Step(dictionary, batch, settings, rule, moment, sink, ranks, selection, terms, scratch)
    auxiliary = step.auxiliary(error_BSD)
    derivative = step.derivative()
    terms.update(zip(terms, ranks.means(list(terms.values())), strict=True))
    _require_finite_terms(terms)  # while nothing has changed yet
    grad_BSD = error_BSD.mul_(2 / error_BSD.numel())
    sink.gradient("b_dec", grad_BSD.sum(0))
    step.skip_gradient(grad_BSD, derivative)
    for source in range(dictionary.n_layers):
        step.source(source, grad_BSD, auxiliary, derivative)
    step.sum_over_ranks()
    fired = [
        torch.bincount(entries.feature[active], minlength=len(norms))
        for entries, active, norms in zip(selection.entries, selection.active, dictionary.norms, strict=True)
    ]
    return StepOutcome(terms, error_S, [ranks.replicas.all_reduce_(counts_f) for counts_f in fired], selection.cut)


def predict(
    dictionary: Dictionary, x_SBD: Sequence[Tensor], selection: Selection, ranks: FeatureRanks, scratch: Scratch
) -> Tensor:
    """Outputs (B, S, D) in the space of training: decoders of all ranks, biases and skip (§3)."""
    n_rows, n_layers, width = x_SBD[0].shape[0], dictionary.n_layers, dictionary.d_model
    flat_BC = scratch.take("outputs", x_SBD[0], n_rows, n_layers * width).zero_()
    for source in range(n_layers):
        decode_(flat_BC[:, dictionary.columns(source)], selection.activations(source), dictionary.W_dec[source])
    out_BSD = ranks.all_reduce_(flat_BC).view(n_rows, n_layers, width)
    out_BSD += dictionary.b_dec
    if dictionary.W_skip is not None:
        for target, x_BD in enumerate(x_SBD):
            out_BSD[:, target] += x_BD @ dictionary.W_skip[target].T
    return out_BSD


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
    terms: dict[str, float]
    scratch: Scratch

    def auxiliary(self, error_BSD: Tensor) -> tuple[list[SparseActivations], Tensor] | None:
        """AuxK: entries of dead features and the gradient of their outputs (B, S * D)."""
        if not self.settings.aux_active:
            return None
        found = dead_features.auxiliary(
            self.dictionary, self.batch.x_SBD, error_BSD, self.settings, self.moment.dead, self.ranks
        )
        if found is None:
            return None
        self.terms["aux"] = found.loss
        return found.entries, found.grad_BC

    def derivative(self) -> jacobian.Matched | None:
        """Jacobian matching: values c of the active entries and the gradient of their outputs."""
        if not self.settings.jacobian_weight:
            return None
        batch, scale_S = self.batch, self.moment.derivative_scale_S
        assert batch.direction_SBD is not None
        assert batch.derivative_SBD is not None
        assert scale_S is not None
        matched = jacobian.match(
            self.dictionary,
            self.selection,
            batch.direction_SBD,
            batch.derivative_SBD,
            scale_S,
            self.settings.jacobian_weight,
            self.ranks,
        )
        self.terms["jacobian"] = matched.loss
        return matched

    def skip_gradient(self, grad_BSD: Tensor, derivative: jacobian.Matched | None) -> None:
        """dL/dW_skip[t] = sum_b G[b, t] x[b, t] (and of the matched derivative)."""
        if self.dictionary.W_skip is None:
            return
        layers = []
        for target, x_BD in enumerate(self.batch.x_SBD):
            grad_DD = grad_BSD[:, target].T @ x_BD
            if derivative is not None:
                grad_DD += derivative.grad_SBD[target].T @ derivative.direction_SBD[target]
            layers.append(grad_DD)
        self.sink.gradient("W_skip", torch.stack(layers))

    def source(
        self,
        source: int,
        grad_BSD: Tensor,
        auxiliary: tuple[list[SparseActivations], Tensor] | None,
        derivative: jacobian.Matched | None,
    ) -> None:
        """All gradients of one source layer, its decoder last: until then its rows must stay as they are."""
        dictionary, x_BD = self.dictionary, self.batch.x_SBD[source]
        columns = dictionary.columns(source)
        n_features = len(dictionary.norms[source])
        parts = _Parts(self.scratch.take("encoder", x_BD, n_features, x_BD.shape[1]), x_BD.new_zeros(n_features))
        self._reconstruction(source, grad_BSD.flatten(1)[:, columns], parts)
        if auxiliary is not None:
            entries, grad_BC = auxiliary
            self._through(source, entries[source], grad_BC[:, columns], parts)
        if derivative is not None:
            derivative.add(dictionary, source, parts.encoder_fD, parts.decoder)
        if self.settings.pre_activation_weight:
            self.terms["pre_activation"] = self.terms.get("pre_activation", 0.0) + dead_features.lift_(
                dictionary, source, x_BD, self.settings, self.moment.dead[source], self.moment.running_cut,
                parts.encoder_fD, parts.bias_f,
            )  # fmt: skip
        self.sink.gradient(f"W_enc.{source}", parts.encoder_fD)
        self.sink.gradient(f"b_enc.{source}", parts.bias_f)
        self._hand_over_decoder(source, parts)

    def _reconstruction(self, source: int, grad_BC: Tensor, parts: _Parts) -> None:
        """What the main loss and the sparsity penalty say about one source. First: it fills the encoder's gradient."""
        entries, active = self.selection.entries[source], self.selection.active[source]
        activations = self.selection.activations(source)
        da_n = value_gradients(grad_BC, entries, self.dictionary.W_dec[source])
        if self.moment.penalty:
            da_n = da_n + self._penalty(source, activations, parts)
        if self.selection.band is not None:
            band_n, threshold_f = self.selection.band[source], self.dictionary.thresholds(source)
            grad_f = self.rule.threshold_gradient(entries, band_n, da_n, threshold_f)
            self.sink.gradient(f"log_threshold.{source}", grad_f)
        parts.decoder.append((activations, grad_BC, slice(None)))
        dpre = entries.with_value(torch.where(active, da_n, 0))
        weight_gradients(self.batch.x_SBD[source], dpre, 0, dpre.n_features, parts.encoder_fD)
        parts.bias_f.index_add_(0, dpre.feature, dpre.value)

    def _penalty(self, source: int, activations: SparseActivations, parts: _Parts) -> Tensor:
        """lambda / (B S) sum tanh(c n_f a): its gradient with respect to a (n,); that of n_f becomes a scale of the row."""
        c, norm_f = self.settings.penalty_scale, self.dictionary.norms[source].to(activations.value.dtype)
        weight = self.moment.penalty / (activations.n_rows * self.dictionary.n_layers)
        norm_n = norm_f[activations.feature]
        tanh_n = torch.tanh(c * norm_n * activations.value)
        self.terms["sparsity"] = self.terms.get("sparsity", 0.0) + weight * float(tanh_n.sum())
        slope_n = weight * c * (1 - tanh_n.square())
        by_norm_f = torch.zeros_like(norm_f).index_add_(0, activations.feature, slope_n * activations.value)
        parts.scale_f = torch.where(norm_f > 0, by_norm_f / norm_f, 0)
        return slope_n * norm_n

    def _through(self, source: int, entries: SparseActivations, grad_BC: Tensor, parts: _Parts) -> None:
        """Entries with gradient 1 from pre-activation to activation, and the gradient of what they write."""
        da_n = value_gradients(grad_BC, entries, self.dictionary.W_dec[source])
        parts.decoder.append((entries, grad_BC, slice(None)))
        parts.encoder_fD += weight_gradients(self.batch.x_SBD[source], entries.with_value(da_n), 0, entries.n_features)
        parts.bias_f.index_add_(0, entries.feature, da_n)

    def _hand_over_decoder(self, source: int, parts: _Parts) -> None:
        decoder = self.dictionary.W_dec[source]
        for rows in _row_blocks(slice(0, decoder.shape[0]), decoder.shape[1], GRADIENT_BYTES):
            grad_nC = self._decoder_gradient(rows, decoder.shape[1], parts)
            for block in _row_blocks(rows, decoder.shape[1], BLOCK_BYTES):
                part_nC = grad_nC[block.start - rows.start : block.stop - rows.start]
                if parts.scale_f is not None:
                    part_nC.addcmul_(parts.scale_f[block, None], decoder[block].to(part_nC.dtype))
                self.sink.decoder_gradient(source, block, part_nC)

    def _decoder_gradient(self, rows: slice, width: int, parts: _Parts) -> Tensor:
        """What all terms but the penalty say about some decoder rows of a source."""
        (entries, grad_BC, _), *others = parts.decoder
        grad_nC = self.scratch.take("decoder", grad_BC, rows.stop - rows.start, width)
        weight_gradients(grad_BC, entries, rows.start, rows.stop, grad_nC)
        for entries, grad_BC, columns in others:
            grad_nC[:, columns] += weight_gradients(grad_BC, entries, rows.start, rows.stop)
        return grad_nC

    def sum_over_ranks(self) -> None:
        """Terms that each rank knows only of its own features."""
        for name in ("sparsity", "pre_activation"):
            if name in self.terms:
                total = torch.tensor([self.terms[name]], dtype=torch.float64, device=self.batch.y_BSD.device)
                self.terms[name] = float(self.ranks.mean_(self.ranks.all_reduce_(total)))


def _row_blocks(rows: slice, width: int, n_bytes: int) -> Iterator[slice]:
    """Parts of ``rows`` whose gradient, ``width`` numbers a row, takes about ``n_bytes``."""
    step = max(1, n_bytes // (width * 4))
    for start in range(rows.start, rows.stop, step):
        yield slice(start, min(start + step, rows.stop))


def _require_finite(error_S: list[float]) -> None:
    for layer, error in enumerate(error_S):
        if not error < float("inf"):
            raise NumericalError(
                f"the reconstruction error of source layer {layer} is {error}. Nothing was changed by this step; lower "
                "optimizer.learning_rate, or look for broken activations in the data."
            )


def _require_finite_terms(terms: dict[str, float]) -> None:
    for name, value in terms.items():
        if not value < float("inf"):
            raise NumericalError(
                f"the {name} loss is {value}. Nothing was changed by this step; lower its weight or "
                "optimizer.learning_rate, or look for broken activations in the data."
            )
