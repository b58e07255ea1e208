"""What a rule of sparsity is: everything that follows from which features are active.

A rule decides which pre-activations pass. With most, what passes is a feature's activation, unchanged and with gradient 1; the
rest is 0. That is what readers of dictionaries know: a threshold for each feature, the k largest of a token, or all that is
positive. A rule with parameters of its own says what becomes of gradients on their way to them (`Rule.through`).

Letters: S source layers, B tokens, F features of a layer (f: owned by this rank), D width, n entries or features asked about.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.sparsity.selection import Rooms, Selection
from circuit_tracer.training.step.dictionary import Dictionary
from circuit_tracer.training.step.questions import Questions

if TYPE_CHECKING:
    from circuit_tracer.training.config.schema import SparsitySection


@dataclass(frozen=True)
class Dense:
    """What the definition of a rule needs: every array dense, one a source."""

    pre: Sequence[Tensor]  # (B, F)
    norms: Sequence[Tensor]  # (F,) of decoder rows; they only rank, and no gradient may reach them
    n_targets: Sequence[int]  # layers that each source writes to
    thresholds: Sequence[Tensor]  # (F,), zeros if none are learned
    active: float  # k now
    band: Sequence[Tensor] | None = None  # (B, F) weights of near misses (§4, subsampled band); None: 1 for all
    own: Sequence[Mapping[str, Tensor]] = ()  # (F,) each by name: encoder biases, and what the rule has besides
    routed: Sequence[Tensor] = ()  # (B, N) probabilities of a switch's experts


@dataclass(frozen=True)
class Now:
    """What a selection depends on besides weights and inputs."""

    active: float  # k
    running_cut: float | None = None  # mean of the cuts of the selections before; None at the first step
    step: int = 0  # keys random numbers
    rooms: Rooms = field(default_factory=Rooms)  # learned by the selections before
    questions: Questions = field(default_factory=Questions)  # a GPU is asked these and the selection's own together
    part: int = 0  # of ``parts`` of the batch that are looked at one after the other
    parts: int = 1


@dataclass(frozen=True)
class Through:
    """Gradients of one source on their way from activations down."""

    pre_n: Tensor  # of pre-activations, one an entry: what reaches encoder rows
    bias_n: Tensor | None = None  # what reaches encoder biases, if that is something else
    own: Mapping[str, Tensor] = field(default_factory=dict)  # (f,) of the rule's own parameters
    shared: Mapping[str, Tensor] = field(default_factory=dict)  # of those that are the same on every rank


@dataclass(frozen=True)
class Rule(ABC):
    """A rule with its settings. `BudgetRule` and `PenaltyRule` say what those with a k and those with a penalty share."""

    settings: SparsitySection

    has_budget: ClassVar[bool]  # whether k is kept exactly
    has_penalty: ClassVar[bool]  # whether the tanh penalty (§5) may be part of the loss
    learns_thresholds: ClassVar[bool] = False
    own: ClassVar[Mapping[str, float]] = {}  # parameters that each feature has besides, and what they start at
    gated: ClassVar[bool] = False  # whether pre-activations are gates, which have a loss of their own (§5)
    kinds: ClassVar[tuple[str, ...]] = ("clt", "plt", "skip", "sae")  # of dictionaries that it serves
    nests: ClassVar[bool] = (
        True  # whether the first features of a layer can be a dictionary of their own (§5, Matryoshka)
    )
    # whether thresholds follow from a level calibrated at the end (§9): of rules that rank over many tokens
    needs_level: ClassVar[bool] = False
    most_at_start: ClassVar[float] = 1 / 2  # share of the features that are active at the first step, unless k is given
    bears: ClassVar[float] = 1.0  # times the learning rate of the others (§8)
    # entries that `select` holds at a time for each one it keeps (the planner's memory)
    candidates: ClassVar[float] = 1.0

    # The definition (§4), dense: what `reference.py` computes and `select` is tested against

    @abstractmethod
    def activate(self, given: Dense) -> list[Tensor]:
        """Activations (B, F) of every source, differentiable through ``pre`` and learned ``thresholds``."""

    # The step

    @property
    def steered(self) -> bool:
        """Whether `steer_` has to keep k, as nothing else does."""
        return False

    @property
    def experts(self) -> int:
        """N of a switch; 0: every feature sees every token."""
        return 0

    @abstractmethod
    def select(self, dictionary: Dictionary, x_SBD: Sequence[Tensor], now: Now, ranks: FeatureRanks) -> Selection:
        """The active entries among this rank's features, over all sources. x_SBD: normalised inputs (B, D) of every source.

        Whoever compares features with each other asks ``ranks``.
        """

    def through(
        self,
        dictionary: Dictionary,
        source: int,
        selection: Selection,
        x_BD: Tensor,
        da_n: Tensor,
        direct_n: Tensor | None,
        ranks: FeatureRanks,
    ) -> Through:
        """What the gradients of one source's entries become. da_n: dL/da by what they write; direct_n: by the penalty
        (`PenaltyRule.penalised`) and by gates; None without either.
        """
        return Through(da_n if direct_n is None else da_n + direct_n)

    def level(self, norm_n: Tensor, threshold_n: Tensor, n_targets: int, running_cut: float | None) -> Tensor:
        """theta n_f (n,) of some features: where pre * n_f would make them fire, for the pre-activation loss (§5).

        norm_n: of their decoder rows. threshold_n: learned ones, or zeros.
        """
        return threshold_n * norm_n

    # The dictionary that is written (§9): of one token and layer, what is above thresholds or among the k largest is active

    @property
    def export_k(self) -> int | None:
        """k, if the k largest positive pre-activations of each token and layer are what is active; None: thresholds."""
        return None

    def scale(self, norm_F: Tensor, n_targets: int) -> Tensor:
        """What pre-activations of features with these decoder norms are multiplied with to be ranked: (F,).

        n_targets: layers that their decoder rows write to.
        """
        return torch.ones_like(norm_F)

    def export_encoder(self, weight_FD: Tensor, own: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Rows (F, D) and biases (F,) whose products are activations where they are above thresholds. own: `Dictionary.own`."""
        return weight_FD, own["b_enc"]

    @abstractmethod
    def export_thresholds(
        self, norm_F: Tensor, n_targets: int, own: Mapping[str, Tensor], level: float | None
    ) -> Tensor | None:
        """Thresholds (F,) of one source in float32, finite; None without (``export_k``, or a ReLU).

        norm_F: of decoder rows, which write to ``n_targets`` layers. own: `Dictionary.own`. level: a rule that needs one keeps
        the scores above it (`calibration.level_scores`).
        """

    # The configuration

    def contradictions(self, n_features: int) -> Iterator[str]:
        """What is wrong with the settings of a dictionary with ``n_features`` a layer: a message each, with the next step."""
        active, start = self.settings.active, self.settings.active_at_start
        if active > n_features:
            yield f"sparsity.active is {active}, more than dictionary.features, {n_features}; lower it"
        if start is not None and not active <= start <= n_features:
            yield (
                f"sparsity.active_at_start is {start}; it falls to sparsity.active, so it must lie between "
                f"{active} and dictionary.features, {n_features}"
            )
        if start is not None and self.settings.anneal == 0:
            yield f"sparsity.active_at_start is {start}, which has no effect with sparsity.anneal 0: leave one of them out"

    # The plan of a run

    @property
    def searched(self) -> float:
        """Share of the features whose pre-activations are computed for a token."""
        return 1.0

    def entries(self, active_at_start: float, n_features: int) -> tuple[float, float]:
        """Entries of a token and layer of ``n_features``: on average over the run, and at most.

        active_at_start: k at the first step, from which it falls over a share of the steps.
        """
        active, anneal = self.settings.active, self.settings.anneal
        mean = active + (active_at_start - active) * anneal / 2
        return min(mean, n_features), min(active_at_start if anneal else mean, n_features)
