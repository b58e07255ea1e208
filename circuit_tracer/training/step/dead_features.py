"""Features that fell silent, and the two losses that are theirs (training/README.md §5 AuxK and pre-activation, §7).

Letters: S source layers, B tokens, f features of a layer owned by this rank, D width, C = S * D.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuit_tracer.kernels.decode import decode_
from circuit_tracer.kernels.encode import row_blocks
from circuit_tracer.kernels.sparse_activations import SparseActivations
from circuit_tracer.training.config.schema import SparsitySection
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.sparsity import rule_of
from circuit_tracer.training.sparsity.ranking import top_k
from circuit_tracer.training.step.dictionary import Dictionary


@dataclass
class Silence:
    """For how many tokens each feature has not fired: (f,) int64 a source."""

    tokens: list[Tensor]

    @classmethod
    def initial(cls, dictionary: Dictionary) -> Silence:
        """None is dead at the start."""
        return cls([torch.zeros_like(norms, dtype=torch.int64) for norms in dictionary.norms])

    def dead(self, after: int) -> list[Tensor]:
        """(f,) bool a source: silent for ``after`` tokens or more."""
        return [tokens >= after for tokens in self.tokens]

    def update(self, fired: Sequence[Tensor], n_tokens: int) -> None:
        """After a step over ``n_tokens`` in which feature f had ``fired[s][f]`` entries."""
        for tokens, count in zip(self.tokens, fired, strict=True):
            tokens += n_tokens
            tokens[count > 0] = 0


@dataclass(frozen=True)
class Auxiliary:
    """AuxK of a batch: the loss, entries of dead features, and the gradient of what they write, (B, C)."""

    loss: float
    entries: list[SparseActivations]
    grad_BC: Tensor


def auxiliary(
    dictionary: Dictionary,
    x_SBD: Sequence[Tensor],
    error_BSD: Tensor,
    settings: SparsitySection,
    dead: Sequence[Tensor],
    ranks: FeatureRanks,
) -> Auxiliary | None:
    """Let the dead features predict what is missing, r = -error; None if no feature of any rank is dead."""
    n_dead = int(ranks.all_reduce_(torch.stack([mask.sum() for mask in dead])).sum())
    if not n_dead:
        return None
    share = min(1.0, n_dead / (dictionary.n_layers * settings.aux_active))
    entries = []
    repaired_BC = torch.zeros_like(error_BSD).flatten(1)
    for source, (x_BD, mask_f) in enumerate(zip(x_SBD, dead, strict=True)):
        ids = mask_f.nonzero()[:, 0]
        found = top_k(x_BD, dictionary.W_enc[source][ids], dictionary.b_enc[source][ids], settings.aux_active, ranks)
        one = SparseActivations(found.row_ptr, ids[found.feature], found.value, mask_f.shape[0])
        decode_(repaired_BC[:, dictionary.columns(source)], one, dictionary.W_dec[source])
        entries.append(one)
    difference_BC = ranks.all_reduce_(repaired_BC).add_(error_BSD.flatten(1))
    weight = settings.aux_weight * share
    loss = weight * float(difference_BC.square().mean())
    return Auxiliary(loss, entries, difference_BC.mul_(2 * weight / difference_BC.numel()))


def lift_(
    dictionary: Dictionary,
    source: int,
    x_BD: Tensor,
    settings: SparsitySection,
    dead_f: Tensor,
    running_cut: float | None,
    encoder_fD: Tensor,
    bias_f: Tensor,
) -> float:
    """Pre-activation loss of one source's dead features (this rank's share of it); adds to the gradients, (f, D) and (f,).

    epsilon / (B S) sum of max(0, level - pre n_f), level = theta_f n_f; a dense product over the dead rows, in blocks of
    tokens.
    """
    ids = dead_f.nonzero()[:, 0]
    if not ids.shape[0] or not x_BD.shape[0]:
        return 0.0
    norm_n = dictionary.norms[source][ids].to(x_BD.dtype)
    threshold_n = dictionary.thresholds(source)[ids].to(x_BD.dtype)
    level_n = rule_of(settings).level(norm_n, threshold_n, dictionary.reach(source), running_cut)
    weight_nD = dictionary.W_enc[source][ids].to(x_BD.dtype)
    scale = settings.pre_activation_weight / (x_BD.shape[0] * dictionary.n_layers)
    loss = 0.0
    for rows in row_blocks(x_BD, ids.shape[0]):
        score_Bn = torch.addmm(dictionary.b_enc[source][ids].to(x_BD.dtype), x_BD[rows], weight_nD.T) * norm_n
        short_Bn = level_n - score_Bn
        below_Bn = (short_Bn > 0).to(x_BD.dtype)
        loss += scale * float((short_Bn * below_Bn).sum())
        encoder_fD.index_add_(0, ids, -scale * norm_n[:, None] * (below_Bn.T @ x_BD[rows]))
        bias_f.index_add_(0, ids, -scale * norm_n * below_Bn.sum(0))
    return loss
