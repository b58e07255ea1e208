"""Features that fell silent, and the two losses that are theirs (training/README.md §5 AuxK and pre-activation, §7).

Letters: S source layers, B tokens, f features of a layer owned by this rank, n dead ones of them, D width, C = S * D.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from circuit_tracer.kernels.decode import decode_
from circuit_tracer.kernels.device import on_gpu
from circuit_tracer.kernels.encode import row_blocks
from circuit_tracer.kernels.sparse_activations import SparseActivations
from circuit_tracer.training.config.schema import SparsitySection
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.sparsity import rule_of
from circuit_tracer.training.sparsity.ranking import top_k, top_k_at_most
from circuit_tracer.training.step.dictionary import Dictionary
from circuit_tracer.training.step.questions import Questions


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
            tokens.add_(n_tokens).masked_fill_(count > 0, 0)


class Dead:
    """The dead features of a step by their numbers; how many there are is heard with the next answer of ``questions``."""

    def __init__(self, masks: Sequence[Tensor], ranks: FeatureRanks, questions: Questions) -> None:
        self._so_far = [mask.cumsum(0) for mask in masks]
        own_S = torch.stack([so_far[-1] for so_far in self._so_far])
        self._own, self._total = (
            questions.ask("dead", own_S),
            questions.ask("dead of all", ranks.all_reduce_(own_S.sum())),
        )

    @property
    def total(self) -> int:
        """Of all sources and ranks."""
        return int(self._total.number)

    @property
    def most(self) -> int:
        """Of one source and this rank."""
        return int(max(self._own.numbers))

    def ids(self, source: int) -> Tensor:
        """(n,) int64, ascending: those of one source."""
        return torch.searchsorted(self._so_far[source], self._numbers[: int(self._own.numbers[source])])

    @cached_property
    def _numbers(self) -> Tensor:
        return torch.arange(1, self.most + 1, device=self._so_far[0].device)


@dataclass(frozen=True)
class Auxiliary:
    """AuxK of a batch: the loss (0-d), entries numbered among the dead ``ids`` (n,) of a source, and the gradient of what they
    write, (B, C).

    ``full`` (0-d, on a GPU): whether some entries of any process had no room, so that all must do it again with ``all_rooms``.
    """

    loss: Tensor
    ids: list[Tensor]
    entries: list[SparseActivations]
    grad_BC: Tensor
    full: Tensor | None


def auxiliary(
    dictionary: Dictionary,
    x_SBD: Sequence[Tensor],
    error_BSD: Tensor,
    settings: SparsitySection,
    dead: Dead,
    ranks: FeatureRanks,
    all_rooms: bool = False,
) -> Auxiliary | None:
    """Let the dead features predict what is missing, r = -error; None if no feature of any rank is dead."""
    if not dead.total:
        return None
    k, all_ids, all_entries, all_found = settings.aux_active, [], [], []
    repaired_BC = torch.zeros_like(error_BSD).flatten(1)
    # candidates are hardly more than k, unless many are equal
    room = error_BSD.shape[0] * (dead.most if all_rooms else min(dead.most, 2 * k)) + 1
    for source, x_BD in enumerate(x_SBD):
        ids = dead.ids(source)
        weight_nD, bias_n = dictionary.W_enc[source][ids], dictionary.b_enc[source][ids]
        if on_gpu(x_BD):
            entries, found = top_k_at_most(x_BD, weight_nD, bias_n, k, room, ranks)
            all_found.append(found)
        else:
            entries = top_k(x_BD, weight_nD, bias_n, k, ranks)
        feature = ids[entries.feature] if len(ids) else entries.feature
        numbered = SparseActivations(
            entries.row_ptr, feature, entries.value, len(dictionary.norms[source]), entries.exact
        )
        decode_(repaired_BC[:, dictionary.columns(source)], numbered, dictionary.W_dec[source])
        all_ids.append(ids)
        all_entries.append(entries)
    difference_BC = ranks.all_reduce_(repaired_BC).add_(error_BSD.flatten(1))
    weight = settings.aux_weight * min(1.0, dead.total / (dictionary.n_layers * k))
    loss = weight * difference_BC.square().mean()
    grad_BC = difference_BC.mul_(2 * weight / difference_BC.numel())
    full = ranks.plain.all_reduce_((torch.stack(all_found) > room).sum()) if all_found else None
    return Auxiliary(loss, all_ids, all_entries, grad_BC, full)


@dataclass(frozen=True)
class Lift:
    """Pre-activation loss of one source's dead ``ids`` (n,): this rank's share of it (0-d), and its gradients."""

    loss: Tensor
    ids: Tensor
    encoder_nD: Tensor
    bias_n: Tensor


def lift(
    dictionary: Dictionary, source: int, x_BD: Tensor, settings: SparsitySection, dead: Dead, running_cut: float | None
) -> Lift:
    """epsilon / (B S) sum of max(0, level - pre n_f), level = theta_f n_f; a dense product over the dead rows, in blocks of
    tokens.
    """
    ids = dead.ids(source)
    norm_n = dictionary.norms[source][ids].to(x_BD.dtype)
    threshold_n = dictionary.thresholds(source)[ids].to(x_BD.dtype)
    level_n = rule_of(settings).level(norm_n, threshold_n, dictionary.reach(source), running_cut)
    weight_nD, bias_n = (part[source][ids].to(x_BD.dtype) for part in (dictionary.W_enc, dictionary.b_enc))
    scale = settings.pre_activation_weight / max(1, x_BD.shape[0] * dictionary.n_layers)
    loss, grad_nD, grad_n = x_BD.new_zeros(()), torch.zeros_like(weight_nD), torch.zeros_like(bias_n)
    for rows in row_blocks(x_BD, max(1, len(ids))):
        short_Bn = level_n - torch.addmm(bias_n, x_BD[rows], weight_nD.T) * norm_n
        below_Bn = (short_Bn > 0).to(x_BD.dtype)
        loss = loss + scale * (short_Bn * below_Bn).sum()
        grad_nD.addmm_(below_Bn.T, x_BD[rows])
        grad_n += below_Bn.sum(0)
    return Lift(loss, ids, grad_nD.mul_(-scale * norm_n[:, None]), grad_n.mul_(-scale * norm_n))
