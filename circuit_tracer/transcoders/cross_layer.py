"""Cross-layer transcoder (CLT): features read at one layer and write to that layer and all later ones.

pre_l = W_enc_l x_l + b_enc_l, a_l = activation(pre_l), y_t = sum_{l <= t} sum_f a_{l,f} W_dec_l[f, t - l] + b_dec_t
(+ x_t @ W_skip_t). Letters: L layers, P positions, D d_model, F features a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from circuit_tracer.errors import FileFormatError, InputError
from circuit_tracer.files.checksums import verified
from circuit_tracer.files.tensors import open_tensor_file
from circuit_tracer.transcoders.activations import Activation, JumpReLU, as_activation
from circuit_tracer.transcoders.base import Scan, Transcoders
from circuit_tracer.transcoders.layer_weights import LayerWeights, require_uniform
from circuit_tracer.transcoders.single_layer import activation_of, loaded, threshold_dtype
from circuit_tracer.transcoders.weight_rows import MappedRows, MemoryRows, WeightRows


class CrossLayerTranscoder(Transcoders):
    """CLT with circuit-tracer's constructor and methods.

    Parameters (zeros until assigned): ``W_enc`` (L, F, D), ``b_enc`` (L, F), ``b_dec`` (L, D), ``W_dec`` a list of
    (F, L - l, D) for each layer l, ``W_skip`` (L, D, D) applied as x @ W_skip[l], and for "jump_relu" the
    ``activation_function.threshold`` (L, 1, F). ``activation_function`` may also be an Activation, such as TopK(32).
    Lazy matrices stay in the native files of ``clt_path``; reading the attribute loads all of it.
    """

    kind: ClassVar[str] = "cross_layer_transcoder"
    b_enc: Tensor
    b_dec: Tensor
    W_skip: Tensor | None

    def __init__(
        self,
        n_layers: int,
        d_transcoder: int,
        d_model: int,
        activation_function: str | Activation = "relu",
        skip_connection: bool = False,
        lazy_decoder: bool = True,
        lazy_encoder: bool = False,
        feature_input_hook: str = "hook_resid_mid",
        feature_output_hook: str = "hook_mlp_out",
        scan: Scan = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.bfloat16,
        clt_path: str | None = None,
    ) -> None:
        super().__init__()
        self.n_layers = n_layers
        self.d_transcoder = d_transcoder
        self.d_model = d_model
        self.lazy_decoder = lazy_decoder
        self.lazy_encoder = lazy_encoder
        self.clt_path = clt_path
        self.feature_input_hook = feature_input_hook
        self.feature_output_hook = feature_output_hook
        self.skip_connection = skip_connection
        self.scan = scan
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.set_frozen("b_enc", torch.zeros(n_layers, d_transcoder, **place))
        self.set_frozen("b_dec", torch.zeros(n_layers, d_model, **place))
        if not lazy_encoder:
            self.set_frozen("W_enc", torch.zeros(n_layers, d_transcoder, d_model, **place))
        if not lazy_decoder:
            self._set_decoders([torch.zeros(d_transcoder, n_layers - i, d_model, **place) for i in range(n_layers)])
        self.set_frozen("W_skip", torch.zeros(n_layers, d_model, d_model, **place) if skip_connection else None)
        self.activation_function = _named_activation(activation_function, (n_layers, 1, d_transcoder), place)
        if clt_path is not None and (lazy_encoder or lazy_decoder):
            self._map_native_files(Path(clt_path), dtype)

    @classmethod
    def from_weights(
        cls,
        layers: list[LayerWeights],
        *,
        feature_input_hook: str = "hook_resid_mid",
        feature_output_hook: str = "hook_mlp_out",
        scan: Scan = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = torch.float32,
        lazy_encoder: bool = False,
        lazy_decoder: bool = True,
    ) -> CrossLayerTranscoder:
        """A CLT of the weights a file format delivered, layer by layer; ``dtype`` None keeps the stored dtypes.

        Raises FileFormatError when layers disagree or a decoder does not write to all layers from its own on.
        """
        require_uniform(layers)
        _require_cross_layer(layers)
        device = device or torch.get_default_device()
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        n_layers, first = len(layers), layers[0]
        new = cls(
            n_layers, first.n_features, first.d_model, activation_of(first, **place), first.skip is not None,
            lazy_decoder=True, lazy_encoder=True, feature_input_hook=feature_input_hook,
            feature_output_hook=feature_output_hook, scan=scan, device="meta",
        )  # fmt: skip
        new.lazy_encoder, new.lazy_decoder, new.clt_path = lazy_encoder, lazy_decoder, str(Path(first.source).parent)
        new.set_frozen("b_enc", _stacked([layer.encoder_bias for layer in layers], **place))
        new.set_frozen("b_dec", _stacked([layer.decoder_bias for layer in layers], **place))
        skips = [layer.skip for layer in layers if layer.skip is not None]
        new.set_frozen("W_skip", _stacked(skips, **place) if skips else None)
        thresholds = [layer.threshold.expand(first.n_features) for layer in layers if layer.threshold is not None]
        if thresholds:
            new.activation_function = JumpReLU(_stacked(thresholds, device, threshold_dtype(layers, dtype))[:, None])
        if lazy_encoder:
            new._mapped["W_enc"] = [MappedRows(layer.encoder, **place) for layer in layers]
        else:
            new.set_frozen("W_enc", _stacked([layer.encoder for layer in layers], **place))
        if lazy_decoder:
            new._mapped["W_dec"] = [MappedRows(layer.decoder, **place) for layer in layers]
        else:
            new._set_decoders([loaded(layer.decoder, **place) for layer in layers])
        return new

    def _map_native_files(self, folder: Path, dtype: torch.dtype) -> None:
        for name, lazy in (("W_enc", self.lazy_encoder), ("W_dec", self.lazy_decoder)):
            if lazy:
                names = [f"{name}_{layer}" for layer in range(self.n_layers)]
                tensors = [open_tensor_file(folder / f"{each}.safetensors").tensor(each) for each in names]
                self._mapped[name] = [MappedRows(tensor, self.b_enc.device, dtype) for tensor in tensors]

    # ---- attributes

    def __getattr__(self, name: str) -> Any:
        mapped = self.__dict__.get("_mapped", {})
        if name == "W_enc" and name in mapped:
            return torch.stack([store.whole() for store in mapped[name]])
        if name == "W_dec" and name in mapped:
            return [store.whole() for store in mapped[name]]
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "W_dec" and isinstance(value, Sequence) and not isinstance(value, nn.Module):
            self._set_decoders(list(value))
        else:
            super().__setattr__(name, value)

    def matrix_shape(self, name: str) -> tuple[int, ...]:
        if name == "W_dec":
            raise InputError("W_dec of a CLT is a list of tensors, one a layer.")
        return (self.n_layers, self.d_transcoder, self.d_model)

    def _set_decoders(self, decoders: list[Tensor]) -> None:
        expected = [(self.d_transcoder, self.n_layers - layer, self.d_model) for layer in range(self.n_layers)]
        found = [tuple(decoder.shape) for decoder in decoders]
        if found != expected:
            raise InputError(f"W_dec must be a list of tensors of shapes {expected}, found {found}.")
        frozen = nn.ParameterList([nn.Parameter(decoder.detach(), requires_grad=False) for decoder in decoders])
        self._mapped.pop("W_dec", None)
        self.lazy_decoder = False
        super().__setattr__("W_dec", frozen)

    @property
    def device(self) -> torch.device:
        return self.b_enc.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype encoder rows come in."""
        return self.encoder(0).dtype

    # ---- the engine's interface

    def target_layers(self, layer: int) -> range:
        return range(layer, self.n_layers)

    def n_features(self, layer: int) -> int:
        return self.d_transcoder

    def encoder(self, layer: int) -> WeightRows:
        if "W_enc" in self._parameters:
            return MemoryRows(self.W_enc[layer])
        return self._mapped_store("W_enc", layer)

    def decoder(self, layer: int) -> WeightRows:
        if "W_dec" in self._modules:
            return MemoryRows(self.W_dec[layer])
        return self._mapped_store("W_dec", layer)

    def _mapped_store(self, name: str, layer: int) -> WeightRows:
        if name not in self._mapped:
            raise InputError(f"{name} is lazy but no files are known: give clt_path, or build with lazy_...=False.")
        return self._mapped[name][layer]

    def encoder_bias(self, layer: int) -> Tensor:
        return self.b_enc[layer]

    def decoder_bias(self, layer: int) -> Tensor:
        return self.b_dec[layer]

    def skip_matrix(self, layer: int) -> Tensor | None:
        return None if self.W_skip is None else self.W_skip[layer]

    def activation(self, layer: int) -> Activation:
        function = self.activation_function
        return function.layer(layer) if isinstance(function, JumpReLU) else function

    def to_safetensors(self, save_path: str | Path) -> None:
        from circuit_tracer.transcoders.formats import native_clt

        native_clt.write(self, Path(save_path))


