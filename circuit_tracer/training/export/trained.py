"""The dictionary as it was trained, in the model's own space: what the exported files are held against (training/README.md §9).

Every rank computes with the features it owns; what comes out is the sum over ranks, the same on all of them.

Letters: B tokens of a batch, N tokens of a pass, S source layers, C columns of all layers' outputs (S * D), D width,
f features of a layer owned by this rank.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from circuit_tracer.kernels.decode import decode_
from circuit_tracer.kernels.encode import encode
from circuit_tracer.kernels.sparse_activations import SparseActivations
from circuit_tracer.training.config.schema import SparsitySection
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.sparsity import rule_of
from circuit_tracer.training.sparsity.base import Now
from circuit_tracer.training.sparsity.ranking import top_k
from circuit_tracer.training.step.dictionary import Dictionary
from circuit_tracer.training.step.normalisation import Normalisation
from circuit_tracer.training.step.outputs import predict
from circuit_tracer.training.step.scratch import Scratch


@dataclass
class Trained:
    """Weights, rule and space of a run. ``running_cut`` only speeds the first batch up."""

    dictionary: Dictionary
    space: Normalisation
    settings: SparsitySection
    running_cut: float | None
    ranks: FeatureRanks
    cuts: list[float] = field(default_factory=list, init=False)  # of the batches so far, if the rule has one

    def reconstruct(self, x_BSD: Tensor) -> tuple[Tensor, list[int]]:
        """(outputs (B, S, D), active entries of every source): the rule of training over one batch."""
        x_SBD = [self.space.x(source, x_BD) for source, x_BD in enumerate(x_BSD.unbind(1))]
        now = Now(self.settings.active, self.running_cut)
        selection = rule_of(self.settings).select(self.dictionary, x_SBD, now, self.ranks)
        if selection.cut is not None:
            self.cuts.append(selection.cut)
        y_BSD = predict(self.dictionary, x_SBD, selection.all_activations(), self.ranks, Scratch())
        active_S = torch.tensor([int(active.sum()) for active in selection.active], device=y_BSD.device)
        y_BSD.div_(self.space.scale_y_S[:, None]).add_(self.space.mean_y_SD)
        return y_BSD, self.ranks.all_reduce_(active_S).tolist()

    def alone(self, source: int, x_BD: Tensor) -> SparseActivations:
        """Active entries of normalised inputs of one source, each token by itself, as a replaced model needs it.

        A rule that ranks over many tokens has its cut there: the mean of those of the batches before.
        """
        model, rule = self.dictionary, rule_of(self.settings)
        own = model.own(source)
        weight_fD, bias_f = rule.export_encoder(model.W_enc[source], own)
        if rule.export_k is not None:
            return top_k(x_BD, weight_fD, bias_f, rule.export_k, self.ranks)
        level = sum(self.cuts) / len(self.cuts) if self.cuts else None
        threshold_f = rule.export_thresholds(model.norms[source], model.reach(source), own, level)
        return encode(x_BD, weight_fD, bias_f, torch.zeros_like(bias_f) if threshold_f is None else threshold_f)


class TrainedStandIn:
    """`Trained` in place of all MLPs, from the inputs of the replaced pass itself (evaluation/README.md §2)."""

    def __init__(self, trained: Trained) -> None:
        self.trained = trained
        self._writes_NC = self._skip_ND = torch.empty(0)

    def read(self, layer: int, x_ND: Tensor) -> None:
        """Encode a layer's inputs; what its features write waits for the layers ahead."""
        model = self.trained.dictionary
        if layer == 0:
            self._writes_NC = x_ND.new_zeros(len(x_ND), model.b_dec.numel())
        x_ND = self.trained.space.x(layer, x_ND)
        decode_(self._writes_NC[:, model.columns(layer)], self.trained.alone(layer, x_ND), model.W_dec[layer])
        self._skip_ND = model.b_dec[layer].to(x_ND)
        if model.W_skip is not None:
            self._skip_ND = self._skip_ND + x_ND @ model.W_skip[layer].T.to(x_ND)

    def write(self, layer: int, y_ND: Tensor) -> Tensor:
        """What was collected for this layer on all ranks."""
        model, space = self.trained.dictionary, self.trained.space
        own_ND = self._writes_NC[:, layer * model.d_model : (layer + 1) * model.d_model].contiguous()
        y_ND = self.trained.ranks.all_reduce_(own_ND) + self._skip_ND
        return y_ND / space.scale_y_S[layer] + space.mean_y_SD[layer]
