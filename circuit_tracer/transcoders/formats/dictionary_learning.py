"""dictionary_learning's autoencoders: `ae.pt`, a state dict, with config.json, whose `trainer.dict_class` says which.

Linear layers have `encoder.weight` (F, D) and `decoder.weight` (D, F); JumpReLU and Matryoshka `W_enc` (D, F), `W_dec` (F, D).
All but JumpReLU and AutoEncoderNew subtract the decoder's bias from the input, which is called `bias`, `decoder_bias` or
`b_dec`. BatchTopK and Matryoshka keep what is above one learned threshold, TopK the k largest, after a ReLU.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from circuit_tracer.errors import FileFormatError, shortened
from circuit_tracer.transcoders.formats.folding import Encoding, gated_as_jump, shifted_bias
from circuit_tracer.transcoders.formats.format import Format, each
from circuit_tracer.transcoders.formats.layer_file import Harmless, LayerFile
from circuit_tracer.transcoders.layer_weights import LayerWeights
from circuit_tracer.transcoders.places import Place, require_one_place

SAYS = ("trainer.dict_class", "trainer.trainer_class")
# The submodule of the library's scripts -> its place; with io "in", a block's input.
_PLACES = {"resid_post": "hook_resid_post", "resid": "hook_resid_post", "resid_pre": "hook_resid_pre",
           "attention_out": "attn.hook_out", "attn_out": "attn.hook_out", "mlp_out": "mlp.hook_out"}  # fmt: skip
_SUBMODULE = re.compile(rf"({'|'.join(_PLACES)})_layer_(\d+)")


def _linear(file: LayerFile) -> Encoding:
    return Encoding(file.matrix("encoder.weight"), file.tensor("encoder.bias"))


def _gated(file: LayerFile) -> Encoding:
    encoder = file.matrix("encoder.weight")
    biases = (file.shaped(name, len(encoder)) for name in ("gate_bias", "mag_bias", "r_mag"))
    return Encoding(*gated_as_jump(encoder, *biases))


def _topk(file: LayerFile) -> Encoding:
    return Encoding(file.matrix("encoder.weight"), file.tensor("encoder.bias"), k=file.integer("k"))


def _batch_topk(file: LayerFile) -> Encoding:
    threshold = file.tensor("threshold")
    if threshold.numel() != 1 or not float(threshold) >= 0:
        raise FileFormatError(
            f"{file.path}: its threshold is {shortened(threshold.tolist())}; one number of at least 0 is expected, which the "
            "library learns as it trains. Train on, or measure it there."
        )
    bias = file.tensor("encoder.bias" if "encoder.bias" in file else "b_enc")
    encoder = file.matrix("encoder.weight") if "encoder.weight" in file else file.matrix("W_enc").T
    return Encoding(encoder, bias, threshold.reshape(()).float().expand(len(encoder)))


def _jump(file: LayerFile) -> Encoding:
    return Encoding(file.matrix("W_enc").T, file.tensor("b_enc"), file.tensor("threshold").clamp(min=0))


@dataclass(frozen=True)
class _Class:
    """A class of the library: its tensors, how it encodes, which bias is the decoder's, whether that is taken off the input,
    and what it has of training, which changes nothing.
    """

    tensors: set[str]
    encoding: Callable[[LayerFile], Encoding]
    bias: str
    shifts: bool = True
    idle: tuple[str, ...] = ()


_LAYERS = {"encoder.weight", "encoder.bias", "decoder.weight"}
_CLASSES = {
    "AutoEncoder": _Class(_LAYERS | {"bias"}, _linear, "bias"),
    "AutoEncoderNew": _Class(_LAYERS | {"decoder.bias"}, _linear, "decoder.bias", shifts=False),
    "GatedAutoEncoder": _Class(
        {"decoder_bias", "encoder.weight", "r_mag", "gate_bias", "mag_bias", "decoder.weight"}, _gated, "decoder_bias"
    ),
    "AutoEncoderTopK": _Class(_LAYERS | {"b_dec", "k"}, _topk, "b_dec", idle=("threshold",)),
    "BatchTopKSAE": _Class(_LAYERS | {"b_dec", "k", "threshold"}, _batch_topk, "b_dec", idle=("k",)),
    "MatryoshkaBatchTopKSAE": _Class(
        {"W_enc", "W_dec", "b_enc", "b_dec", "k", "threshold", "group_sizes"}, _batch_topk, "b_dec",
        idle=("k", "group_sizes"),
    ),
    "JumpReluAutoEncoder": _Class({"W_enc", "W_dec", "b_enc", "b_dec", "threshold"}, _jump, "b_dec", shifts=False),
}  # fmt: skip


def detect(file: LayerFile) -> bool:
    """By what config.json says, or as one of the classes whose tensors nobody else has."""
    return file.has_key(*SAYS) or (
        "decoder.weight" in file and bool(_fitting(file, None)) and "decoder.bias" not in file
    )


def _fitting(file: LayerFile, named: object) -> list[_Class]:
    """The class that is named, if the tensors are its, or that the tensors are."""
    every = _CLASSES if named is None else {name: each for name, each in _CLASSES.items() if name == named}
    return [
        each
        for each in every.values()
        if each.tensors <= file.names and (named is not None or file.names <= each.tensors | {*each.idle})
    ]


def read_layer(file: LayerFile) -> LayerWeights:
    kind = _class_of(file)
    for name in kind.idle:
        file.optional(name)
    given, decoder_bias = kind.encoding(file), file.tensor(kind.bias)
    shifts = file.key("trainer.apply_b_dec_to_input", default=kind.shifts)
    if not isinstance(shifts, bool):
        raise FileFormatError(f"{file.path}: apply_b_dec_to_input is {shortened(shifts)}; true or false is expected.")
    bias = shifted_bias(given.encoder_FD, given.bias_F, decoder_bias) if shifts else given.bias_F
    place, layer = _place(file)
    model_name = file.key("trainer.lm_name")
    return LayerWeights(
        source=str(file.path),
        encoder=given.encoder_FD,
        decoder=file.matrix("decoder.weight").T if "decoder.weight" in file else file.matrix("W_dec"),
        encoder_bias=bias,
        decoder_bias=decoder_bias,
        threshold=given.threshold,
        k=given.k,
        nonnegative=given.k is not None,
        reads=place,
        writes=place,
        layer=layer,
        model_name=model_name if isinstance(model_name, str) else None,
    )


def _class_of(file: LayerFile) -> _Class:
    named = file.key("trainer.dict_class")
    fitting = _fitting(file, named)
    if len(fitting) != 1:
        raise FileFormatError(
            f"{file.path}: config.json says dict_class {shortened(named)}, and the tensors are {file.describe()}; known are "
            f"{', '.join(_CLASSES)}."
        )
    file.expect("trainer.activation_dim", _width(file), "the decoder's bias has")
    return fitting[0]


def _width(file: LayerFile) -> int:
    return int(next(file.shapes[each.bias][-1] for each in _CLASSES.values() if each.bias in file))


def _place(file: LayerFile) -> tuple[Place | None, int | None]:
    said, layer = file.key("trainer.submodule_name"), file.key("trainer.layer")
    layer = layer if isinstance(layer, int) and not isinstance(layer, bool) else None
    match = None if not isinstance(said, str) else _SUBMODULE.fullmatch(said)
    if match is None:
        if said is not None:
            return require_one_place(said, str(file.path)), layer
        return None, layer
    if layer not in (None, int(match[2])):
        raise FileFormatError(f"{file.path}: config.json says layer {layer}, and submodule_name {said}.")
    if file.key("buffer.io", default="out") != "out":
        raise FileFormatError(
            f"{file.path}: config.json has buffer.io {shortened(file.key('buffer.io'))}; read are those of what a module gives."
        )
    return require_one_place(_PLACES[match[1]], str(file.path)), int(match[2])


FORMAT = Format(
    name="dictionary_learning autoencoder",
    kind="transcoder_set",
    layout="<layer>/ae.pt and config.json, whose trainer.dict_class says which",
    detect=detect,
    read=each(read_layer),
    harmless_keys=(
        Harmless("trainer.*", "how it was trained"),
        Harmless("buffer.*", "what it was trained on"),
    ),
)
