"""From edits to settings: which feature becomes what at which position, and every way in which that can be impossible.

Letters: P positions, n entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from circuit_tracer.errors import InputError, shortened
from circuit_tracer.interventions.features.clean import CleanRun
from circuit_tracer.interventions.features.edits import Edit, FeatureAt, Positions
from circuit_tracer.interventions.features.settings import LayerSettings, in_precision, missing_feature
from circuit_tracer.transcoders.base import described_layers

if TYPE_CHECKING:
    from circuit_tracer.transcoders.base import Transcoders
    from circuit_tracer.transcoders.transcoder_set import TranscoderSet

Place = tuple[int, int, int]  # layer, position, feature


@dataclass(frozen=True)
class Change:
    """What one feature is and becomes at one position of the prompt."""

    value: float
    clean: float
    edit: Edit


def resolve_edits(edits: Sequence[Edit], clean: CleanRun, generating: bool = False) -> dict[Place, Change]:
    """Values by place, on the prompt. generating: edits may reach tokens to come only, and what is scaled may be active
    on those only.

    Raises InputError for a layer, feature or position that does not exist, an edit that reaches no position of the prompt,
    an inactive feature that is scaled, and two edits that want different values of one feature.
    """
    found: dict[Place, Change] = {}
    for edit in edits:
        if not isinstance(edit, Edit):
            raise InputError(f"{shortened(edit)} is no edit; make one with set_to, scale, ablate, add or take_from")
        for feature, positions in reached(edit, clean, generating):
            goes_on = generating and first_generated(edit, feature, clean.n_pos) is not None
            if not goes_on:
                _require_scalable(edit, feature, positions, clean)
            for position, (value, before) in zip(positions, _values(edit, feature, positions, clean), strict=True):
                place = (feature.layer, position, feature.feature_idx)
                other = found.get(place)
                if other is not None and other.value != value:
                    raise InputError(
                        f"contradictory edits of feature {feature} at position {position}: {other.edit} ({other.value:g}) and "
                        f"{edit} ({value:g}); keep one of them"
                    )
                found[place] = Change(value, before, edit)
    clean.look_at_fit(layer for layer, _, _ in found)
    return found


def reached(edit: Edit, clean: CleanRun, generating: bool = False) -> list[tuple[FeatureAt, list[int]]]:
    """Each feature of an edit with the positions of the prompt that it reaches; see `resolve_edits` for errors."""
    found = []
    for feature in dict.fromkeys(edit.features):
        check_feature(feature, clean.model.transcoders, clean.model.attention)
        at = feature.position if edit.at is None else edit.at
        positions = positions_at(at, clean, f"edit of feature {feature}")
        if not positions and not (generating and first_generated(edit, feature, clean.n_pos) is not None):
            raise InputError(
                f"{edit} reaches no position of this prompt of {clean.n_pos} tokens (at={edit.at!r}); 'generated' tokens exist "
                "only while steering a generation"
            )
        found.append((feature, positions))
    return found


def first_generated(edit: Edit, feature: FeatureAt, n_pos: int) -> int | None:
    """The first position behind a prompt of n_pos tokens that an edit goes on to reach; None if it reaches none."""
    at = feature.position if edit.at is None else edit.at
    if at is None or at in ("all", "generated"):
        return n_pos
    if isinstance(at, slice) and at.stop is None:
        return max(n_pos, at.start or 0)
    return None


def check_feature(feature: FeatureAt, transcoders: Transcoders, attention: TranscoderSet | None = None) -> None:
    """Refuse a layer or feature that does not exist."""
    layer = feature.layer
    if not 0 <= layer < transcoders.n_layers:
        raise InputError(
            f"edit of feature {feature}: layer {layer} does not exist; layers: 0 to {transcoders.n_layers - 1}"
        )
    if layer not in transcoders.layers and (attention is None or layer not in attention.layers):
        raise InputError(f"edit of feature {feature}: that layer has none; {described_layers(transcoders)}")
    if missing_feature(layer, torch.tensor([feature.feature_idx]), transcoders, attention):
        behind = (
            ""
            if attention is None or not attention.n_features(layer)
            else f" ({numbered(transcoders, attention, layer)})"
        )
        raise InputError(
            f"edit of feature {feature}: layer {layer} has features 0 to {transcoders.n_features(layer) - 1}{behind}"
        )


def numbered(transcoders: Transcoders, attention: TranscoderSet, layer: int) -> str:
    """How features of attention are numbered in a layer."""
    first = transcoders.d_transcoder
    return f"those of attention are {first} to {first + attention.n_features(layer) - 1}"


def settings_of(changes: Sequence[dict[Place, Change]], clean: CleanRun) -> dict[int, LayerSettings]:
    """Settings by layer of a pass over one copy of the prompt for each experiment."""
    rows: dict[int, list[tuple[int, int, float]]] = {}
    for copy, experiment in enumerate(changes):
        for (layer, position, index), change in experiment.items():
            rows.setdefault(layer, []).append((copy * clean.n_pos + position, index, change.value))
    device, dtype = clean.model.parts.device, clean.model.parts.compute_dtype
    settings = {}
    for layer, entries in rows.items():
        settings[layer] = LayerSettings(
            torch.tensor([row for row, _, _ in entries], device=device),
            torch.tensor([index for _, index, _ in entries]),
            in_precision(torch.tensor([value for _, _, value in entries], dtype=torch.float64), dtype).to(device),
        )
    return settings


def positions_at(at: Positions, clean: CleanRun, what: str) -> list[int]:
    """Positions of the prompt, ascending; a name, or None, leaves out those that attribution leaves out. what: for errors."""
    n_pos = clean.n_pos
    if at == "generated":
        return []
    if at is None or isinstance(at, str):
        return [position for position in range(n_pos) if position not in clean.left_out]
    if isinstance(at, slice):
        try:
            return list(range(n_pos)[at])
        except (TypeError, ValueError) as error:
            raise InputError(f"{what} at positions {at}: {error}") from error
    listed = [at] if isinstance(at, int) else at
    for position in listed:
        if not -n_pos <= position < n_pos:
            raise InputError(
                f"{what} at position {position}: the prompt's {n_pos} tokens are positions 0 to {n_pos - 1}"
            )
    return sorted({position % n_pos for position in listed})


def _values(edit: Edit, feature: FeatureAt, positions: list[int], clean: CleanRun) -> list[tuple[float, float]]:
    """(new, clean) activation at each position."""
    if not positions:
        return []
    here = _activations(clean, feature, positions)
    if edit.how == "set":
        new = in_precision(torch.full_like(here, edit.amount, dtype=torch.float64), here.dtype)
    elif edit.how == "add":
        new = here + edit.amount
    elif edit.how == "take":
        new = taken(edit, feature, positions, clean)
    else:
        new = here * edit.amount
    return list(zip(new.tolist(), here.tolist(), strict=True))


def _require_scalable(edit: Edit, feature: FeatureAt, positions: list[int], clean: CleanRun) -> None:
    """Refuse to scale a feature that is active at none of the positions."""
    if edit.how != "scale" or _activations(clean, feature, positions).any():
        return
    where = f"position {positions[0]}" if len(positions) == 1 else f"every one of {len(positions)} positions"
    raise InputError(
        f"feature {feature} is inactive at {where}: scaling it by {edit.amount:g} leaves 0, since 0 times anything is "
        "0. Use set_to or add to switch it on."
    )


def taken(edit: Edit, feature: FeatureAt, positions: list[int], clean: CleanRun) -> Tensor:
    """(n,) activations on the other prompt that an edit takes values from, for positions (n,) of this one."""
    assert edit.source is not None
    source = _source_run(edit, clean)
    wanted = positions if edit.source_at is None else [edit.source_at] * len(positions)
    for position in wanted:
        if not -source.n_pos <= position < source.n_pos:
            raise InputError(
                f"{edit}: position {position} is outside the other prompt's {source.n_pos} tokens; "
                "name one with source_at"
            )
    return _activations(source, feature, [position % source.n_pos for position in wanted])


def _source_run(edit: Edit, clean: CleanRun) -> CleanRun:
    """The clean run of the prompt that an edit takes values from, done once for each prompt."""
    assert edit.source is not None
    ids = clean.model.ensure_tokenized(edit.source)
    known: dict[tuple[int, ...], CleanRun] = clean.__dict__.setdefault("_sources", {})
    key = tuple(ids.tolist())
    if key not in known:
        known[key] = CleanRun(clean.model, ids, patterns=False)
    return known[key]


def _activations(clean: CleanRun, feature: FeatureAt, positions: list[int]) -> Tensor:
    index = torch.full((len(positions),), feature.feature_idx)
    return clean.activations(feature.layer, torch.tensor(positions), index)
