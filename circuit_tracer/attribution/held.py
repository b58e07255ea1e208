"""Features that an intervention sets: the trace is of the pass in which they are set, and there nothing feeds them.

`interventions.attribute_edited` makes it of edits. Letters: P positions, n features set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from circuit_tracer.models.attention import AttentionTape
from circuit_tracer.models.run import Visit
from circuit_tracer.transcoders.active import ActiveFeatures


@dataclass(frozen=True)
class Held:
    """What is set, each place once, and how the model is then run.

    layer, position, index: int64 (n,); value: (n,), what they become. visits: of one pass, by site, which write at the
    dictionary's output hook only (models/run.py); made anew for every pass. tape: attention that the pass replays; None: it
    reacts. words: the edits, for people.
    """

    layer: Tensor
    position: Tensor
    index: Tensor
    value: Tensor
    visits: Callable[[], Mapping[str, Visit]]
    tape: Callable[[], AttentionTape] | None
    words: list[str]

    def applied(self, active: ActiveFeatures, keep_P: Tensor) -> ActiveFeatures:
        """The active features with those that are set as they are set, at the positions that have features."""
        mine = keep_P[self.position] & (self.value != 0)
        own = ActiveFeatures(self.layer[mine], self.position[mine], self.index[mine], self.value[mine].to(active.value))
        width = 1 + max((int(each.max()) for each in (active.index, self.index) if len(each)), default=0)
        place = _key(active, len(keep_P), width)
        set_places = (self.layer * len(keep_P) + self.position) * width + self.index
        left = ~torch.isin(place, set_places)
        order = torch.cat([place[left], _key(own, len(keep_P), width)]).argsort()
        held = torch.cat([torch.zeros(int(left.sum()), dtype=torch.bool), torch.ones(len(own), dtype=torch.bool)])
        return ActiveFeatures(
            torch.cat([active.layer[left], own.layer])[order],
            torch.cat([active.position[left], own.position])[order],
            torch.cat([active.index[left], own.index])[order],
            torch.cat([active.value[left], own.value])[order],
            held[order],
        )


def _key(active: ActiveFeatures, n_pos: int, width: int) -> Tensor:
    return (active.layer * n_pos + active.position) * width + active.index