def _named_activation(activation: str | Activation, shape: tuple[int, int, int], place: dict[str, Any]) -> Activation:
    return JumpReLU(torch.zeros(shape, **place)) if activation == "jump_relu" else as_activation(activation)


def _require_cross_layer(layers: list[LayerWeights]) -> None:
    n_layers, n_features = len(layers), layers[0].n_features
    for depth, layer in enumerate(layers):
        if layer.n_features != n_features:
            raise FileFormatError(
                f"{layer.source}: layer {depth} has {layer.n_features} features, layer 0 has {n_features}; "
                "the layers of a CLT must have equally many."
            )
        if tuple(layer.decoder.shape[1:-1]) != (n_layers - depth,):
            raise FileFormatError(
                f"{layer.source}: the decoder of layer {depth} has shape {tuple(layer.decoder.shape)}; with {n_layers} "
                f"layers (F, {n_layers - depth}, D) is expected. Is a layer's file missing?"
            )


def _stacked(tensors: list[Tensor], device: torch.device | str, dtype: torch.dtype | None) -> Tensor:
    """Stack of mapped tensors in memory, copied one by one so that no second copy of all of them exists."""
    shape = (len(tensors), *tensors[0].shape)
    widest = reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    stack = torch.empty(shape, device=device, dtype=dtype or widest)
    for slot, tensor in zip(stack, tensors, strict=True):
        slot.copy_(verified(tensor))
    return stack
