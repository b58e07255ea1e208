"""What every kind of transcoder offers to the engine, and circuit-tracer's methods built on that once for all kinds.

Letters: L layers, P positions, D d_model, F features a layer, T target layers of a decoder, n features in hand.
Conventions: x is the activation at the feature input hook; y += x @ S for a skip matrix S; decoder slot k of layer l
writes to layer l + k; an active feature's value is its pre-activation.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import psutil
import torch
from torch import Tensor
from torch.nn import functional

from circuit_tracer.errors import InputError
from circuit_tracer.kernels.device import sent
from circuit_tracer.kernels.encode.kept import Kept
from circuit_tracer.transcoders import encoding
from circuit_tracer.transcoders.activations import Activation, Selected
from circuit_tracer.transcoders.active import ActiveFeatures
from circuit_tracer.transcoders.frozen import FrozenModule
from circuit_tracer.transcoders.router import Router
from circuit_tracer.transcoders.weight_rows import MappedRows, WeightRows

Scan = str | list[str] | None
MEMORY_FOR_COPIES = 32  # coarse copies of encoders are kept if they take no more than this part of the machine's memory


class LazyModule(FrozenModule):
    """A frozen module some of whose matrices stay in their file; `.to(device, dtype)` applies to what is read later."""

    def __init__(self) -> None:
        super().__init__()
        self._mapped: dict[str, list[MappedRows]] = {}
        self._kept: dict[int, Kept] = {}

    @abstractmethod
    def matrix_shape(self, name: str) -> tuple[int, ...]:
        """The shape of ``W_enc`` or ``W_dec`` when it is one tensor."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "W_enc":
            self._kept.clear()
        if name in ("W_enc", "W_dec") and isinstance(value, Tensor) and name not in self._parameters:
            # What was lazy becomes a tensor in memory.
            self.check_assignment(name, torch.empty(self.matrix_shape(name), device="meta"), value)
            self._mapped.pop(name, None)
            self.set_frozen(name, value)
        else:
            super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LazyModule:
        super()._apply(fn, recurse)
        self._kept.clear()
        for stores in self._mapped.values():
            for store in stores:
                store.apply(fn)
        return self


