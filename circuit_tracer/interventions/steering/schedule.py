"""What holds at which token while steering: values on the prompt, rules for the tokens to come, directions.

On the prompt, scaling and adding are relative to the clean prompt, as in `apply_edits`; on generated tokens they are relative
to what the feature would be there and then. Letters: P positions, D d_model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from circuit_tracer.arguments import typed
from circuit_tracer.errors import InputError
from circuit_tracer.interventions.features.clean import CleanRun
from circuit_tracer.interventions.features.edits import Edit, FeatureAt
from circuit_tracer.interventions.features.resolve import Change, Place, first_generated, reached, resolve_edits, taken
from circuit_tracer.interventions.features.settings import LayerSettings, in_precision
from circuit_tracer.interventions.heads.edits import HeadEdit
from circuit_tracer.kernels.device import sent
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.models.run import Visit

if TYPE_CHECKING:
    from circuit_tracer.attribution.traceable import Traceable


@typed
@dataclass(frozen=True, eq=False)
class Direction:
    """`strength` times a vector (D,), added to the residual stream behind a layer, from position `start` on.

    Attributes:
        layer: Behind which it is added.
        vector: (D,).
        strength: Factor.
        start: None for every position that attribution does not leave out, generated ones included.
        name: For people.
    """

    layer: int
    vector: Tensor
    strength: float = 1.0
    start: int | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if self.vector.ndim != 1 or not torch.isfinite(self.vector).all():
            raise InputError(f"a direction needs a finite vector (D,), got shape {tuple(self.vector.shape)}")

    def __str__(self) -> str:
        return f"{self.name or 'direction'} behind layer {self.layer}, strength {self.strength:g}"


@dataclass(frozen=True)
class Rule:
    """What a feature becomes on generated tokens from position `start` on: value + factor * activation."""

    value: float
    factor: float
    start: int
    edit: Edit


class SteeringPlan:
    """Edits and directions resolved for a prompt; see `resolve_edits` for errors.

    since: the position from which on they hold, whatever each says; None: they do not. May be changed between passes.
    """

    def __init__(self, model: Traceable, clean: CleanRun, interventions: Sequence[Edit | Direction]) -> None:
        self.since: int | None = 0
        self.parts, self.n_pos, self.left_out = model.parts, clean.n_pos, clean.left_out
        if heads := [each for each in interventions if isinstance(each, HeadEdit)]:
            raise InputError(
                f"{heads[0]}: steering changes features and adds directions; heads are changed on a prompt, by apply_edits "
                "(circuit-tracer intervene)"
            )
        edits = [each for each in interventions if not isinstance(each, Direction)]
        self.directed = [each for each in interventions if isinstance(each, Direction)]
        for direction in self.directed:
            _check_direction(direction, model.parts)
        self.prompt: dict[Place, Change] = resolve_edits(edits, clean, generating=True)
        self.rules: dict[tuple[int, int], Rule] = {}
        for edit in edits:
            for feature, _ in reached(edit, clean, generating=True):
                self._add_rule(edit, feature, clean)

    def settings(self, start: int, stop: int) -> dict[int, LayerSettings]:
        """Settings by layer of a pass over the positions start ... stop - 1."""
        rows: dict[int, list[tuple[int, int, float, float]]] = {}
        first = stop if self.since is None else max(start, self.since)
        for (layer, position, index), change in self.prompt.items():
            if first <= position < stop:
                rows.setdefault(layer, []).append((position - start, index, change.value, 0.0))
        for (layer, index), rule in self.rules.items():
            for position in range(max(rule.start, first), stop):
                rows.setdefault(layer, []).append((position - start, index, rule.value, rule.factor))
        device, dtype = self.parts.device, self.parts.compute_dtype
        return {
            layer: LayerSettings(
                sent(torch.tensor([row for row, _, _, _ in entries]), device),
                torch.tensor([index for _, index, _, _ in entries]),
                *(
                    sent(in_precision(torch.tensor(column, dtype=torch.float64), dtype), device)
                    for column in ([value for _, _, value, _ in entries], [factor for _, _, _, factor in entries])
                ),
            )
            for layer, entries in rows.items()
        }

    def directions(self, start: int) -> dict[str, Visit]:
        """What adds the directions in a pass that begins at position `start`."""
        return {"hook_resid_post": partial(self._add_directions, start)} if self.directed else {}

    def _add_directions(self, start: int, layer: int, resid_BPD: Tensor) -> Tensor | None:
        here = [direction for direction in self.directed if direction.layer == layer]
        if not here:
            return None
        changed = resid_BPD.clone()
        for direction in here:
            rows = [row for row in range(resid_BPD.shape[1]) if self._directs(direction, start + row)]
            changed[:, rows] += (direction.vector * direction.strength).to(changed)
        return changed

    def _directs(self, direction: Direction, position: int) -> bool:
        if self.since is None or position < self.since:
            return False
        return position not in self.left_out if direction.start is None else position >= direction.start

    def _add_rule(self, edit: Edit, feature: FeatureAt, clean: CleanRun) -> None:
        start = first_generated(edit, feature, clean.n_pos)
        if start is None:
            return
        value, factor = edit.amount, {"set": 0.0, "add": 1.0}.get(edit.how, 0.0)
        if edit.how == "scale":
            value, factor = 0.0, edit.amount
        if edit.how == "take":
            if edit.source_at is None:
                raise InputError(
                    f"{edit}: generated tokens have no position on the other prompt; name one with source_at (--from-position)"
                )
            value = float(taken(edit, feature, [start], clean)[0])
        rule, place = Rule(value, factor, start, edit), (feature.layer, feature.feature_idx)
        other = self.rules.get(place)
        if other is not None and (other.value, other.factor) != (value, factor):
            raise InputError(
                f"contradictory edits of feature {feature} on generated tokens: {other.edit} and {edit}; keep one of them"
            )
        self.rules[place] = rule if other is None or start < other.start else other


def _check_direction(direction: Direction, parts: ModelParts) -> None:
    if not 0 <= direction.layer < parts.config.n_layers:
        raise InputError(f"{direction}: the model has layers 0 to {parts.config.n_layers - 1}")
    if len(direction.vector) != parts.config.d_model:
        raise InputError(
            f"{direction}: the vector has {len(direction.vector)} numbers, the model d_model {parts.config.d_model}"
        )
    if direction.start is not None and direction.start < 0:
        raise InputError(f"{direction}: start is {direction.start}; count positions from 0")
