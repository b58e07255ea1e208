"""EleutherAI's clt-training, a fork of sparsify: `<hookpoint>/sae.safetensors` with `cfg.json`, per-layer and cross-layer.

As sparsify (sparsify.py), and besides: `post_enc` (F,), added to active features, and `post_enc_scale` (F,), by which the
result is multiplied; with `normalize_io`, `in_norm` and `out_norm`: the input is multiplied by sqrt(D) / in_norm, the output by
out_norm / sqrt(D). A cross-layer file has `W_decs.{k}`, `b_decs.{k}`, `W_skips.{k}`, `post_encs.{k}`, `post_enc_scales.{k}`
for what it writes to the k-th layer from its own on. What is written to a layer is scaled by that layer's own out_norm.

Scales and norms are folded into the weights. Offsets (post_enc) cannot be: the k largest are chosen before they are added.
Letters: F features, T layers written to, D width.
"""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

from circuit_tracer.errors import FileFormatError, shortened
from circuit_tracer.transcoders.formats import sparsify
from circuit_tracer.transcoders.formats.folding import scaled
from circuit_tracer.transcoders.formats.format import Format, each
from circuit_tracer.transcoders.formats.layer_file import Harmless, LayerFile
from circuit_tracer.transcoders.layer_weights import LayerWeights

_OWN = ("post_enc", "post_encs.", "in_norm", "out_norm", "W_decs.", "b_decs.", "W_skips.")
# Keys that change what is computed, with the only values that are read.
_REFUSED = {
    "transcode": ((True,), "an autoencoder of one activation"),
    "divide_cross_layer": ((None, False), "what other layers write is divided by their number"),
    "secondary_target_tied": ((None, False), "decoders tied to a second target"),
    "per_source_tied": ((None, False), "one decoder for all layers written to"),
    "coalesce_topk": ((None, "none"), "features of several layers are chosen together"),
    "topk_coalesced": ((None, False), "features of several layers are chosen together"),
}
HARMLESS_KEYS = (
    *sparsify.HARMLESS_KEYS,
    Harmless("dtype", "safetensors files say it"),
    Harmless("use_fp8", "how it was trained"),
    Harmless("matryoshka*", "a loss of training"),
    Harmless("tp_output", "how ranks shared the work"),
    Harmless("n_sources", "how many layers write to this one: their files say it"),
    Harmless("n_targets", "its own layer only", (None, 0)),
    Harmless("train_post_encoder", "how it was trained"),
    Harmless("post_encoder_scale", "whether there are tensors post_enc_scale"),
)


def _is_ours(file: LayerFile) -> bool:
    return {"encoder.weight", "encoder.bias"} <= file.names and any(name.startswith(_OWN) for name in file.names)


def detect(file: LayerFile) -> bool:
    return _is_ours(file) and not detect_cross_layer(file)


def detect_cross_layer(file: LayerFile) -> bool:
    return _is_ours(file) and any(name.startswith(("W_decs.", "post_encs.")) for name in file.names)


def read_layer(file: LayerFile) -> LayerWeights:
    _require_plain(file)
    scale_in, scale_out = _factors(file)
    n_features, width = file.matrix("encoder.weight").shape
    _require_no_offset(file, "post_enc", n_features)
    skip = file.shaped("W_skip", width, width) if "W_skip" in file else None
    return sparsify.weights(
        file,
        encoder=scaled(file.tensor("encoder.weight"), scale_in),
        decoder=scaled(_rows(file, "W_dec", "post_enc_scale"), scale_out),
        decoder_bias=scaled(file.shaped("b_dec", width), scale_out),
        skip=None if skip is None else scaled(skip.T, scale_in * scale_out),
    )


def read(files: list[LayerFile]) -> list[LayerWeights]:
    factors = [_factors(file) for file in files]
    written = [_written(file) for file in files]
    return [_read_layer(layer, files, factors, written) for layer in range(len(files))]


def _read_layer(
    layer: int, files: list[LayerFile], factors: list[tuple[float, float]], written: list[int]
) -> LayerWeights:
    file, n_layers = files[layer], len(files)
    _require_plain(file)
    if layer + written[layer] > n_layers:
        raise FileFormatError(
            f"{file.path}: layer {layer} writes to {written[layer]} layers, but only {n_layers} layers are there. Is a layer's "
            "file missing?"
        )
    rows = [_target_rows(file, slot) for slot in range(written[layer])]
    rows += [torch.zeros_like(rows[0])] * (n_layers - layer - len(rows))
    out = torch.tensor([factors[target][1] for target in range(layer, n_layers)])
    # What all layers add to this one's bias, each by its own decoder.
    sources = [source for source in range(layer + 1) if layer - source < written[source]]
    bias = torch.stack([_target_bias(files[source], layer - source) for source in sources]).sum(0)
    for source in sources[:-1]:
        skip = files[source].optional(f"W_skips.{layer - source}")
        if skip is not None and skip.any():
            raise FileFormatError(
                f"{files[source].path}: W_skips.{layer - source} takes the input of layer {source} to layer {layer}; a skip "
                "connection across layers cannot be read."
            )
    width = file.matrix("encoder.weight").shape[1]
    own_skip = file.shaped("W_skips.0", width, width) if "W_skips.0" in file else None
    if own_skip is not None:
        _require_repeated(file, "W_skip")
    scale_in, scale_out = factors[layer]
    return sparsify.weights(
        file,
        encoder=scaled(file.tensor("encoder.weight"), scale_in),
        decoder=scaled(torch.stack(rows, dim=1), out[:, None]),
        decoder_bias=scaled(bias, scale_out),
        skip=None if own_skip is None else scaled(own_skip.T, scale_in * scale_out),
    )