class Transcoders(LazyModule):
    """Base of `TranscoderSet` and `CrossLayerTranscoder`: the dictionary of features of a whole model.

    Attributes: ``n_layers``, ``d_model``, ``d_transcoder`` (features a layer; the largest, where layers differ),
    ``feature_input_hook``, ``feature_output_hook``, ``scan`` (where feature pages are found), ``skip_connection``.
    """

    kind: ClassVar[str]
    exact: ClassVar[bool] = False  # what features leave of an output is other features, those that are no nodes
    n_layers: int
    d_model: int
    d_transcoder: int
    feature_input_hook: str
    feature_output_hook: str
    scan: Scan
    skip_connection: bool

    @property
    def is_autoencoder(self) -> bool:
        """Whether it writes where it reads: then it replaces no MLP, and what it reads is what it rebuilds."""
        return self.feature_input_hook == self.feature_output_hook

    # ---- which layers it has

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that have features, ascending; not all of 0 ... L-1 if the set is of some layers only."""
        return tuple(range(self.n_layers))

    @property
    def sections(self) -> tuple[tuple[str, int], ...]:
        """The dictionaries that it is made of, (name, index of the first feature in every layer); itself, or several."""
        return (("transcoder", 0),)

    def covering(self, n_layers: int) -> Transcoders:
        """The dictionary as one of a model of ``n_layers`` layers: itself, or with layers that have no features added.

        Raises InputError for features in layers that such a model does not have.
        """
        return self

    # ---- what a kind must provide

    @abstractmethod
    def target_layers(self, layer: int) -> range:
        """The layers whose MLP output a feature of ``layer`` writes to."""

    @abstractmethod
    def n_features(self, layer: int) -> int:
        """F of one layer."""

    @abstractmethod
    def encoder(self, layer: int) -> WeightRows:
        """Rows (F, D)."""

    @abstractmethod
    def decoder(self, layer: int) -> WeightRows:
        """Rows (F, T, D), T = len(target_layers(layer))."""

    @abstractmethod
    def encoder_bias(self, layer: int) -> Tensor:
        """(F,)"""

    @abstractmethod
    def decoder_bias(self, layer: int) -> Tensor:
        """(D,): added to the reconstruction of ``layer`` at every position."""

    @abstractmethod
    def skip_matrix(self, layer: int) -> Tensor | None:
        """(D, D) matrix S of the affine skip y += x @ S, or None."""

    @abstractmethod
    def activation(self, layer: int) -> Activation:
        """The activation function of one layer, for pre-activations (..., F)."""

    def router(self, layer: int) -> Router | None:
        """Which of a switch's experts encodes a token (`router.Router`); None: all features see every token."""
        return None

    def require_linear(self) -> None:
        """Raise InputError for a switch, whose activations are no linear function of the input even of active features."""
        if any(self.router(layer) is not None for layer in self.layers):
            raise InputError(
                "the dictionary is a switch: a router multiplies its activations, so that no row of a graph sums to them. Take "
                "an autoencoder of another kind; feature pages, probes, monitors, interventions and steering take this one"
            )

    def require_native(self) -> None:
        """Raise InputError for what native files have no place for; asked before anything is written or replaced."""
        if any(self.router(layer) is not None for layer in self.layers):
            raise InputError(
                "a switch has a router, which circuit-tracer's files have no place for: keep the files it came in."
            )

    @abstractmethod
    def to_safetensors(self, save_path: str | Path) -> None:
        """Write the weights in circuit-tracer's native files into the folder ``save_path``."""

    @property
    @abstractmethod
    def device(self) -> torch.device: ...

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype: ...

    def kept(self, layer: int) -> Kept:
        """What is kept of the encoder of a layer between calls; a coarse copy if those of all layers are small."""
        if layer not in self._kept:
            weights = sum(self.n_features(each) for each in self.layers) * self.d_model
            share = psutil.virtual_memory().total // MEMORY_FOR_COPIES
            self._kept[layer] = Kept(may_copy=weights * torch.bfloat16.itemsize <= share)
        return self._kept[layer]

    @property
    def coarse_bytes(self) -> int:
        """What the coarse copies of encoders take that are kept."""
        return sum(kept.n_bytes for kept in self._kept.values())

    # ---- the engine's interface

    @torch.no_grad()
    def encode_positions(self, layer: int, x_PD: Tensor) -> Selected:
        """(position, index, value), each (n,), of the features of ``layer`` active on ``x_PD``.

        Sorted by (position, index). Streams the encoder in blocks of features; computes in float32, or float64 when the
        input is. Raises InputError for a wrong shape and NumericalError when NaN or infinity appear.
        """
        self._require_layer(layer)
        return encoding.encode_in_blocks(
            x_PD.detach(),
            self.encoder(layer),
            self.encoder_bias(layer),
            self.activation(layer),
            self.router(layer),
            layer=layer,
            block_bytes=encoding.BLOCK_BYTES,
            kept=self.kept(layer),
        )

    @torch.no_grad()
    def encode_active(self, x_LPD: Tensor, zero_positions: slice | None = slice(0, 1)) -> ActiveFeatures:
        """All active features of a prompt; positions in ``zero_positions`` have none (circuit-tracer leaves out 0)."""
        self._require_inputs(x_LPD)
        layers = []
        for layer in range(self.n_layers):
            position, index, value = self.encode_positions(layer, x_LPD[layer])
            if zero_positions is not None:
                allowed = torch.ones(x_LPD.shape[1], dtype=torch.bool, device=position.device)
                allowed[zero_positions] = False
                keep = allowed[position]
                position, index, value = position[keep], index[keep], value[keep]
            layers.append((position, index, value))
        return ActiveFeatures.from_layers(layers)

    @torch.no_grad()
    def encoder_rows(self, layer: int, index: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder rows (n, D) and biases (n,) of features ``index`` (n,) of ``layer``."""
        self._require_index(layer, index)
        bias = self.encoder_bias(layer)
        return self.encoder(layer).rows(index), bias.index_select(0, sent(index, bias.device))

    def reads(self, layer: int, index: Tensor, position: Tensor, x_PD: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """What features ``index`` (n,) of ``layer`` read at ``position`` (n,): vectors (n, D) at the input hook, and what is
        added (n,). x_PD: gives the input of the prompt, for features whose read vectors depend on it.
        """
        unique, inverse = torch.unique(index, return_inverse=True)
        rows, bias = self.encoder_rows(layer, unique)
        there = sent(inverse, rows.device)
        return rows.index_select(0, there), bias.index_select(0, there.to(bias.device))

    def output_bias(self, layer: int, x_PD: Callable[[], Tensor]) -> Tensor:
        """(D,), or (P, D) where it depends on the input: what is added to the reconstruction of ``layer``."""
        return self.decoder_bias(layer)

    def rebound(self, parts: Any) -> Transcoders:
        """The dictionary for a model whose weights or modules have been exchanged: the same, unless it is made of them."""
        return self

    @torch.no_grad()
    def decoder_rows(self, layer: int, index: Tensor, target_layer: int | None = None) -> Tensor:
        """Decoder rows of features ``index`` (n,): (n, T, D), or (n, D) of what they write to ``target_layer``.

        Reads only these rows (and only that slot) when the decoder lies in a file.
        """
        self._require_index(layer, index)
        if target_layer is None:
            return self.decoder(layer).rows(index)
        targets = self.target_layers(layer)
        if target_layer not in targets:
            raise InputError(
                f"features of layer {layer} write to layers {targets.start} to {targets.stop - 1}, not {target_layer}."
            )
        return self.decoder(layer).rows(index, slot=target_layer - targets.start)

    # ---- circuit-tracer's methods

    def encode_layer(self, x: Tensor, layer_id: int, apply_activation_function: bool = True) -> Tensor:
        """Dense activations (..., F) of one layer for inputs (..., D), in the wider dtype of inputs and weights."""
        self._require_layer(layer_id)
        weight = self.encoder(layer_id).block(0, self.n_features(layer_id))
        pre = dense_pre_activations(x, weight, self.encoder_bias(layer_id), self.router(layer_id))
        return self.apply_activation_function(layer_id, pre) if apply_activation_function else pre

    def encode(self, x: Tensor) -> Tensor:
        """Dense activations (L, ..., F) for inputs (L, ..., D); zeros fill up layers that have fewer features."""
        self._require_inputs(x)
        layers = [self.encode_layer(x[layer], layer) for layer in range(self.n_layers)]
        return torch.stack([functional.pad(acts, (0, self.d_transcoder - acts.shape[-1])) for acts in layers])

    def apply_activation_function(self, layer_id: int, features: Tensor) -> Tensor:
        """Activations from pre-activations (..., F) of one layer."""
        activations: Tensor = self.activation(layer_id)(features)
        return activations

    @torch.no_grad()
    def encode_sparse(self, x: Tensor, zero_positions: slice = slice(0, 1)) -> tuple[Tensor, Tensor]:
        """Sparse activations (L, P, F) for x (L, P, D), and the encoder rows (N, D) of the active features in order."""
        active = self.encode_active(x, zero_positions)
        rows = [self.encoder_rows(layer, active.index[active.of_layer(layer)])[0] for layer in range(self.n_layers)]
        return active.to_sparse((self.n_layers, x.shape[1], self.d_transcoder)), torch.cat(rows)

    @torch.no_grad()
    def select_decoder_vectors(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Decoder rows scaled by activation, for activations (L, P, F) dense or sparse.

        Returns position, layer written to, feature (each (M,)), scaled decoder rows (M, D), and the number (M,) of the
        active feature each belongs to; a feature of a CLT has one entry for each layer it writes to, in order.
        """
        features = features if features.is_sparse else features.to_sparse()
        layer, position, index = features.coalesce().indices()
        value = features.coalesce().values()
        parts = []
        for depth in range(self.n_layers):
            (here,) = (layer == depth).nonzero(as_tuple=True)
            reach = self.target_layers(depth)
            targets = torch.arange(reach.start, reach.stop, device=layer.device)
            n_targets = len(reach)
            rows = self.decoder_rows(depth, index[here]).to(layer.device)
            parts.append(
                (
                    position[here].repeat_interleave(n_targets),
                    targets.repeat(len(here)),
                    index[here].repeat_interleave(n_targets),
                    (rows * value[here, None, None]).reshape(-1, self.d_model),
                    here.repeat_interleave(n_targets),
                )
            )
        position, layer, index, rows, source = (torch.cat(column) for column in zip(*parts, strict=True))
        return position, layer, index, rows, source

    def compute_reconstruction(
        self,
        pos_ids: Tensor,
        layer_ids: Tensor,
        decoder_vectors: Tensor,
        input_acts: Tensor | None = None,
        *,
        n_pos: int | None = None,
    ) -> Tensor:
        """Reconstructed MLP outputs (L, P, D): scaled decoder rows summed where they write, plus biases and skip.

        P comes from ``n_pos`` or from ``input_acts`` (L, P, D), which a skip connection needs anyway; circuit-tracer
        guesses it from the largest active position, which is wrong when the last positions have no active feature.
        """
        if n_pos is None:
            if input_acts is None:
                raise InputError("compute_reconstruction: give n_pos or input_acts, so that inactive positions count.")
            n_pos = input_acts.shape[1]
        flat = decoder_vectors.new_zeros(self.n_layers * n_pos, self.d_model)
        flat.index_add_(0, layer_ids * n_pos + pos_ids, decoder_vectors)
        y_LPD = flat.view(self.n_layers, n_pos, self.d_model)
        biases = torch.stack([self.decoder_bias(layer) for layer in range(self.n_layers)])
        y_LPD = y_LPD + biases.to(y_LPD)[:, None]
        if input_acts is None:
            return y_LPD
        return y_LPD + self._skip(input_acts).to(y_LPD)

    def decode(self, features: Tensor, input_acts: Tensor | None = None) -> Tensor:
        """Reconstruction (L, P, D) of activations (L, P, F), dense or sparse; with a skip connection ``input_acts`` (L, P, D)
        are needed.
        """
        if self.skip_connection and input_acts is None:
            raise InputError("these transcoders have a skip connection: decode needs input_acts (L, P, D).")
        position, layer, _, rows, _ = self.select_decoder_vectors(features)
        return self.compute_reconstruction(position, layer, rows, input_acts, n_pos=features.shape[1])

    @torch.no_grad()
    def compute_attribution_components(self, inputs: Tensor, zero_positions: slice = slice(0, 1)) -> dict[str, Tensor]:
        """Of inputs (L, P, D): the sparse activation_matrix (L, P, F), the reconstruction (L, P, D), encoder_vecs (N, D) and
        decoder_vecs (M, D) of the active features, the encoder_to_decoder_map (M,) and decoder_locations (2, M), which are
        layer and position.
        """
        features, encoders = self.encode_sparse(inputs, zero_positions)
        position, layer, _, decoders, source = self.select_decoder_vectors(features)
        return {
            "activation_matrix": features,
            "reconstruction": self.compute_reconstruction(position, layer, decoders, inputs),
            "encoder_vecs": encoders,
            "decoder_vecs": decoders,
            "encoder_to_decoder_map": source,
            "decoder_locations": torch.stack((layer, position)),
        }

    def _get_decoder_vectors(self, layer_id: int, feat_ids: Any = None) -> Tensor:
        """Decoder rows of some features (all, if None): (n, T, D), or (n, D) of a per-layer set."""
        every = torch.arange(self.n_features(layer_id))
        rows = self.decoder_rows(layer_id, every if feat_ids is None else torch.as_tensor(feat_ids))
        return rows if self.kind == "cross_layer_transcoder" else rows[:, 0]

    def compute_skip(self, layer_id: int, inputs: Tensor) -> Tensor:
        """inputs @ S of one layer; InputError when there is no skip connection."""
        skip = self.skip_matrix(layer_id)
        if skip is None:
            raise InputError("this transcoder has no skip connection; test .skip_connection before compute_skip.")
        dtype = torch.promote_types(inputs.dtype, skip.dtype)
        return inputs.to(dtype) @ skip.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """The transcoder's MLP outputs (L, P, D) for inputs (L, P, D), skip included."""
        return self.decode(self.encode(x), x)

    # ---- checks

    def _skip(self, x_LPD: Tensor) -> Tensor:
        y_LPD = torch.zeros_like(x_LPD)
        for layer in self.layers if self.skip_connection else ():
            skipped = self.compute_skip(layer, x_LPD[layer])
            y_LPD = y_LPD.to(torch.promote_types(y_LPD.dtype, skipped.dtype))
            y_LPD[layer] = skipped
        return y_LPD

    def _require_layer(self, layer: int) -> None:
        if not 0 <= layer < self.n_layers:
            raise InputError(f"layer {layer} does not exist: this transcoder has layers 0 to {self.n_layers - 1}.")

    def _require_index(self, layer: int, index: Tensor) -> None:
        self._require_layer(layer)
        if index.numel() and layer not in self.layers:
            raise InputError(f"layer {layer} has no features: {described_layers(self)}.")
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < self.n_features(layer):
            raise InputError(
                f"layer {layer} has features 0 to {self.n_features(layer) - 1}; "
                f"asked for {int(index.min())} to {int(index.max())}."
            )

    def _require_inputs(self, x: Tensor) -> None:
        if x.ndim < 2 or x.shape[0] != self.n_layers or x.shape[-1] != self.d_model:
            raise InputError(
                f"transcoder inputs must be (layers, positions, d_model) = ({self.n_layers}, P, {self.d_model}), "
                f"found {tuple(x.shape)}."
            )


def described_layers(transcoders: Transcoders) -> str:
    """ "layers 0 to 5", or, of some layers only, "layers 1, 3 and 4 of 6 have transcoders"."""
    layers, one = transcoders.layers, "an autoencoder" if transcoders.is_autoencoder else "a transcoder"
    if len(layers) == transcoders.n_layers:
        return f"layers 0 to {layers[-1]} have {one.split()[1]}s"
    named = [str(layer) for layer in layers]
    listed = " and ".join([part for part in (", ".join(named[:-1]), named[-1]) if part])
    return (
        f"of {transcoders.n_layers} layers, {listed} {f'has {one}' if len(layers) == 1 else f'have {one.split()[1]}s'}"
    )


def dense_pre_activations(x: Tensor, weight_FD: Tensor, bias_F: Tensor, router: Router | None = None) -> Tensor:
    """x @ W.T + b in the wider dtype of the inputs and the weights; with a router, times its factor."""
    dtype = torch.promote_types(x.dtype, weight_FD.dtype)
    pre = functional.linear(x.to(dtype), weight_FD.to(dtype), bias_F.to(dtype))
    return pre if router is None else pre * router.route(x).factor(0, len(bias_F)).to(dtype)
