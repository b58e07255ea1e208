"""One layer's weights as every file format delivers them: same orientation, same names, usually still unread.

Letters: F features, T target layers, D d_model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from circuit_tracer.errors import FileFormatError, NumericalError
from circuit_tracer.transcoders.places import Place


@dataclass(frozen=True)
class LayerWeights:
    """Weights of one layer; matrices may be views of a mapped file.

    ``encoder`` (F, D), ``decoder`` (F, D) or (F, T, D) with slot k writing to layer + k, ``encoder_bias`` (F,),
    ``decoder_bias`` (D,), ``threshold`` (F,) or scalar for JumpReLU, ``skip`` (D, D) applied as x @ skip,
    ``k`` for TopK (``nonnegative``: ReLU before the choice). ``source`` names the file in messages. ``reads`` and ``writes``
    are where the file says that it stands, ``layer`` the model's layer that it says it belongs to; None: it does not say.
    ``model_name``: the model that it says it is of. ``input_shift_unknown``: whether the decoder bias is subtracted from the
    input, it does not say either. ``router``: of a switch, rows (N, D) and biases (N,) of its experts (`router.Router`).
    Raises FileFormatError when shapes disagree, NumericalError when a bias or threshold is NaN, or a bias adds infinity.
    """

    source: str
    encoder: Tensor
    decoder: Tensor
    encoder_bias: Tensor
    decoder_bias: Tensor
    threshold: Tensor | None = None
    skip: Tensor | None = None
    k: int | None = None
    nonnegative: bool = False
    reads: Place | None = None
    writes: Place | None = None
    layer: int | None = None
    model_name: str | None = None
    input_shift_unknown: bool = False
    router: tuple[Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        if self.encoder.ndim != 2:
            raise FileFormatError(f"{self.source}: the encoder must be (F, D), found {tuple(self.encoder.shape)}.")
        n_features, d_model = self.encoder.shape
        self._expect("encoder", self.encoder, (n_features, d_model))
        last = (d_model,) if self.decoder.ndim == 2 else (*self.decoder.shape[1:2], d_model)
        self._expect("decoder", self.decoder, (n_features, *last))
        self._expect("encoder bias", self.encoder_bias, (n_features,))
        self._expect("decoder bias", self.decoder_bias, (d_model,))
        if self.skip is not None:
            self._expect("skip matrix", self.skip, (d_model, d_model))
        if self.threshold is not None and self.threshold.ndim:
            self._expect("threshold", self.threshold, (n_features,))
        if self.router is not None:
            self._expect("router", self.router[0], (len(self.router[1]), d_model))
            self._expect("router bias", self.router[1], (len(self.router[1]),))
        if self.threshold is not None and self.k is not None:
            raise FileFormatError(
                f"{self.source}: it has a threshold and k = {self.k}; a transcoder has JumpReLU or TopK, not both."
            )
        small = {"encoder bias": self.encoder_bias, "decoder bias": self.decoder_bias, "threshold": self.threshold}
        for name, tensor in small.items():
            if tensor is not None and torch.isnan(tensor).any():
                raise NumericalError(f"{self.source}: the {name} contains NaN. The file is damaged or ill-trained.")
        # A feature that never is active may have a bias of -inf, or an infinite threshold.
        if torch.isposinf(self.encoder_bias).any() or torch.isinf(self.decoder_bias).any():
            raise NumericalError(f"{self.source}: a bias is infinite. The file is damaged or ill-trained.")

    def _expect(self, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
        if tuple(tensor.shape) != shape or not tensor.is_floating_point():
            raise FileFormatError(
                f"{self.source}: the {name} is {tensor.dtype} of shape {tuple(tensor.shape)}; expected floating point "
                f"of shape {shape}, to fit the encoder {tuple(self.encoder.shape)}."
            )

    @property
    def n_features(self) -> int:
        return int(self.encoder.shape[0])

    @property
    def d_model(self) -> int:
        return int(self.encoder.shape[1])

    @property
    def activation_name(self) -> str | None:
        """What the file itself says about the activation; None when it says nothing."""
        if self.k is not None:
            return "topk"
        return "jump_relu" if self.threshold is not None else None


def require_uniform(layers: list[LayerWeights]) -> None:
    """Raise FileFormatError unless all layers agree on d_model, activation kind and presence of a skip matrix."""
    if not layers:
        raise FileFormatError("no layers found. A transcoder needs one file (or pair of files) a layer.")
    first = layers[0]
    for depth, layer in enumerate(layers):
        for what, expected, found in (
            ("d_model", first.d_model, layer.d_model),
            ("activation", first.activation_name or "none stored", layer.activation_name or "none stored"),
            ("k", first.k, layer.k),
            ("a ReLU before TopK", first.nonnegative, layer.nonnegative),
            ("skip matrix", _presence(first.skip), _presence(layer.skip)),
            ("experts", _experts(first), _experts(layer)),
        ):
            if expected != found:
                raise FileFormatError(
                    f"layers disagree on {what}: layer 0 ({first.source}) has {expected}, "
                    f"layer {depth} ({layer.source}) has {found}. All layers of one transcoder must agree."
                )


def _experts(layer: LayerWeights) -> int:
    return 0 if layer.router is None else len(layer.router[1])


def _presence(tensor: Tensor | None) -> str:
    return "none" if tensor is None else "one"
