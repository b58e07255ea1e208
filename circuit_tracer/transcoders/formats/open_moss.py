"""OpenMOSS (Language-Model-SAEs, Llama-Scope-2): a folder a layer with `sae_weights.safetensors` and config.json.

`W_E` (D, F), `b_E` (F,), `W_D` (F, D), `b_D` (D,); for JumpReLU `activation_function.log_jumprelu_threshold` (F,). Its inputs
and outputs were scaled to a norm of sqrt(D), by the factors sqrt(D) / `dataset_average_activation_norm.{hook}`, which are
folded as the library folds them: b_E / in, b_D / out, W_D * in / out. With `sparsity_include_decoder_norm` the activation
function sees pre * |W_D|; the norm is then moved from the decoder to the encoder, which leaves all outputs as they are.
Where both hooks are one, it is an autoencoder, of which all this holds too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import sqrt

from torch import Tensor

from circuit_tracer.errors import FileFormatError, shortened
from circuit_tracer.transcoders.formats.folding import by_decoder_norm, scaled
from circuit_tracer.transcoders.formats.format import Format, each
from circuit_tracer.transcoders.formats.layer_file import Harmless, LayerFile, whole
from circuit_tracer.transcoders.layer_weights import LayerWeights
from circuit_tracer.transcoders.places import Place, require_mlp_places, require_one_place

_THRESHOLD = "activation_function.log_jumprelu_threshold"
_NORM = "dataset_average_activation_norm"
HARMLESS_KEYS = (
    *(
        Harmless(name, "how it was trained")
        for name in (
            "init_*", "jump_relu_threshold", "jumprelu_threshold_grad_scale", "jumprelu_threshold_window",
            "promote_act_fn_dtype", "strict_loading", "sae_pretrained_name_or_path", "sae_name", "sae_series",
        )
    ),
    Harmless("use_triton_kernel", "how it is computed"),
    Harmless("sparsity_threshold_for_triton_spmm_kernel", "how it is computed"),
    Harmless("dtype", "safetensors files say it"),
    Harmless("device", "where it was trained"),
    Harmless("apply_decoder_bias_to_pre_encoder", "of the input", (None, False)),
    Harmless("use_glu_encoder", "a second encoder", (None, False)),
    Harmless("model_name", "config.yaml or the user names the model"),
    Harmless("expansion_factor", "the number of features in other words"),
    Harmless("top_k", "of another activation function"),
)  # fmt: skip
HARMLESS_TENSORS = (Harmless(f"{_NORM}.*", "norms, where the weights do not need them"),)


def _is_ours(file: LayerFile) -> bool:
    return (
        {"W_E", "b_E", "W_D"} <= file.names and len(file.shapes["W_E"]) == 2 and file.value("sae_type", "sae") == "sae"
    )


def detect(file: LayerFile) -> bool:
    return _is_ours(file) and not _one_place(file)


def detect_autoencoder(file: LayerFile) -> bool:
    return _is_ours(file) and _one_place(file)


def _one_place(file: LayerFile) -> bool:
    """Whether it reads where it writes."""
    read = file.value("hook_point_in")
    return read is not None and read == file.value("hook_point_out")


def read_layer(file: LayerFile) -> LayerWeights:
    return _read(file, require_mlp_places)


def read_autoencoder(file: LayerFile) -> LayerWeights:
    return _read(file, lambda reads, _, source: (require_one_place(reads, source),) * 2)


def _read(file: LayerFile, places: Callable[[object, object, str], Sequence[Place | None]]) -> LayerWeights:
    if {"W_E_glu", "b_E_glu"} & file.names:
        raise FileFormatError(
            f"{file.path}: it has a gated encoder (W_E_glu): its pre-activations are no linear function of the input, "
            "so no graph "
            "can be traced through it. Choose one of this series without it."
        )
    file.key("sae_type")
    encoder = file.matrix("W_E").T
    n_features, width = encoder.shape
    decoder, encoder_bias = file.shaped("W_D", n_features, width), file.shaped("b_E", n_features)
    file.expect("d_model", encoder.shape[-1], "the encoder reads")
    file.expect("use_decoder_bias", "b_D" in file, "whether there is a tensor b_D is")
    bias = file.shaped("b_D", width) if "b_D" in file else None
    reads_at, writes_at = file.key("hook_point_in"), file.key("hook_point_out")
    scale_in, scale_out = _factors(file, reads_at, writes_at)
    encoder_bias = scaled(encoder_bias, 1 / scale_in)
    decoder = scaled(decoder, scale_in / scale_out)
    k, threshold = _activation(file, n_features, scale_in, scale_out)
    if file.key("sparsity_include_decoder_norm", default=True) and (k is not None or threshold is not None):
        if threshold is None:  # the k largest of pre * norm: features in these units
            encoder, encoder_bias, decoder = by_decoder_norm(encoder, encoder_bias, decoder)
        else:
            threshold = threshold / decoder.float().norm(dim=1)
    reads, writes = places(reads_at, writes_at, str(file.path))
    return LayerWeights(
        source=str(file.path),
        encoder=encoder,
        decoder=decoder,
        encoder_bias=encoder_bias,
        decoder_bias=decoder.new_zeros(decoder.shape[1]) if bias is None else scaled(bias, 1 / scale_out),
        threshold=threshold,
        k=k,
        nonnegative=k is not None,
        reads=reads,
        writes=writes,
    )


def _factors(file: LayerFile, *hooks: object) -> list[float]:
    """sqrt(D) / norm at the input and at the output; 1 where the weights are for activations as they are."""
    method = file.key(
        "norm_activation", default="dataset-wise" if any(n.startswith(_NORM) for n in file.names) else "inference"
    )
    if method == "inference":
        return [1.0, 1.0]
    if method != "dataset-wise":
        raise FileFormatError(
            f"{file.path}: config.json has norm_activation {shortened(method)}: each input is scaled by its own norm, which no "
            "weights can "
            "express. Only dataset-wise and inference can be read."
        )
    factors = []
    for hook in hooks:
        factors.append(sqrt(file.shapes["W_E"][0]) / file.number(f"{_NORM}.{hook}"))
    return factors


def _activation(
    file: LayerFile, n_features: int, scale_in: float, scale_out: float
) -> tuple[int | None, Tensor | None]:
    """k of TopK, thresholds of JumpReLU, or neither: ReLU."""
    name = file.key("act_fn", default="relu")
    name = name.lower() if isinstance(name, str) else shortened(name)
    k = whole(file.key("top_k")) if name == "topk" else None
    if name == "topk" and k is None:
        raise FileFormatError(f"{file.path}: config.json has act_fn topk and no whole top_k.")
    if name not in ("relu", "topk", "jumprelu"):
        raise FileFormatError(
            f"{file.path}: config.json has act_fn {name!r}, which chooses features over a batch or over layers; relu, topk and "
            "jumprelu can be read. Export it as jumprelu with the library that wrote it."
        )
    if (name == "jumprelu") != (_THRESHOLD in file):
        raise FileFormatError(f"{file.path}: config.json has act_fn {name!r}; the tensors are {file.describe()}.")
    if name != "jumprelu":
        return k, None
    if (scale_in, scale_out) != (1.0, 1.0):
        raise FileFormatError(
            f"{file.path}: JumpReLU with dataset-wise norms: it is not known whether its thresholds are meant before "
            "or after the "
            "norms are folded. Save it with norm_activation inference (standardize_parameters_of_dataset_norm)."
        )
    return None, file.shaped(_THRESHOLD, n_features).float().exp()


FORMAT = Format(
    name="OpenMOSS",
    kind="transcoder_set",
    layout="<layer>/sae_weights.safetensors and config.json: W_E (D, F), b_E (F), W_D (F, D), b_D (D) "
    "[, activation_function.log_jumprelu_threshold (F)] [, dataset_average_activation_norm.{hook}]",
    detect=detect,
    read=each(read_layer),
    harmless_tensors=HARMLESS_TENSORS,
    harmless_keys=HARMLESS_KEYS,
)
AUTOENCODER = replace(
    FORMAT,
    name="OpenMOSS autoencoder",
    layout="the same, with one place as hook_point_in and hook_point_out",
    detect=detect_autoencoder,
    read=each(read_autoencoder),
)
