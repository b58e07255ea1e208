"""CLT-Forge: one file with all layers, and cfg.json.

`W_enc` (L, D, F), `b_enc` (L, F), `log_threshold` (L, F) for JumpReLU; `W_dec` (N, F, D) and `b_dec` (N, D) of all N = L (L +
1) / 2 pairs of a layer and one that it writes to, ordered by the layer and then by the target. With `cross_layer_decoders`
false there is one decoder a layer instead, and the file holds per-layer transcoders. The dictionary was trained on x times
`estimated_norm_scaling_factor_in` (L) and outputs times `estimated_norm_scaling_factor_out` (L), which are folded into the
weights.

Letters: L layers, N pairs, F features a layer, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from circuit_tracer.errors import FileFormatError, shortened
from circuit_tracer.transcoders.formats.folding import scaled
from circuit_tracer.transcoders.formats.format import Format
from circuit_tracer.transcoders.formats.layer_file import Harmless, LayerFile
from circuit_tracer.transcoders.layer_weights import LayerWeights

_TENSORS = {"W_enc", "b_enc", "W_dec", "b_dec", "log_threshold"}
_TRAINING = (
    "context_size", "dead_feature_window", "debug", "functional_loss", "jumprelu_bandwidth", "jumprelu_init_threshold",
    "l0_coefficient", "normalize_decoder", "seed", "sparse_decode", "sparse_threshold",
)  # fmt: skip
HARMLESS_KEYS = (
    *(Harmless(name, "how it was trained") for name in _TRAINING),
    Harmless("model_name", "config.yaml or the user names the model"),
    Harmless("dtype", "safetensors files say it"),
    Harmless("device", "where it was trained"),
    Harmless("ddp", "how ranks shared the work"),
    Harmless("fsdp", "how ranks shared the work"),
    Harmless("feature_sharding", "ranks have files of their own", (None, False)),
    Harmless("k", "of another activation function", (None,)),
)
HARMLESS_TENSORS = (
    Harmless("feature_count", "steps since each feature was active"),
    Harmless("layer_mask", "follows from the number of layers"),
)


def _is_ours(file: LayerFile) -> bool:
    return file.names >= _TENSORS and len(file.shapes["W_enc"]) == len(file.shapes["W_dec"]) == 3


def detect(file: LayerFile) -> bool:
    return _is_ours(file) and not detect_per_layer(file)


def detect_per_layer(file: LayerFile) -> bool:
    if not _is_ours(file):
        return False
    n_layers, n_decoders = file.shapes["W_enc"][0], file.shapes["W_dec"][0]
    return n_layers == n_decoders and (n_layers > 1 or file.value("cross_layer_decoders") is False)


def read(files: list[LayerFile]) -> list[LayerWeights]:
    return [weights for file in files for weights in _read(file, cross_layer=True)]


def read_per_layer(files: list[LayerFile]) -> list[LayerWeights]:
    return [weights for file in files for weights in _read(file, cross_layer=False)]


def _read(file: LayerFile, cross_layer: bool) -> list[LayerWeights]:
    encoder = file.tensor("W_enc")
    n_layers, width, n_features = encoder.shape
    if (activation := file.key("activation_fn", default="jumprelu")) != "jumprelu":
        raise FileFormatError(
            f"{file.path}: cfg.json has activation_fn {shortened(activation)}; only jumprelu is known here."
        )
    for name, found in (("n_layers", n_layers), ("d_in", width), ("d_latent", n_features)):
        file.expect(name, found, "the tensors say")
    file.expect("cross_layer_decoders", cross_layer, "the tensors say")
    n_decoders = n_layers * (n_layers + 1) // 2 if cross_layer else n_layers
    decoder = file.shaped("W_dec", n_decoders, n_features, width)
    bias, b_enc = file.shaped("b_dec", n_decoders, width), file.shaped("b_enc", n_layers, n_features)
    threshold = file.shaped("log_threshold", n_layers, n_features).float().exp()
    scale_in, scale_out = (_factors(file, side, n_layers) for side in ("in", "out"))
    layers, start = [], 0
    biases = _summed(bias, n_layers) if cross_layer else bias
    for layer in range(n_layers):
        targets = range(layer, n_layers if cross_layer else layer + 1)
        rows = decoder[start : start + len(targets)].transpose(0, 1)
        rows = scaled(rows, 1 / scale_out[targets.start : targets.stop, None])
        layers.append(
            LayerWeights(
                source=str(file.path),
                encoder=scaled(encoder[layer].T, scale_in[layer]),
                decoder=rows if cross_layer else rows[:, 0],
                encoder_bias=b_enc[layer],
                decoder_bias=scaled(biases[layer], 1 / scale_out[layer]),
                threshold=threshold[layer],
            )
        )
        start += len(targets)
    return layers


def _factors(file: LayerFile, side: str, n_layers: int) -> Tensor:
    name = f"estimated_norm_scaling_factor_{side}"
    stored = file.optional(name)
    factors = torch.ones(n_layers) if stored is None else stored.float()
    if tuple(factors.shape) != (n_layers,) or not bool((factors > 0).all()):
        raise FileFormatError(f"{file.path}: {name} must be {n_layers} positive numbers, found {factors.tolist()}.")
    return factors


def _summed(bias_ND: Tensor, n_layers: int) -> Tensor:
    """(L, D): the biases of all decoders that write to a layer, added."""
    _, target_N = torch.triu_indices(n_layers, n_layers)
    return bias_ND.new_zeros(n_layers, bias_ND.shape[1]).index_add_(0, target_N, bias_ND)


_LAYOUT = "one .safetensors and cfg.json: W_enc (L, D, F), b_enc (L, F), log_threshold (L, F), "
_HOOKS = ("ln2.hook_normalized", "hook_mlp_out")
_NOTE = "those that CLT-Forge's own loader assumes"
FORMAT = Format(
    name="CLT-Forge",
    kind="cross_layer_transcoder",
    layout=_LAYOUT + "W_dec (N, F, D), b_dec (N, D), N = L (L + 1) / 2",
    detect=detect,
    read=read,
    harmless_tensors=HARMLESS_TENSORS,
    harmless_keys=HARMLESS_KEYS,
    hooks=_HOOKS,
    hooks_note=_NOTE,
)
PER_LAYER = Format(
    name="CLT-Forge per-layer",
    kind="transcoder_set",
    layout=_LAYOUT + "W_dec (L, F, D), b_dec (L, D)",
    detect=detect_per_layer,
    read=read_per_layer,
    harmless_tensors=HARMLESS_TENSORS,
    harmless_keys=HARMLESS_KEYS,
    hooks=_HOOKS,
    hooks_note=_NOTE,
)
