"""What an intervention sets: (layer, position, feature, value) of any of the forms that are accepted, as a table.

Letters: P positions, F features a layer, n entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.arguments import whole
from circuit_tracer.errors import InputError, shortened
from circuit_tracer.kernels.device import sent
from circuit_tracer.transcoders.base import Transcoders, described_layers
from circuit_tracer.transcoders.transcoder_set import TranscoderSet

Intervention = tuple[int | Tensor, int | slice | Tensor, int | Tensor, int | float | Tensor]


@dataclass(frozen=True)
class LayerSettings:
    """What features of one layer become, each (position, index) once: value + factor * activation without the change.

    position: the row of the pass: the position in the prompt, or in a pass over B sequences, sequence * P + position.
    """

    position: Tensor  # (n,)
    index: Tensor  # (n,), on the host: which features these are is asked again in every pass
    value: Tensor  # (n,)
    factor: Tensor | None = None  # (n,); None: 0, so that values are absolute

    def target(self, current: Tensor) -> Tensor:
        """What activations `current` (n,) become, (n,)."""
        return self.value if self.factor is None else self.value + self.factor * current


def resolve(
    interventions: Sequence[Intervention],
    transcoders: Transcoders,
    n_pos: int,
    device: torch.device,
    dtype: torch.dtype,
    attention: TranscoderSet | None = None,
) -> dict[int, LayerSettings]:
    """Settings by layer. attention: a dictionary whose features are numbered behind those of the transcoders.

    A position may be negative (from the end), a slice, or a tensor; positions, features and values broadcast as in
    indexing `activations[position, feature] = value`. Of two settings of the same feature and position the later one holds.
    Raises InputError for a layer, position or feature that does not exist, or a value that is not finite.
    """
    found: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {}
    for intervention in interventions:
        layer, position, index, value = _fields(intervention)
        layer = _layer(layer, transcoders, attention)
        entry = _entries(position, index, value, n_pos)
        if len(entry[1]) and (said := missing_feature(layer, entry[1], transcoders, attention)):
            raise InputError(f"intervention on {said}")
        found.setdefault(layer, []).append(entry)
    return {layer: _join(entries, device, dtype) for layer, entries in found.items()}


def open_ended(interventions: Sequence[Intervention]) -> list[Intervention]:
    """The interventions that go on for generated tokens, `slice(p, None)`, aimed at the one token of a step."""
    return [
        (layer, 0, index, value)
        for layer, position, index, value in map(_fields, interventions)
        if isinstance(position, slice) and position.stop is None
    ]


def _fields(intervention: Any) -> tuple[Any, Any, Any, Any]:
    if not isinstance(intervention, Sequence) or len(intervention) != 4:
        raise InputError(f"intervention {intervention!r} must be (layer, position, feature, value)")
    layer, position, index, value = intervention
    return layer, position, index, value


def missing_feature(
    layer: int, index_n: Tensor, transcoders: Transcoders, attention: TranscoderSet | None
) -> str | None:
    """Which of some features a layer does not have, in words; None if it has all."""
    known = (index_n >= 0) & (index_n < transcoders.n_features(layer))
    reach = f"from 0 to {transcoders.n_features(layer) - 1}"
    if attention is not None and attention.n_features(layer):
        first = transcoders.d_transcoder
        last = first + attention.n_features(layer) - 1
        known |= (index_n >= first) & (index_n <= last)
        reach += f", those of attention from {first} to {last}"
    return None if bool(known.all()) else f"feature {int(index_n[~known][0])}: features reach {reach}"


def split_settings(
    settings: dict[int, LayerSettings], first: int
) -> tuple[dict[int, LayerSettings], dict[int, LayerSettings]]:
    """Those of features below `first`, and the others, whose indices then begin at 0; a device is asked for nothing."""
    below: dict[int, LayerSettings] = {}
    others: dict[int, LayerSettings] = {}
    for layer, every in settings.items():
        for kept, there, start in ((below, every.index < first, 0), (others, every.index >= first, first)):
            if bool(there.all()):
                kept[layer] = replace(every, index=every.index - start)
            elif bool(there.any()):
                chosen = sent(torch.nonzero(there).flatten(), every.position.device)
                factor = None if every.factor is None else every.factor[chosen]
                kept[layer] = LayerSettings(
                    every.position[chosen], every.index[there] - start, every.value[chosen], factor
                )
    return below, others


def _layer(layer: Any, transcoders: Transcoders, attention: TranscoderSet | None) -> int:
    number = whole(layer, "an intervention's layer")
    if not 0 <= number < transcoders.n_layers:
        raise InputError(f"intervention on layer {number}: the transcoder has layers 0 to {transcoders.n_layers - 1}")
    if number not in transcoders.layers and (attention is None or number not in attention.layers):
        raise InputError(f"intervention on layer {number}: it has no features; {described_layers(transcoders)}")
    return number


def _entries(position: Any, index: Any, value: Any, n_pos: int) -> tuple[Tensor, Tensor, Tensor]:
    features = _integers(index, "feature")
    if isinstance(position, slice):
        try:
            positions = torch.tensor(range(n_pos)[position], dtype=torch.int64)
        except (TypeError, ValueError) as error:
            raise InputError(f"an intervention's positions are {position}: {error}") from error
        positions = positions.reshape(-1, *(1 for _ in features.shape))
    else:
        positions = _integers(position, "position")
    _require_inside(positions, -n_pos, n_pos, "position")
    values = _tensor(value, "value", torch.float64)
    try:
        positions, features = torch.broadcast_tensors(positions % n_pos, features)
        values = values.expand_as(positions)
    except RuntimeError as error:
        raise InputError(
            f"an intervention's positions, features and values do not fit together: shapes {tuple(positions.shape)}, "
            f"{tuple(features.shape)} and {tuple(values.shape)}"
        ) from error
    return positions.flatten(), features.flatten(), values.flatten()


def _integers(numbers: Any, name: str) -> Tensor:
    tensor = _tensor(numbers, name)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise InputError(f"an intervention's {name} must be an integer, found {shortened(numbers)}")
    return tensor.long()


def _tensor(numbers: Any, name: str, dtype: torch.dtype | None = None) -> Tensor:
    try:
        return torch.as_tensor(numbers, dtype=dtype).detach().cpu()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"an intervention's {name} is {shortened(numbers)}; give a number, or several") from error


def _require_inside(numbers: Tensor, start: int, stop: int, name: str) -> None:
    outside = numbers[(numbers < start) | (numbers >= stop)]
    if outside.numel():
        raise InputError(f"intervention on {name} {int(outside[0])}: {name}s reach from {start} to {stop - 1}")


def _join(entries: list[tuple[Tensor, Tensor, Tensor]], device: torch.device, dtype: torch.dtype) -> LayerSettings:
    position, index, value = (torch.cat(column) for column in zip(*entries, strict=True))
    # a stable sort keeps the order in which equal places were set; the last of each run is the one that holds
    width = int(index.max()) + 1 if len(index) else 1
    key, order = torch.sort(position * width + index, stable=True)
    last = torch.ones_like(key, dtype=torch.bool)
    last[:-1] = key[1:] != key[:-1]
    order = order[last]
    values = in_precision(value[order], dtype)
    return LayerSettings(sent(position[order], device), index[order], sent(values, device))


def in_precision(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values (float64) as the model computes with them; InputError for one that is not finite there."""
    made = values.to(dtype)
    if not torch.isfinite(made).all():
        worst = float(values[~torch.isfinite(made)].flatten()[0])
        raise InputError(
            f"an intervention sets a feature to {worst:g}, which is not finite in {str(dtype).removeprefix('torch.')} "
            f"(at most {torch.finfo(dtype).max:.2g})"
        )
    return made
