"""A set of per-layer transcoders, one for every layer of the model.

Letters: L layers, P positions, D d_model, F features a layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from circuit_tracer.errors import InputError
from circuit_tracer.transcoders.activations import Activation
from circuit_tracer.transcoders.base import Scan, Transcoders
from circuit_tracer.transcoders.single_layer import SingleLayerTranscoder
from circuit_tracer.transcoders.weight_rows import WeightRows


class TranscoderSet(Transcoders):
    """Per-layer transcoders for layers 0 ... L-1; layers may differ in the number of features.

    Raises InputError for missing layers, or layers that differ in d_model or in having a skip connection.
    """

    kind: ClassVar[str] = "transcoder_set"

    def __init__(
        self,
        transcoders: Mapping[int, SingleLayerTranscoder],
        feature_input_hook: str,
        feature_output_hook: str,
        scan: Scan = None,
    ) -> None:
        super().__init__()
        require_all_layers(transcoders)
        ordered = [transcoders[layer] for layer in range(len(transcoders))]
        first = ordered[0]
        for layer, transcoder in enumerate(ordered):
            if transcoder.d_model != first.d_model:
                raise InputError(
                    f"layer {layer} has d_model {transcoder.d_model}, layer 0 has {first.d_model}; "
                    "all transcoders of a set must fit the same model."
                )
            if (transcoder.W_skip is None) != (first.W_skip is None):
                raise InputError(
                    f"layers 0 and {layer}: one has a skip connection, the other has none; make them agree."
                )
        self.transcoders = nn.ModuleList(ordered)
        self.n_layers = len(ordered)
        self.d_model = first.d_model
        self.d_transcoder = max(transcoder.d_transcoder for transcoder in ordered)
        self.feature_input_hook = feature_input_hook
        self.feature_output_hook = feature_output_hook
        self.scan = scan
        self.skip_connection = first.W_skip is not None

    def __len__(self) -> int:
        return self.n_layers

    def __getitem__(self, layer: int) -> SingleLayerTranscoder:
        return cast(SingleLayerTranscoder, self.transcoders[layer])

    def __iter__(self) -> Iterator[SingleLayerTranscoder]:
        return (self[layer] for layer in range(self.n_layers))

    @property
    def device(self) -> torch.device:
        return self[0].device

    @property
    def dtype(self) -> torch.dtype:
        return self[0].dtype

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


def require_all_layers(layers: Mapping[int, object]) -> None:
    """Raise InputError unless the keys are 0 ... L-1 with nothing missing."""
    if not layers:
        raise InputError("a set of transcoders needs at least one layer, found none.")
    missing = sorted(set(range(max(layers) + 1)) - set(layers))
    if missing or min(layers) < 0:
        raise InputError(
            f"every layer needs a transcoder: found layers {sorted(layers)}, missing {missing}. "
            "Supply the missing ones."
        )


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
