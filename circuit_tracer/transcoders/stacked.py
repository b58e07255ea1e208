"""Transcoders stacked on one another: what a second dictionary adds to the first, with the features of both.

    y_hat = sum of what each gives        features of the second are numbered behind those of the first, in every layer

Made for transcoder adapters (arXiv 2602.20904), which explain by how much a fine-tuned MLP differs from the base model's, and
for any dictionary of what another leaves. All read and write at the same places.
Letters: P positions, D d_model, F features a layer, T target layers, n features in hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from circuit_tracer.errors import CompatibilityError, InputError
from circuit_tracer.transcoders.activations import Activation, Selected, Selector
from circuit_tracer.transcoders.adapters import is_adapter, load_adapter
from circuit_tracer.transcoders.base import Transcoders
from circuit_tracer.transcoders.loading import load_transcoder_from_hub
from circuit_tracer.transcoders.weight_rows import WeightRows


class Part(NamedTuple):
    """One dictionary of a stack, and the index of its first feature in every layer."""

    name: str
    dictionary: Transcoders
    first: int


class Stacked(Transcoders):
    """Several dictionaries as one. names: what people call them; the first of `base` and `adapter` by default.

    Raises CompatibilityError for dictionaries that read or write at different places, or of different width or depth.
    """

    kind: ClassVar[str] = "stacked_transcoders"

    def __init__(self, dictionaries: Sequence[Transcoders], names: Sequence[str] = ("transcoder", "adapter")) -> None:
        super().__init__()
        if len(dictionaries) != len(names) or len(dictionaries) < 2:
            raise InputError(
                f"{len(dictionaries)} dictionaries with names {list(names)}: give two or more, each with its name"
            )
        base = dictionaries[0]
        for name, each in zip(names, dictionaries, strict=True):
            for what in ("feature_input_hook", "feature_output_hook", "d_model"):
                if getattr(each, what) != getattr(base, what):
                    raise CompatibilityError(
                        f"{name} has {what.removeprefix('feature_')} {getattr(each, what)}, {names[0]} has "
                        f"{getattr(base, what)}; dictionaries that are stacked read and write at the same places"
                    )
        self.n_layers = max(each.n_layers for each in dictionaries)
        self.dictionaries = nn.ModuleList(each.covering(self.n_layers) for each in dictionaries)
        if any(each.n_layers != self.n_layers for each in self._each()):
            raise CompatibilityError(
                f"dictionaries have {[each.n_layers for each in dictionaries]} layers; cross-layer ones must have every one"
            )
        self.names = tuple(names)
        self.d_model, self.scan = base.d_model, base.scan
        self.d_transcoder = sum(each.d_transcoder for each in dictionaries)
        self.feature_input_hook, self.feature_output_hook = base.feature_input_hook, base.feature_output_hook
        self.skip_connection = any(each.skip_connection for each in dictionaries)
        self.input_shift_unknown = False
        self.exact = any(each.exact for each in dictionaries)  # type: ignore[misc]

    def _each(self) -> list[Transcoders]:
        return [cast(Transcoders, each) for each in self.dictionaries]

    def stack(self) -> list[Part]:
        """The dictionaries with their first features."""
        found, first = [], 0
        for name, each in zip(self.names, self._each(), strict=True):
            found.append(Part(name, each, first))
            first += each.d_transcoder
        return found

    @property
    def coarse_bytes(self) -> int:
        return sum(each.coarse_bytes for each in self._each())

    @property
    def sections(self) -> tuple[tuple[str, int], ...]:
        return tuple((part.name, part.first) for part in self.stack())

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted({layer for each in self._each() for layer in each.layers}))

    def covering(self, n_layers: int) -> Transcoders:
        return self if n_layers == self.n_layers else Stacked([e.covering(n_layers) for e in self._each()], self.names)

    def target_layers(self, layer: int) -> range:
        return max((each.target_layers(layer) for each in self._each()), key=len)

    def n_features(self, layer: int) -> int:
        return max(part.first + part.dictionary.n_features(layer) for part in self.stack())

    def encoder(self, layer: int) -> WeightRows:
        parts = [(part.first, part.dictionary.encoder(layer)) for part in self.stack()]
        return _Rows(parts, torch.Size((self.n_features(layer), self.d_model)))

    def decoder(self, layer: int) -> WeightRows:
        parts = [(part.first, part.dictionary.decoder(layer)) for part in self.stack()]
        return _Rows(parts, torch.Size((self.n_features(layer), len(self.target_layers(layer)), self.d_model)))

    def encoder_bias(self, layer: int) -> Tensor:
        own = [(part.first, part.dictionary.encoder_bias(layer)) for part in self.stack()]
        bias = own[0][1].new_zeros(self.n_features(layer))
        for first, part in own:
            bias[first : first + len(part)] = part.to(bias)
        return bias

    def decoder_bias(self, layer: int) -> Tensor:
        return torch.stack([each.decoder_bias(layer).to(self.device) for each in self._each()]).sum(0)

    def skip_matrix(self, layer: int) -> Tensor | None:
        skips = [skip for each in self._each() if (skip := each.skip_matrix(layer)) is not None]
        return torch.stack(skips).sum(0) if skips else None

    def reads(self, layer: int, index: Tensor, position: Tensor, x_PD: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        like = x_PD()
        vector, bias = like.new_zeros(len(index), self.d_model), like.new_zeros(len(index))
        for part in self.stack():
            own = (index >= part.first) & (index < part.first + part.dictionary.n_features(layer))
            if bool(own.any()):
                rows, constants = part.dictionary.reads(layer, index[own] - part.first, position[own], x_PD)
                place = own.to(vector.device)
                vector[place], bias[place] = rows.to(vector), constants.to(bias)
        return vector, bias

    def output_bias(self, layer: int, x_PD: Callable[[], Tensor]) -> Tensor:
        biases = [each.output_bias(layer, x_PD).to(self.device) for each in self._each()]
        return torch.stack(torch.broadcast_tensors(*biases)).sum(0)

    def rebound(self, parts: Any) -> Transcoders:
        return Stacked([each.rebound(parts) for each in self._each()], self.names)

    def activation(self, layer: int) -> Activation:
        return _ByPart(
            [(p.first, p.dictionary.n_features(layer), p.dictionary.activation(layer)) for p in self.stack()]
        )

    def encode_positions(self, layer: int, x_PD: Tensor) -> Selected:
        found = []
        for part in self.stack():
            if part.dictionary.n_features(layer):
                position, index, value = part.dictionary.encode_positions(layer, x_PD)
                found.append((position, index + part.first, value))
        if not found:
            return self._each()[0].encode_positions(layer, x_PD)
        position, index, value = (torch.cat(column) for column in zip(*found, strict=True))
        order = torch.argsort(position, stable=True)  # features of a position stay in order
        return position[order], index[order], value[order]

    def require_native(self) -> None:
        raise InputError(
            "dictionaries that are stacked are saved one by one: dictionary.to_safetensors(folder) of each"
        )

    def to_safetensors(self, save_path: str | Path) -> None:
        self.require_native()

    def matrix_shape(self, name: str) -> tuple[int, ...]:
        raise InputError(f"{name} belongs to one of the stacked dictionaries: assign it there.")

    @property
    def device(self) -> torch.device:
        return self._each()[0].device

    @property
    def dtype(self) -> torch.dtype:
        return self._each()[0].dtype


def stacked(base: Transcoders, adapter: str | Path | Transcoders, **how: Any) -> Stacked:
    """An adapter on its base: transcoders, where they are, or a checkpoint of a model with adapters. how: device and dtype."""
    if not isinstance(adapter, Transcoders):
        adapter = load_adapter(adapter, **how) if is_adapter(adapter) else load_transcoder_from_hub(adapter, **how)[0]
    return Stacked([base, adapter])


class _Rows:
    """Rows of several matrices, one behind the other; zeros between them, and where a decoder has fewer slots."""

    def __init__(self, parts: Sequence[tuple[int, WeightRows]], shape: torch.Size) -> None:
        self._parts, self.shape = parts, shape
        self.dtype, self.device = parts[0][1].dtype, parts[0][1].device

    def rows(self, index: Tensor, slot: int | None = None) -> Tensor:
        inner = self.shape[1:] if slot is None else self.shape[2:]
        found = torch.zeros(len(index), *inner, dtype=self.dtype, device=self.device)
        for first, store in self._parts:
            here = ((index >= first) & (index < first + store.shape[0])).to(index.device)
            if not bool(here.any()):
                continue
            place = torch.nonzero(here).flatten().to(self.device)
            if len(self.shape) == 2:
                found[place] = store.rows(index[here] - first).to(found)
            elif slot is None:
                rows = store.rows(index[here] - first).to(found)
                found[place, : rows.shape[1]] = rows
            elif slot < store.shape[1]:
                found[place] = store.rows(index[here] - first, slot).to(found)
        return found

    def block(self, start: int, stop: int) -> Tensor:
        return self.rows(torch.arange(start, min(stop, self.shape[0]), device=self.device))

    def whole(self) -> Tensor:
        return self.block(0, self.shape[0])


class _ByPart(Activation):
    """Each dictionary's own activation function, on its own features; zero between them."""

    name = "by_part"

    def __init__(self, parts: Sequence[tuple[int, int, Activation]]) -> None:
        super().__init__()
        self.own = nn.ModuleList(function for _, _, function in parts)
        self.places = [(first, first + count) for first, count, _ in parts]

    def forward(self, pre: Tensor) -> Tensor:
        found = torch.zeros_like(pre)
        for (start, stop), function in zip(self.places, self.own, strict=True):
            if stop > start:
                found[..., start:stop] = cast(Callable[[Tensor], Tensor], function)(pre[..., start:stop])
        return found

    def selector(self) -> Selector:
        raise InputError("stacked dictionaries choose their active features one by one (encode_positions)")
