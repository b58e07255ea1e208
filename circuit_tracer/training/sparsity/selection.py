"""The active entries of a batch, as every rule hands them to the step, and how to find them.

A GPU is asked once for everything: entries are looked for in rooms whose size the host knows from the steps before, and what
follows from them is computed before the host hears how many there were.

Letters: S source layers, B tokens, F features of a layer owned by this rank, D width, n entries of one source.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from circuit_tracer.kernels.device import on_gpu
from circuit_tracer.kernels.encode import encode, encode_at_most
from circuit_tracer.kernels.sparse_activations import SparseActivations
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.sparsity.routing import Route
from circuit_tracer.training.step.dictionary import Dictionary
from circuit_tracer.training.step.questions import Questions

Masks = Sequence[Tensor]  # (n,) bool a source
FIRST_ROOM = 32  # before anything is known: one entry in so many pre-activations
ROOM_STEP = 4096  # rooms are multiples of it, so that memory of the last step is used again


@dataclass(frozen=True)
class Selection:
    """Active features of a batch. ``entries[s].value`` (n,) are pre-activations; near misses may be among them.

    ``active[s]`` (n,) tells the active from the near misses; ``band[s]`` (n,) weighs an entry in the gradient of its
    threshold (rules that learn thresholds only). ``values[s]`` (n,): activations, zero of those not active, where they are not
    the pre-activations. ``cut``: the least score kept, if one number decides for the whole batch. ``routes``: of a switch.
    """

    entries: list[SparseActivations]
    active: list[Tensor]
    band: list[Tensor] | None = None
    cut: float | None = None
    values: list[Tensor] | None = None
    routes: list[Route] | None = None

    @property
    def plain(self) -> bool:
        """Whether all entries are active."""
        return self.band is None and self.values is None

    def activations(self, source: int) -> SparseActivations:
        """The active entries with their activations."""
        entries, active = self.entries[source], self.active[source]
        if self.values is not None:
            return entries.with_value(self.values[source])
        return entries if self.band is None else entries.with_value(torch.where(active, entries.value, 0))

    def all_activations(self) -> list[SparseActivations]:
        """The same of every source."""
        return [self.activations(source) for source in range(len(self.entries))]


@dataclass
class Rooms:
    """How many entries each source had room for in the last search of a GPU; empty before the first."""

    sizes: list[int] = field(default_factory=list)

    def before(self, x_SBD: Sequence[Tensor], dictionary: Dictionary) -> list[int]:
        """Rooms for the next search."""
        if len(self.sizes) != len(x_SBD):
            shapes = zip(x_SBD, dictionary.W_enc, strict=True)
            self.sizes = [_rounded(len(x_BD) * len(weight_FD) // FIRST_ROOM) for x_BD, weight_FD in shapes]
        return self.sizes

    def learn(self, found: Sequence[int]) -> None:
        """Make room for what was found and a quarter more; a room that has this and less than twice as much stays."""
        for source, (size, count) in enumerate(zip(self.sizes, found, strict=True)):
            wanted = _rounded(count + count // 4)
            if not wanted <= size <= 2 * wanted:
                self.sizes[source] = wanted


def _rounded(count: int) -> int:
    return (count // ROOM_STEP + 1) * ROOM_STEP


def all_active(entries: list[SparseActivations], cut: float | None = None) -> Selection:
    """A selection without near misses."""
    return Selection(entries, [torch.ones_like(one.feature, dtype=torch.bool) for one in entries], cut=cut)


def above(
    dictionary: Dictionary,
    x_SBD: Sequence[Tensor],
    cut_SF: Sequence[Tensor],
    choose: Callable[[list[SparseActivations]], Masks] | None = None,
    ranks: FeatureRanks | None = None,
    rooms: Rooms | None = None,
    questions: Questions | None = None,
) -> list[SparseActivations]:
    """Entries of every source whose pre-activation is larger than their feature's cut (F,); those of them that ``choose`` says.

    On a GPU ``choose`` sees entries that are not exact, and may see them again with more room: all ``ranks`` then do. Whatever
    was asked of ``questions`` is answered together with the number of entries.
    """
    if not on_gpu(x_SBD[0]):
        parts = zip(x_SBD, dictionary.W_enc, dictionary.b_enc, cut_SF, strict=True)
        found = [encode(x_BD, W, b, cut_F) for x_BD, W, b, cut_F in parts]
        if choose is None:
            return found
        return [one.keep(mask) for one, mask in zip(found, choose(found), strict=True)]

    def search(sizes: Sequence[int]) -> tuple[list[SparseActivations], list[Tensor]]:
        parts = zip(x_SBD, dictionary.W_enc, dictionary.b_enc, cut_SF, sizes, strict=True)
        found, needed = zip(*(encode_at_most(*part) for part in parts), strict=True)
        kept = list(found)
        if choose is not None:
            kept = [one.moved_up(mask) for one, mask in zip(kept, choose(kept), strict=True)]
        return kept, list(needed)

    return searched(search, dictionary, x_SBD, ranks or FeatureRanks(), rooms or Rooms(), questions or Questions())


def searched(
    search: Callable[[Sequence[int]], tuple[list[SparseActivations], list[Tensor]]],
    dictionary: Dictionary,
    x_SBD: Sequence[Tensor],
    ranks: FeatureRanks,
    rooms: Rooms,
    questions: Questions,
) -> list[SparseActivations]:
    """What a GPU finds in rooms that are large enough, exact. ``search(rooms)``: entries, and how many needed room (0-d)."""
    while True:
        sizes = list(rooms.before(x_SBD, dictionary))
        kept, needed = search(sizes)
        missing_S = torch.stack([count - size for count, size in zip(needed, sizes, strict=True)])
        full = questions.ask("full", ranks.plain.all_reduce_((missing_S > 0).sum()))
        missing = questions.ask("missing", missing_S)
        counts = questions.ask("entries", torch.stack([one.row_ptr[-1] for one in kept]))
        rooms.learn([size + int(more) for size, more in zip(sizes, missing.numbers, strict=True)])
        if not full.number:
            return [one.first(int(count)) for one, count in zip(kept, counts.numbers, strict=True)]


def scores(entries: SparseActivations, scale_F: Tensor) -> Tensor:
    """pre * scale (n,); zero for void entries."""
    score_n = entries.value * scale_F[entries.feature].to(entries.value.dtype)
    return score_n if entries.exact else score_n * entries.live
