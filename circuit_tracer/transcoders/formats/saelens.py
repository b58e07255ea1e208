"""SAELens transcoders: `cfg.json` with `sae_weights.safetensors`; its autoencoders are in saelens_autoencoder.py.

`W_enc` (D, F), `W_dec` (F, D), `b_enc`, `b_dec`, `threshold` (F,) for JumpReLU, `W_skip` (D, D) as x @ W_skip.T.
Input normalisation and subtraction of b_dec are refused: they must be folded into the weights first. That the mean of its
model's stream was taken off is folded in here. Where one stands is
in the metadata (`hook_name`, `hook_name_out`), in older files at the top (`hook_name` or `hook_point`, `hook_layer`).
"""

from __future__ import annotations

import re

from torch import Tensor

from circuit_tracer.errors import FileFormatError, shortened
from circuit_tracer.transcoders.formats.folding import centred
from circuit_tracer.transcoders.formats.format import Format, each
from circuit_tracer.transcoders.formats.layer_file import Harmless, LayerFile, whole
from circuit_tracer.transcoders.layer_weights import LayerWeights
from circuit_tracer.transcoders.places import STREAM, Place, require_mlp_places

SWITCH = "switch"  # of our trainer, in switch.py
AUTOENCODERS = ("standard", "gated", "jumprelu", "topk", "batchtopk", "matryoshka_batchtopk")
_ARCHITECTURES = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
# Places whose mean over D is taken off there: the stream, and what is written into it.
CENTRED = (*STREAM, "attn.hook_out", "hook_attn_out", "mlp.hook_out", "hook_mlp_out")
_CENTRES = "center_writing_weights"
# Models with LayerNorm, which TransformerLens centres; of those with RMSNorm it leaves the stream as it is, whatever was asked.
_LAYER_NORM = re.compile(r"(.*/)?(distil)?(gpt-?2|gpt-?neo|gpt-?j|pythia|opt|bloom|tiny-?stories)(-.*)?", re.IGNORECASE)
_TRAINING = "how it was trained"
_NAMES = "what it is called elsewhere"
# Notes that stand in `metadata`, and at the top of older files.
_NOTES = (
    *(
        (name, _TRAINING, ())
        for name in (
            "context_size", "dataset_path", "dataset_trust_remote_code", "disable_concat_sequences",
            "exclude_special_tokens", "model_class_name", "model_from_pretrained_kwargs", "model_from_pretrained_kwargs.*",
            "prepend_bos", "sequence_separator_token", "seqpos_slice", "sae_lens_training_version", "sae_lens_version",
            "training_tokens", "n_training_tokens", "training_architecture", "training_architecture_details",
            "training_architecture_details.*",
        )
    ),
    *(
        (name, _NAMES, ())
        for name in ("model_name", "neuronpedia_id", "hf_hook_name", "hf_hook_name_out", "release", "sae_id")
    ),
    *((name, "a head of attention", (None,)) for name in ("hook_head_index", "hook_head_index_out", "hook_point_head_index")),
)  # fmt: skip
HARMLESS_KEYS = (
    Harmless("normalize_activations", "of the input", (None, False, "none")),
    Harmless("apply_b_dec_to_input", "of the input", (None, False)),
    Harmless("reshape_activations", "of the input", (None, "none")),
    Harmless("finetuning_scaling_factor", "a scale of features", (None, False)),
    Harmless("rescale_acts_by_decoder_norm", "a rule of the choice of features", (None, False)),
    Harmless("scaling_factor", "activation_scaler.json: of the input", (None, 1)),
    Harmless("activation_fn_kwargs", "none", (None, {})),
    Harmless("metadata", "empty", (None, {})),
    *(Harmless(f"{place}{name}", why, only) for place in ("", "metadata.") for name, why, only in _NOTES),
)
_CHANGES_INPUT = ("normalize_activations", "apply_b_dec_to_input", "reshape_activations")
ONES = tuple(
    Harmless(name, "a scale of features that is 1", (1,)) for name in ("scaling_factor", "finetuning_scaling_factor")
)


def detect(file: LayerFile) -> bool:
    return (
        {"W_enc", "W_dec", "b_enc", "b_dec"} <= file.names
        and file.has_key("architecture")
        and file.value("architecture") not in (*AUTOENCODERS, SWITCH)
    )


