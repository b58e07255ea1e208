"""A set of per-layer transcoders, of all layers of the model or of some.

Letters: L layers, P positions, D d_model, F features a layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from circuit_tracer.errors import InputError
from circuit_tracer.transcoders.activations import Activation, ReLU
from circuit_tracer.transcoders.base import Scan, Transcoders
from circuit_tracer.transcoders.router import Router
from circuit_tracer.transcoders.single_layer import SingleLayerTranscoder
from circuit_tracer.transcoders.weight_rows import WeightRows


class TranscoderSet(Transcoders):
    """Per-layer transcoders by layer; layers may differ in the number of features.

    A layer without one has no features, bias or skip: nothing of its MLP is explained, so that in a graph its error nodes are
    the MLP's whole output. ``layers`` are those that have one, ``n_layers`` the model's as far as it is known: `covering` says.
    ``input_shift_unknown``: their files do not say whether the decoder bias is subtracted from the input; it is not.
    Raises InputError for no layers, or layers that differ in d_model or in having a skip connection.
    """

    kind: ClassVar[str] = "transcoder_set"

    def __init__(
        self,
        transcoders: Mapping[int, SingleLayerTranscoder],
        feature_input_hook: str,
        feature_output_hook: str,
        scan: Scan = None,
        n_layers: int | None = None,
    ) -> None:
        super().__init__()
        self._layers = require_layers(transcoders, n_layers)
        lowest = self._layers[0]
        first = transcoders[lowest]
        for layer in self._layers:
            transcoder = transcoders[layer]
            if transcoder.d_model != first.d_model:
                raise InputError(
                    f"layer {layer} has d_model {transcoder.d_model}, layer {lowest} has {first.d_model}; "
                    "all transcoders of a set must fit the same model."
                )
            if (transcoder.W_skip is None) != (first.W_skip is None):
                raise InputError(
                    f"layers {lowest} and {layer}: one has a skip connection, the other has none; make them agree."
                )
        self.n_layers = self._layers[-1] + 1 if n_layers is None else n_layers
        self.transcoders = nn.ModuleList(
            transcoders[layer] if layer in transcoders else _without_features(first, layer)
            for layer in range(self.n_layers)
        )
        self.d_model = first.d_model
        self.d_transcoder = max(transcoders[layer].d_transcoder for layer in self._layers)
        self.feature_input_hook = feature_input_hook
        self.feature_output_hook = feature_output_hook
        self.scan = scan
        self.skip_connection = first.W_skip is not None
        self.input_shift_unknown = False

    def __len__(self) -> int:
        return self.n_layers

    def __getitem__(self, layer: int) -> SingleLayerTranscoder:
        return cast(SingleLayerTranscoder, self.transcoders[layer])

    def __iter__(self) -> Iterator[SingleLayerTranscoder]:
        return (self[layer] for layer in range(self.n_layers))

    @property
    def layers(self) -> tuple[int, ...]:
        return self._layers

    def covering(self, n_layers: int) -> TranscoderSet:
        if n_layers == self.n_layers:
            return self
        present = {layer: self[layer] for layer in self.layers}
        whole = TranscoderSet(present, self.feature_input_hook, self.feature_output_hook, self.scan, n_layers)
        whole.input_shift_unknown = self.input_shift_unknown
        return whole

    @property
    def device(self) -> torch.device:
        return self[self.layers[0]].device

    @property
    def dtype(self) -> torch.dtype:
        return self[self.layers[0]].dtype

    def matrix_shape(self, name: str) -> tuple[int, ...]:
        raise InputError(f"{name} belongs to one layer of a set: assign transcoders[layer].{name}.")

    def target_layers(self, layer: int) -> range:
        return range(layer, layer + 1)

    def n_features(self, layer: int) -> int:
        return self[layer].d_transcoder

    def encoder(self, layer: int) -> WeightRows:
        return self[layer].encoder

    def decoder(self, layer: int) -> WeightRows:
        return _OneSlot(self[layer].decoder)

    def encoder_bias(self, layer: int) -> Tensor:
        return self[layer].b_enc

    def decoder_bias(self, layer: int) -> Tensor:
        return self[layer].b_dec

    def skip_matrix(self, layer: int) -> Tensor | None:
        skip = self[layer].W_skip
        return None if skip is None else skip.T

    def activation(self, layer: int) -> Activation:
        return self[layer].activation_function

    def router(self, layer: int) -> Router | None:
        return self[layer].router

    def to_safetensors(self, save_dir: str | Path) -> None:
        from circuit_tracer.transcoders.formats import native_plt

        native_plt.write(self, Path(save_dir))

    # circuit-tracer names these arguments otherwise than those of a cross-layer transcoder.

    def encode(self, input_acts: Tensor) -> Tensor:
        return super().encode(input_acts)

    def decode(self, acts: Tensor, input_acts: Tensor | None = None) -> Tensor:
        return super().decode(acts, input_acts)

    def compute_attribution_components(
        self, mlp_inputs: Tensor, zero_positions: slice = slice(0, 1)
    ) -> dict[str, Tensor]:
        return super().compute_attribution_components(mlp_inputs, zero_positions)


def require_layers(layers: Mapping[int, object], n_layers: int | None = None) -> tuple[int, ...]:
    """The keys in order; InputError unless there is one, and all are layers of a model of ``n_layers`` (if that is known)."""
    if not layers:
        raise InputError("a set of transcoders needs at least one layer, found none.")
    found = tuple(sorted(layers))
    beyond = [layer for layer in found if layer < 0 or (n_layers is not None and layer >= n_layers)]
    if beyond:
        raise InputError(
            f"transcoders of layers {beyond}: the model has layers 0 to {'...' if n_layers is None else n_layers - 1}. "
            "Use the transcoders that were trained on this model."
        )
    return found


def _without_features(like: SingleLayerTranscoder, layer: int) -> SingleLayerTranscoder:
    return SingleLayerTranscoder(like.d_model, 0, ReLU(), layer, device=like.device, dtype=like.b_enc.dtype)


class _OneSlot:
    """Rows (F, D) seen as (F, 1, D): a per-layer decoder writes to one layer."""

    def __init__(self, store: WeightRows) -> None:
        self._store = store

    @property
    def shape(self) -> torch.Size:
        n_features, d_model = self._store.shape
        return torch.Size((n_features, 1, d_model))

    @property
    def dtype(self) -> torch.dtype:
        return self._store.dtype

    @property
    def device(self) -> torch.device:
        return self._store.device

    def rows(self, index: Tensor, slot: int | None = None) -> Tensor:
        rows = self._store.rows(index)
        return rows if slot is not None else rows[:, None]

    def block(self, start: int, stop: int) -> Tensor:
        return self._store.block(start, stop)[:, None]

    def whole(self) -> Tensor:
        return self._store.whole()[:, None]
