"""All that a run carries from one step to the next, and nothing else: what a checkpoint holds (training/README.md §§7, 8).

Letters: S source layers, f features of a layer owned by this rank.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.sparsity import rule_of
from circuit_tracer.training.step.adam import Adam
from circuit_tracer.training.step.averaging import Averages
from circuit_tracer.training.step.dead_features import Silence
from circuit_tracer.training.step.dictionary import SHARED, Dictionary
from circuit_tracer.training.step.normalisation import Normalisation
from circuit_tracer.training.step.spikes import SpikeWatch

CUT_MEMORY = 0.9  # share of the running cut that stays when a new one comes
AVERAGE = ".average"  # behind the name of a weight: its average


@dataclass
class TrainingState:
    """Weights, moments, averages, silence, running cut, last errors and step of a run."""

    dictionary: Dictionary
    adam: Adam
    silence: Silence
    normalisation: Normalisation
    derivative_scale_S: Tensor | None = None  # U_s of Jacobian matching (§5)
    running_cut: float | None = None
    step: int = 0  # steps done, or skipped
    spikes: SpikeWatch = field(default_factory=SpikeWatch)
    averages: Averages | None = None

    @classmethod
    def initial(
        cls,
        config: TrainingConfig,
        normalisation: Normalisation,
        derivative_scale_S: Tensor | None,
        device: torch.device,
        ranks: FeatureRanks,
    ) -> TrainingState:
        """The start of a run."""
        n_layers, d_model = normalisation.mean_x_SD.shape
        features, rule = config.dictionary.features, rule_of(config.sparsity)
        dictionary = Dictionary.initial(
            config.dictionary.kind,
            n_layers,
            features,
            d_model,
            owned=ranks.share(features),
            own=rule.own,
            experts=rule.experts,
            dtype=getattr(torch, config.dictionary.dtype),
            device=device,
            seed=config.run.seed,
        )
        adam = Adam(dictionary, config.optimizer, config.run.seed)
        return cls(
            dictionary,
            adam,
            Silence.initial(dictionary),
            normalisation.to(device),
            derivative_scale_S,
            averages=Averages(dictionary) if config.optimizer.averaging else None,
        )

    @property
    def result(self) -> Dictionary:
        """What is calibrated, written and evaluated: the averages of the weights if there are any."""
        return self.dictionary if self.averages is None else self.averages.averaged()

    def finite(self) -> bool:
        """Whether all weights of this rank are; a sum is not if one of its numbers is not."""
        sums = [tensor.sum(dtype=torch.float32) for tensor in self.dictionary.tensors().values()]
        return bool(torch.stack(sums).isfinite().all())

    def update_cut(self, cut: float | None) -> None:
        """Take a step's cut into the running one."""
        if cut is None:
            return
        if self.running_cut is None:
            self.running_cut = cut
        else:
            self.running_cut = CUT_MEMORY * self.running_cut + (1 - CUT_MEMORY) * cut

    def layer_tensors(self, source: int) -> dict[str, Tensor]:
        """What this rank owns of one source layer, by name; all have its features along dimension 0."""
        self.adam.wait()
        named = {"norms": self.dictionary.norms[source], "silence": self.silence.tokens[source]}
        for name, weight in self.adam.weights.items():
            base, _, number = name.partition(".")
            if number == str(source):
                named |= self._with_moments(name, base, weight)
        return named

    def shared_tensors(self) -> dict[str, Tensor]:
        """What every rank has alike."""
        named = dict(self.normalisation.tensors())
        for name in SHARED:
            if name in self.adam.weights:
                named |= self._with_moments(name, name, self.adam.weights[name])
        if self.derivative_scale_S is not None:
            named["derivative_scale"] = self.derivative_scale_S
        return named

    def _with_moments(self, name: str, kept_as: str, weight: Tensor) -> dict[str, Tensor]:
        """A parameter, its moments and its average, by their names in a file."""
        moments = self.adam.moments(name)
        named = {kept_as: weight, **{f"{kept_as}.{moment}": tensor for moment, tensor in moments.items()}}
        if self.averages is not None:
            named[f"{kept_as}{AVERAGE}"] = self.averages.tensors[name]
        return named