def read_layer(file: LayerFile) -> LayerWeights:
    architecture = file.key("architecture")
    if architecture not in _ARCHITECTURES:
        raise FileFormatError(
            f"{file.path}: architecture {shortened(architecture)} is not read. Known are, of transcoders, "
            f"{', '.join(_ARCHITECTURES)}; of autoencoders, {', '.join((*AUTOENCODERS, SWITCH))}."
        )
    if architecture.startswith("jumprelu") != ("threshold" in file) or ("skip" in architecture) != ("W_skip" in file):
        raise FileFormatError(
            f"{file.path}: architecture {architecture!r} does not go with the tensors {file.describe()}."
        )
    _require_plain_input(file, _CHANGES_INPUT)
    encoder, k = encoder_of(file), k_of(file)
    reads, writes = require_mlp_places(
        file.key("hook_name", "metadata.hook_name", "hook_point", "metadata.hook_point"),
        file.key("hook_name_out", "metadata.hook_name_out"),
        str(file.path),
    )
    skip = file.matrix("W_skip").T if "W_skip" in file else None
    if was_centred(file, reads):
        encoder, skip = centred(encoder, dim=1), None if skip is None else centred(skip, dim=0)
    return LayerWeights(
        source=str(file.path),
        encoder=encoder,
        decoder=file.tensor("W_dec"),
        encoder_bias=file.tensor("b_enc"),
        decoder_bias=file.tensor("b_dec"),
        threshold=file.optional("threshold"),
        skip=skip,
        k=k,
        nonnegative=k is not None,
        reads=reads,
        writes=writes,
        layer=layer_of(file),
    )


def _require_plain_input(file: LayerFile, keys: tuple[str, ...]) -> None:
    for row in HARMLESS_KEYS:
        if row.pattern in keys and not row.covers(row.pattern, file.value(row.pattern)):
            raise FileFormatError(
                f"{file.path}: cfg.json has {row.pattern} = {shortened(file.value(row.pattern))}, which changes the input. "
                "Fold it into the weights with SAELens and save again."
            )


def encoder_of(file: LayerFile) -> Tensor:
    """(F, D); FileFormatError if cfg.json says other sizes."""
    encoder = file.matrix("W_enc").T
    for name, found in (("d_in", encoder.shape[-1]), ("d_out", file.shapes["b_dec"][-1]), ("d_sae", len(encoder))):
        file.expect(name, found, "the tensors say")
    return encoder


def was_centred(file: LayerFile, place: Place | None) -> bool:
    """Whether its input had its mean over D taken off: it says so, or is of the time when all models were processed."""
    names = [f"{outer}model_from_pretrained_kwargs.{_CENTRES}" for outer in ("", "metadata.")]
    asked = file.key(*names, default=file.has_key("hook_point") and not file.has_key("model_from_pretrained_kwargs"))
    if not isinstance(asked, bool):
        raise FileFormatError(f"{file.path}: cfg.json has {_CENTRES} = {shortened(asked)}; true or false is expected.")
    model_name = file.key("metadata.model_name", "model_name")
    stream = place is not None and place.hook in CENTRED
    return asked and stream and isinstance(model_name, str) and _LAYER_NORM.fullmatch(model_name) is not None


def k_of(file: LayerFile) -> int | None:
    """k of TopK, which SAELens applies before a ReLU; None for ReLU. FileFormatError for any other function."""
    name = file.key("activation_fn", "activation_fn_str", default="relu")
    given = file.key("activation_fn_kwargs.k", "k")
    k = whole(given)
    if (name == "relu" and given is None) or (name == "topk" and k is not None and "threshold" not in file):
        return k
    raise FileFormatError(
        f"{file.path}: cfg.json has activation_fn {shortened(name)} with k {shortened(given)}, and the tensors "
        f"{file.describe()}; known are relu, and topk with a whole k (activation_fn_kwargs)."
    )


def layer_of(file: LayerFile) -> int | None:
    read = file.key("hook_layer", "metadata.hook_layer", "hook_point_layer")
    written = file.key("hook_layer_out", "metadata.hook_layer_out")
    if None not in (read, written) and read != written:
        raise FileFormatError(
            f"{file.path}: it reads layer {shortened(read)} and writes layer {shortened(written)}; the transcoder of a layer "
            "does both there."
        )
    found = read if read is not None else written
    if found is not None and (not isinstance(found, int) or isinstance(found, bool)):
        raise FileFormatError(f"{file.path}: hook_layer is {shortened(found)}; a layer's number is expected.")
    return found


FORMAT = Format(
    name="SAELens",
    kind="transcoder_set",
    layout="<layer>/sae_weights.safetensors and cfg.json: W_enc (D, F), W_dec (F, D), b_enc (F), b_dec (D) "
    "[, threshold (F)] [, W_skip (D, D)]",
    detect=detect,
    read=each(read_layer),
    harmless_tensors=ONES,
    harmless_keys=HARMLESS_KEYS,
)
