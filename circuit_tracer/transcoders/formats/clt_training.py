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

from circuit_tracer.errors import FileFormatError
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
    _require_no_offset(file, "post_enc")
    skip = file.optional("W_skip")
    scale = file.optional("post_enc_scale")
    return sparsify.weights(
        file,
        encoder=scaled(file.tensor("encoder.weight"), scale_in),
        decoder=scaled(_rows(file.tensor("W_dec"), scale), scale_out),
        decoder_bias=scaled(file.tensor("b_dec"), scale_out),
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
    own_skip = file.optional("W_skips.0")
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
    _require_no_offset(file, f"post_encs.{slot}")
    _require_repeated(file, "W_dec")
    return _rows(file.tensor(f"W_decs.{slot}"), file.optional(f"post_enc_scales.{slot}"))


def _target_bias(file: LayerFile, slot: int) -> Tensor:
    _require_repeated(file, "b_dec")
    return file.tensor(f"b_decs.{slot}").float()


def _rows(decoder_FD: Tensor, scale_F: Tensor | None) -> Tensor:
    return decoder_FD if scale_F is None else scaled(decoder_FD, scale_F[:, None])


def _require_plain(file: LayerFile) -> None:
    for name, (read_values, what) in _REFUSED.items():
        if (value := file.key(name)) not in read_values:
            raise FileFormatError(f"{file.path}: cfg.json has {name} = {value!r}: {what}, which cannot be read.")


def _require_no_offset(file: LayerFile, name: str) -> None:
    offset = file.optional(name)
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
    norms = [file.optional(name) for name in ("in_norm", "out_norm")]
    normalised = file.key("normalize_io", default=any(norm is not None for norm in norms))
    if not normalised:
        return 1.0, 1.0
    found = [1.0 if norm is None else float(norm.reshape(())) for norm in norms]
    if not all(0 < norm < float("inf") for norm in found):
        raise FileFormatError(f"{file.path}: in_norm and out_norm must be positive numbers, found {found}.")
    width = sqrt(file.shapes["encoder.weight"][1])
    return width / found[0], found[1] / width


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