def _written(file: LayerFile) -> int:
    """How many layers a file's features write to."""
    targets = sum(name.startswith("W_decs.") for name in file.names)
    if not targets:
        raise FileFormatError(
            f"{file.path}: it has offsets of several layers (post_encs) and one decoder: decoders that are shared "
            "between layers "
            "cannot be read."
        )
    if file.key("n_targets") not in (None, 0, targets):
        file.expect("n_targets", targets, "the number of tensors W_decs is")
    return targets


def _target_rows(file: LayerFile, slot: int) -> Tensor:
    _require_no_offset(file, f"post_encs.{slot}", len(file.matrix("encoder.weight")))
    _require_repeated(file, "W_dec")
    return _rows(file, f"W_decs.{slot}", f"post_enc_scales.{slot}")


def _target_bias(file: LayerFile, slot: int) -> Tensor:
    _require_repeated(file, "b_dec")
    return file.shaped(f"b_decs.{slot}", file.shapes["encoder.weight"][1]).float()


def _rows(file: LayerFile, decoder: str, scale: str) -> Tensor:
    """Decoder rows (F, D), scaled by feature if there is a tensor ``scale``."""
    n_features, width = file.matrix("encoder.weight").shape
    rows_FD = file.shaped(decoder, n_features, width)
    return scaled(rows_FD, file.shaped(scale, n_features)[:, None]) if scale in file else rows_FD


def _require_plain(file: LayerFile) -> None:
    for name, (read_values, what) in _REFUSED.items():
        if (value := file.key(name)) not in read_values:
            raise FileFormatError(
                f"{file.path}: cfg.json has {name} = {shortened(value)}: {what}, which cannot be read."
            )


def _require_no_offset(file: LayerFile, name: str, n_features: int) -> None:
    offset = file.shaped(name, n_features) if name in file else None
    if offset is not None and offset.any():
        raise FileFormatError(
            f"{file.path}: {name} adds up to {float(offset.abs().max()):.3g} to active features, after the k largest "
            "are chosen. "
            "This cannot be said by weights: a graph would have other numbers. Train with train_post_encoder false, "
            "or use another set."
        )


def _require_repeated(file: LayerFile, name: str) -> None:
    """The first of a list stands there under its own name too."""
    own, first = file.optional(name), file.tensor(f"{name}s.0")
    if own is not None and not torch.equal(own, first):
        raise FileFormatError(
            f"{file.path}: {name} and {name}s.0 differ; they are one tensor of the library. Save it again."
        )


def _factors(file: LayerFile) -> tuple[float, float]:
    """What the input and the output are multiplied by."""
    stored = [name for name in ("in_norm", "out_norm") if name in file]
    normalised = file.key("normalize_io", default=bool(stored))
    if normalised not in (True, False) or bool(normalised) != bool(stored) or len(stored) == 1:
        raise FileFormatError(
            f"{file.path}: cfg.json has normalize_io = {shortened(normalised)}; the tensors are {file.describe()}. in_norm and "
            "out_norm belong to normalize_io true."
        )
    if not stored:
        return 1.0, 1.0
    width = sqrt(file.matrix("encoder.weight").shape[1])
    return width / file.number("in_norm"), file.number("out_norm") / width


_LAYOUT = "<layer>/sae.safetensors and cfg.json: encoder.weight (F, D), encoder.bias (F), "
FORMAT = Format(
    name="EleutherAI clt-training",
    kind="transcoder_set",
    layout=_LAYOUT
    + "W_dec (F, D), b_dec (D) [, W_skip (D, D)] [, post_enc (F)] [, post_enc_scale (F)] [, in_norm, out_norm]",
    detect=detect,
    read=each(read_layer),
    harmless_keys=HARMLESS_KEYS,
)
CROSS_LAYER = Format(
    name="EleutherAI clt-training cross-layer",
    kind="cross_layer_transcoder",
    layout=_LAYOUT + "W_decs.{k} (F, D), b_decs.{k} (D) [, W_skips.{k}] [, post_encs.{k}] [, post_enc_scales.{k}] "
    "[, in_norm, out_norm]",
    detect=detect_cross_layer,
    read=read,
    harmless_keys=HARMLESS_KEYS,
)
