"""A pass of iterative semantics: in the range, MLPs are the transcoder plus its error on the clean prompt.

At layer l of the range, with a(x) the activations of the live input and a0 those of the clean prompt,

    y_l = y_l(clean) + sum over l' <= l in reach of (a(x_l') - a0_l') W_dec^(l' -> l)  (+ (x_l - x0_l) S_l)

where edited features have their own values in place of a(x). Layers below the range contribute with edited features only.
Letters: P positions, D d_model, n entries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from circuit_tracer.interventions.features.activations import activations_of
from circuit_tracer.interventions.features.passes import Freeze, Observer, Pass
from circuit_tracer.interventions.features.settings import LayerSettings
from circuit_tracer.transcoders.active import ActiveFeatures

if TYPE_CHECKING:
    from circuit_tracer.attribution.traceable import Traceable


class IterativePass(Pass):
    """What the hooks of an iterative pass do; `clean` are the active features of the clean prompt."""

    def __init__(
        self,
        model: Traceable,
        settings: dict[int, LayerSettings],
        freeze: Freeze,
        observer: Observer | None,
        zero_positions: list[int],
        clean: ActiveFeatures,
    ) -> None:
        super().__init__(model, settings, freeze, observer, zero_positions)
        self.clean, self.n_pos = clean, freeze.network.captured.n_pos

    def change(self, layer: int, x_PD: Tensor) -> None:
        """Edited features, and in the range all that changed by themselves."""
        if layer not in self.held:
            super().change(layer, x_PD)
            return
        row, index, change = self._own_changes(layer, x_PD)
        wanted = self.settings.get(layer)
        if wanted is not None:
            width = self.transcoders.n_features(layer)
            set_index = wanted.index.to(index.device)
            free = ~torch.isin(row * width + index, wanted.position * width + set_index)
            row = torch.cat([row[free], wanted.position])
            index = torch.cat([index[free], set_index])
            change = torch.cat([change[free], self._edited(layer, x_PD, wanted)])
        moved = change != 0
        if moved.any():
            self.add_writes(layer, x_PD, row[moved], index[moved], change[moved])

    def _own_changes(self, layer: int, x_PD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(row, index, change), each (n,), of every feature that is active in the pass or on the clean prompt."""
        row, index, value = self.transcoders.encode_positions(layer, x_PD)
        there = ~torch.isin(row, self.zero_positions)
        here, copies = self.clean.of_layer(layer), len(x_PD) // self.n_pos
        offset = torch.arange(copies, device=x_PD.device).repeat_interleave(here.stop - here.start) * self.n_pos
        key = torch.cat([row[there], self.clean.position[here].repeat(copies) + offset])
        width = self.transcoders.n_features(layer)
        key = key * width + torch.cat([index[there], self.clean.index[here].repeat(copies)])
        change = torch.cat([value[there].to(x_PD), -self.clean.value[here].to(x_PD).repeat(copies)])
        unique, inverse = torch.unique(key, return_inverse=True)
        total = x_PD.new_zeros(len(unique)).index_add_(0, inverse, change)
        return unique // width, unique % width, total

    def _edited(self, layer: int, x_PD: Tensor, wanted: LayerSettings) -> Tensor:
        """Changes (n,) of the edited features against the clean prompt."""
        assert self.freeze is not None
        inactive = torch.isin(wanted.position, self.zero_positions)
        clean = activations_of(
            self.transcoders, layer, self.freeze.input(layer), wanted.position % self.n_pos, wanted.index
        )
        return wanted.value - torch.where(inactive, 0, clean)
