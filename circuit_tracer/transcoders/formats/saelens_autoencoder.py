"""SAELens autoencoders: `cfg.json` with `sae_weights.safetensors`; what our trainer makes of kind sae is the same.

`W_enc` (D, F), `W_dec` (F, D), `b_dec` (D,), `b_enc` (F,), of a gated one `b_gate`, `b_mag` and `r_mag` (F,) in its place;
`threshold` (F,) for JumpReLU, which BatchTopK and Matryoshka are saved as. What its library does to inputs and features is
folded: b_dec subtracted from the input, normalisation by the expected norm, scales of features, norms of decoder rows, and
that its model's stream had its mean taken off (TransformerLens' `center_writing_weights`, of models with LayerNorm).
"""

from __future__ import annotations

from math import isfinite

import torch
from torch import Tensor

from circuit_tracer.errors import FileFormatError, shortened
from circuit_tracer.transcoders.formats.folding import (
    Encoding,
    by_decoder_norm,
    centred,
    gated_as_jump,
    scaled,
    shifted_bias,
)
from circuit_tracer.transcoders.formats.format import Format, each
from circuit_tracer.transcoders.formats.layer_file import Harmless, LayerFile, scalar_like, whole
from circuit_tracer.transcoders.formats.saelens import (
    AUTOENCODERS,
    HARMLESS_KEYS,
    ONES,
    encoder_of,
    k_of,
    layer_of,
    was_centred,
)
from circuit_tracer.transcoders.layer_weights import LayerWeights
from circuit_tracer.transcoders.places import require_one_place

_AVERAGE = "expected_average_only_in"
_THRESHOLDS = ("threshold", "topk_threshold")  # of JumpReLU; of a checkpoint of BatchTopK, one for all features

# What stands beside the weights in files of before version 3, all of training.
_OF_TRAINING = (
    "is_dataset_tokenized", "use_cached_activations", "cached_activations_path", "n_batches_in_buffer", "*training_tokens",
    "store_batch_size", "b_dec_init_method", "expansion_factor", "from_pretrained_path", "lr", "lr_*", "train_batch_size",
    "use_ghost_grads", "feature_sampling_*", "feature_reinit_scale", "resample_batches", "dead_feature_*", "log_to_wandb",
    "wandb_*", "n_checkpoints", "checkpoint_path", "tokens_per_buffer", "run_name", "lp_norm", "adam_beta*", "verbose",
)  # fmt: skip

_BEFORE_A_THRESHOLD = ("relu", "topk", "batchtopk")  # of training; thresholds are what is left of the latter two


def detect(file: LayerFile) -> bool:
    if not {"W_enc", "W_dec", "b_dec"} <= file.names or not {"b_enc", "b_mag"} & file.names:
        return False
    if file.has_key("architecture"):
        return file.value("architecture") in AUTOENCODERS
    return file.has_key("d_sae") and file.has_key("hook_point", "hook_name")  # before there were several


def read_layer(file: LayerFile) -> LayerWeights:
    architecture = file.key("architecture", default="standard")
    given = _encoding(file, architecture)
    encoder, bias, decoder, decoder_bias = given.encoder_FD, given.bias_F, file.matrix("W_dec"), file.tensor("b_dec")
    threshold = given.threshold
    if file.key("rescale_acts_by_decoder_norm"):
        encoder, bias, decoder = by_decoder_norm(encoder, bias, decoder)
    if file.key("apply_b_dec_to_input", default=True):
        bias = shifted_bias(encoder, bias, decoder_bias)
    source = str(file.path)
    said = file.key("hook_name", "metadata.hook_name", "hook_point", "metadata.hook_point")
    place = None if said is None else require_one_place(said, source)
    model_name = file.key("metadata.model_name", "model_name")
    if was_centred(file, place):
        encoder = centred(encoder, dim=1)
    average = _average(file)
    encoder, decoder, decoder_bias = (
        scaled(encoder, average), scaled(decoder, 1 / average), scaled(decoder_bias, 1 / average),
    )  # fmt: skip
    if (factor_F := _feature_scale(file)) is not None:
        decoder = scaled(decoder, factor_F[:, None])
    return LayerWeights(
        source=source,
        encoder=encoder,
        decoder=decoder,
        encoder_bias=bias,
        decoder_bias=decoder_bias,
        threshold=threshold,
        k=given.k,
        nonnegative=given.k is not None,
        reads=place,
        writes=place,
        layer=layer_of(file),
        model_name=model_name if isinstance(model_name, str) else None,
    )


