"""Per-layer transcoder: one layer's dictionary, which reads and writes at the same layer.

pre = W_enc x + b_enc, a = activation(pre), y = sum_f a_f W_dec[f] + b_dec (+ x @ W_skip.T).
Letters: P positions, D d_model, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.errors import InputError
from circuit_tracer.files.checksums import verified
from circuit_tracer.files.tensors import open_tensor_file
from circuit_tracer.transcoders import encoding
from circuit_tracer.transcoders.activations import Activation, JumpReLU, ReLU, Selected, TopK, as_activation
from circuit_tracer.transcoders.base import LazyModule, dense_pre_activations
from circuit_tracer.transcoders.layer_weights import LayerWeights
from circuit_tracer.transcoders.router import Router
from circuit_tracer.transcoders.weight_rows import MappedRows, MemoryRows, WeightRows


class SingleLayerTranscoder(LazyModule):
    """Transcoder of one layer, with circuit-tracer's constructor and methods.

    Parameters (zeros until assigned): ``W_enc`` (F, D), ``b_enc`` (F,), ``W_dec`` (F, D), ``b_dec`` (D,) and, with
    ``skip_connection``, ``W_skip`` (D, D), applied as x @ W_skip.T. With ``lazy_encoder`` or ``lazy_decoder`` that
    matrix stays in the native file ``transcoder_path``; reading the attribute then loads the whole of it.
    """

    b_enc: Tensor
    b_dec: Tensor
    W_skip: Tensor | None

    def __init__(
        self,
        d_model: int,
        d_transcoder: int,
        activation_function: Activation | Callable[[Tensor], Tensor],
        layer_idx: int,
        skip_connection: bool = False,
        transcoder_path: str | None = None,
        lazy_encoder: bool = False,
        lazy_decoder: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__()
        self.d_model = d_model
        self.d_transcoder = d_transcoder
        self.layer_idx = layer_idx
        self.transcoder_path = transcoder_path
        self.lazy_encoder = lazy_encoder
        self.lazy_decoder = lazy_decoder
        for name, lazy in (("W_enc", lazy_encoder), ("W_dec", lazy_decoder)):
            if not lazy:
                self.set_frozen(name, torch.zeros(d_transcoder, d_model, device=device, dtype=dtype))
        self.set_frozen("b_enc", torch.zeros(d_transcoder, device=device, dtype=dtype))
        self.set_frozen("b_dec", torch.zeros(d_model, device=device, dtype=dtype))
        skip = torch.zeros(d_model, d_model, device=device, dtype=dtype) if skip_connection else None
        self.set_frozen("W_skip", skip)
        self.activation_function = as_activation(activation_function)
        self.router: Router | None = None
        if transcoder_path is not None and (lazy_encoder or lazy_decoder):
            self._map_native_file(transcoder_path, dtype)

    @classmethod
    def from_weights(
        cls,
        weights: LayerWeights,
        layer_idx: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = torch.float32,
        lazy_encoder: bool = False,
        lazy_decoder: bool = False,
    ) -> SingleLayerTranscoder:
        """A transcoder of the weights a file format delivered; ``dtype`` None keeps the stored dtypes."""
        device = device or torch.get_default_device()
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        if weights.decoder.ndim != 2:
            raise InputError(f"{weights.source}: a per-layer transcoder's decoder is (F, D); this one is cross-layer.")
        new = cls(weights.d_model, weights.n_features, activation_of(weights, **place), layer_idx, device="meta")
        new.lazy_encoder, new.lazy_decoder, new.transcoder_path = lazy_encoder, lazy_decoder, weights.source
        for name, matrix, lazy in (
            ("W_enc", weights.encoder, lazy_encoder),
            ("W_dec", weights.decoder, lazy_decoder),
        ):
            if lazy:
                del new._parameters[name]
                new._mapped[name] = [MappedRows(matrix, **place)]
            else:
                new.set_frozen(name, loaded(matrix, **place))
        if weights.router is not None:
            weight, bias = (loaded(part, device, None) for part in weights.router)
            new.router = Router(weight, bias, weights.n_features)
        new.set_frozen("b_enc", loaded(weights.encoder_bias, **place))
        new.set_frozen("b_dec", loaded(weights.decoder_bias, **place))
        new.set_frozen("W_skip", None if weights.skip is None else loaded(weights.skip.T, **place))
        return new

    def _map_native_file(self, path: str, dtype: torch.dtype) -> None:
        file = open_tensor_file(path)
        for name, lazy in (("W_enc", self.lazy_encoder), ("W_dec", self.lazy_decoder)):
            if lazy:
                self._mapped[name] = [MappedRows(file.tensor(name), device=self.b_enc.device, dtype=dtype)]

    def __getattr__(self, name: str) -> Any:
        if name in ("W_enc", "W_dec") and name in self.__dict__.get("_mapped", {}):
            return self.__dict__["_mapped"][name][0].whole()
        return super().__getattr__(name)

    def matrix_shape(self, name: str) -> tuple[int, ...]:
        return (self.d_transcoder, self.d_model)

    def _rows(self, name: str) -> WeightRows:
        if name in self._parameters:
            return MemoryRows(getattr(self, name))
        if name in self._mapped:
            return self._mapped[name][0]
        raise InputError(f"layer {self.layer_idx}: {name} is lazy but no file is known; give transcoder_path.")

    @property
    def device(self) -> torch.device:
        return self.b_enc.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype encoder rows come in."""
        return self.encoder.dtype

    @property
    def encoder(self) -> WeightRows:
        """Rows (F, D)."""
        return self._rows("W_enc")

    @property
    def decoder(self) -> WeightRows:
        """Rows (F, D)."""
        return self._rows("W_dec")

    def encode(self, input_acts: Tensor, apply_activation_function: bool = True) -> Tensor:
        """Dense activations (..., F) of inputs (..., D)."""
        pre = dense_pre_activations(input_acts, self.encoder.block(0, self.d_transcoder), self.b_enc, self.router)
        return self.activation_function(pre) if apply_activation_function else pre

    @torch.no_grad()
    def encode_positions(self, x_PD: Tensor) -> Selected:
        """(position, index, value) of what is active, as `Transcoders.encode_positions`."""
        return encoding.encode_in_blocks(
            x_PD.detach(),
            self.encoder,
            self.b_enc,
            self.activation_function,
            self.router,
            layer=self.layer_idx,
        )

    @torch.no_grad()
    def encode_sparse(self, input_acts: Tensor, zero_positions: slice = slice(0, 1)) -> tuple[Tensor, Tensor]:
        """Sparse activations (P, F) of inputs (P, D), none at ``zero_positions``, and encoder rows (n, D) in order."""
        position, index, value = self.encode_positions(input_acts)
        allowed = torch.ones(input_acts.shape[0], dtype=torch.bool, device=position.device)
        allowed[zero_positions] = False
        keep = allowed[position]
        where = torch.stack((position[keep], index[keep]))
        shape = (input_acts.shape[0], self.d_transcoder)
        sparse = torch.sparse_coo_tensor(where, value[keep], shape, is_coalesced=True, check_invariants=True)
        return sparse, self.encoder.rows(index[keep])

    def _get_decoder_vectors(self, feat_ids: Any = None) -> Tensor:
        """Decoder rows (n, D) of some features (all, if None)."""
        return self.decoder.whole() if feat_ids is None else self.decoder.rows(torch.as_tensor(feat_ids))

    def decode(self, acts: Tensor, input_acts: Tensor | None = None) -> Tensor:
        """acts @ W_dec + b_dec for activations (..., F), and the skip, if there is one and its inputs (..., D) are given."""
        decoder = self.decoder.block(0, self.d_transcoder)
        dtype = torch.promote_types(acts.dtype, decoder.dtype)
        return self._with_skip(acts.to(dtype) @ decoder.to(dtype) + self.b_dec.to(dtype), input_acts)

    @torch.no_grad()
    def decode_sparse(self, sparse_acts: Tensor, input_acts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Reconstruction (P, D), as `decode`, and scaled decoder rows (n, D), of sparse activations (P, F)."""
        sparse_acts = sparse_acts.coalesce()
        position, index = sparse_acts.indices()
        rows = self.decoder.rows(index) * sparse_acts.values()[:, None]
        reconstruction = rows.new_zeros(sparse_acts.shape[0], self.d_model).index_add_(0, position, rows)
        return self._with_skip(reconstruction + self.b_dec.to(rows), input_acts), rows

    def _with_skip(self, decoded: Tensor, input_acts: Tensor | None) -> Tensor:
        if input_acts is None or self.W_skip is None:
            return decoded
        return decoded + self.compute_skip(input_acts).to(decoded)

    def compute_skip(self, input_acts: Tensor) -> Tensor:
        """input_acts @ W_skip.T; InputError when there is no skip connection."""
        if self.W_skip is None:
            raise InputError(f"layer {self.layer_idx}: this transcoder has no skip connection.")
        dtype = torch.promote_types(input_acts.dtype, self.W_skip.dtype)
        return input_acts.to(dtype) @ self.W_skip.T.to(dtype)

    def forward(self, input_acts: Tensor) -> Tensor:
        """The transcoder's MLP output (..., D), skip included."""
        return self.decode(self.encode(input_acts), input_acts)

    def to_safetensors(self, save_path: str | Path) -> None:
        """Write the native per-layer file ``save_path`` (`layer_{i}.safetensors` in a set)."""
        from circuit_tracer.transcoders.formats import native_plt

        native_plt.write_layer(self, Path(save_path))


def activation_of(weights: LayerWeights, device: torch.device | str, dtype: torch.dtype | None) -> Activation:
    """The activation function that a layer's weights describe; ReLU when they say nothing."""
    if weights.k is not None:
        return TopK(weights.k, weights.nonnegative)
    if weights.threshold is not None:
        return JumpReLU(loaded(weights.threshold, device, threshold_dtype([weights], dtype)))
    return ReLU()


def threshold_dtype(layers: Sequence[LayerWeights], dtype: torch.dtype | None) -> torch.dtype:
    """What thresholds are kept in: float32, or float64 if the other weights are; never less, whatever ``dtype`` is."""
    stored = [layer.threshold.dtype for layer in layers if layer.threshold is not None]
    return torch.promote_types(torch.float32, dtype) if dtype else reduce(torch.promote_types, stored, torch.float32)


def loaded(tensor: Tensor, device: torch.device | str, dtype: torch.dtype | None) -> Tensor:
    """A contiguous copy in memory of a (mapped) tensor."""
    return verified(tensor).to(device=device, dtype=dtype or tensor.dtype, copy=True).contiguous()