def _encoding(file: LayerFile, architecture: str) -> Encoding:
    encoder = encoder_of(file)
    thresholds = [name for name in _THRESHOLDS if name in file]
    jumps = architecture in ("jumprelu", "batchtopk", "matryoshka_batchtopk")
    if jumps != (len(thresholds) == 1) or (architecture == "gated") == ("b_enc" in file):
        raise FileFormatError(
            f"{file.path}: architecture {architecture!r} does not go with the tensors {file.describe()}."
        )
    if architecture == "gated":
        names = ("b_gate", "b_mag", "r_mag")
        k_of(file)
        return Encoding(*gated_as_jump(encoder, *(file.shaped(name, len(encoder)) for name in names)))
    bias = file.tensor("b_enc")
    if jumps:
        file.key("k", "activation_fn_kwargs.k")
        if (function := file.key("activation_fn", "activation_fn_str", default="relu")) not in _BEFORE_A_THRESHOLD:
            raise FileFormatError(
                f"{file.path}: cfg.json has activation_fn {shortened(function)} beside thresholds; known are "
                f"{', '.join(_BEFORE_A_THRESHOLD)}."
            )
        threshold = file.tensor(thresholds[0]).clamp(min=0)  # of max(pre, 0)
        return Encoding(encoder, bias, threshold if threshold.ndim else threshold.expand(len(encoder)))
    k = whole(file.key("k", "activation_fn_kwargs.k")) if architecture == "topk" else k_of(file)
    if architecture == "topk":
        file.key("activation_fn", "activation_fn_str")
        if k is None:
            raise FileFormatError(f"{file.path}: architecture 'topk' needs a whole k; cfg.json has none.")
    return Encoding(encoder, bias, k=k)


def _average(file: LayerFile) -> float:
    """s of x -> s x, sqrt(D) over the mean norm of the activation; 1 where the input is not normalised."""
    said, known = file.key("normalize_activations", default="none"), file.key("scaling_factor", "norm_scaling_factor")
    if said in ("none", False):
        if known not in (None, 1):
            raise FileFormatError(
                f"{file.path}: a scaling factor {shortened(known)} lies beside it, but cfg.json says that its input is not "
                "normalised. Correct one of them."
            )
        return 1.0
    if said not in (_AVERAGE, True):
        raise FileFormatError(
            f"{file.path}: cfg.json has normalize_activations = {shortened(said)}, which scales each input by its own norm: no "
            f"weights can express it. Read are none and {_AVERAGE}."
        )
    if not scalar_like(known) or not isfinite(known) or known <= 0:
        raise FileFormatError(
            f"{file.path}: its input is normalised by the expected norm, and the factor is not known ({shortened(known)}). "
            'Write {"scaling_factor": s} into activation_scaler.json beside it, s = sqrt(d_in) / the mean norm of the '
            "activation; SAELens lists it as norm_scaling_factor, or fold it in with SAELens and save again."
        )
    return float(known)


def _feature_scale(file: LayerFile) -> Tensor | None:
    """What each feature is multiplied by before it is decoded (F,); None where there is nothing, or 1."""
    names = [name for name in ("finetuning_scaling_factor", "scaling_factor") if name in file]
    if not file.key("finetuning_scaling_factor"):
        return None  # a tensor that is not 1 is refused, as not understood
    if len(names) != 1:
        raise FileFormatError(
            f"{file.path}: cfg.json says finetuning_scaling_factor, and the tensors are {file.describe()}."
        )
    return file.tensor(names[0]).to(torch.float32)


FORMAT = Format(
    name="SAELens autoencoder",
    kind="transcoder_set",
    layout="the same, with the architecture of an autoencoder in cfg.json",
    detect=detect,
    read=each(read_layer),
    harmless_tensors=ONES,
    harmless_keys=(
        *(row for row in HARMLESS_KEYS if row.pattern != "reshape_activations"),
        Harmless("reshape_activations", "heads side by side, as they stand here", (None, "none", "hook_z")),
        Harmless("matryoshka_widths", "of training: all features are used"),
        Harmless("topk_threshold_lr", "of training"),
        Harmless("l1_coefficient", "of training"),
        *(Harmless(name, "of training") for name in _OF_TRAINING),
        Harmless("activation_fn_kwargs.*", "of training, beside thresholds"),
    ),
)
