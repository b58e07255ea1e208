"""Lorsa of OpenMOSS (Language-Model-SAEs, Llama-Scope-2): a folder a layer with `sae_weights.safetensors` and config.json.

`W_Q`, `W_K` (H, D, d), `b_Q`, `b_K` (H, d), `W_V`, `W_O` (F, D), `b_V` (F), `b_D` (D); `ln_q.w`, `ln_k.w` (H, d) where
queries and keys are normalised. It reads `ln1.hook_normalized` (before the gain) and writes `hook_attn_out`. Inputs and
outputs were scaled to a norm of sqrt(D) by sqrt(D) / `dataset_average_activation_norm.{hook}`, which is folded as the library
folds it: W_Q, W_K, W_V * in, W_O, b_D / out. With `sparsity_include_decoder_norm` the activation function sees pre * |W_O|;
the norm is then moved from the decoder to the encoder, which leaves all outputs as they are.
"""

from __future__ import annotations

from math import sqrt
from pathlib import Path
from typing import Any

import torch

from circuit_tracer.errors import CircuitTracerError, FileFormatError, shortened
from circuit_tracer.transcoders import locate
from circuit_tracer.transcoders.formats.layer_file import Harmless, LayerFile, whole
from circuit_tracer.transcoders.layer_weights import LayerWeights
from circuit_tracer.transcoders.locate import LayerFiles
from circuit_tracer.transcoders.lorsa import READS, WRITES, Lorsa, QueriesKeys, Rotary
from circuit_tracer.transcoders.references import HubReference, resolve
from circuit_tracer.transcoders.single_layer import SingleLayerTranscoder

_NORM = "dataset_average_activation_norm"
_NORMED = ("ln_q.w", "ln_k.w")
HARMLESS_TENSORS = (
    Harmless("mask", "causal"),
    Harmless("IGNORE", "of the mask"),
    Harmless("rotary_*", "made of the configuration"),
    Harmless(f"{_NORM}.*", "norms, where the weights do not need them"),
)
HARMLESS_KEYS = (
    *(
        Harmless(name, "how it was trained, or is computed")
        for name in (
            "init_*", "jump_relu_threshold", "jumprelu_threshold_*", "promote_act_fn_dtype", "strict_loading", "sae_*", "dtype",
            "device", "use_triton_kernel", "sparsity_threshold_for_triton_spmm_kernel", "expansion_factor", "n_ctx",
            "ov_group_size",
        )
    ),
    Harmless("model_name", "the user names the model"),
    Harmless("skip_bos", "of training: the first position is a constant of a graph"),
    Harmless("normalization_type", "of queries and keys", (None, "RMS")),
    Harmless("rotary_scale", "of rotary embedding", (1,)),
    Harmless("use_NTK_by_parts_rope", "rotary embedding of Llama 3.1", (False, None)),
    Harmless("NTK_by_parts_*", "of the same"),
    Harmless("old_context_len", "of the same"),
    Harmless("use_smolgen", "scores made of positions", (False, None)),
    Harmless("apply_decoder_bias_to_pre_encoder", "of the input", (None, False)),
)  # fmt: skip


def is_lorsa(name: str | Path) -> bool:
    """Whether a folder, or a hub name, holds them; of files only names and shapes are looked at."""
    try:
        return _holds(LayerFile(_files(name).files[0]))
    except CircuitTracerError:
        return False  # whoever loads it says what is wrong


def load_lorsa(
    name: str | Path, device: torch.device | str | None = None, dtype: torch.dtype | None = torch.float32
) -> Lorsa:
    """Those of a folder or a hub name, one a layer. Raises FileFormatError for files that are not understood."""
    found = _files(name)
    layers, patterns = {}, {}
    for number, opened in enumerate(found.files):
        file = LayerFile(opened)
        layer, weights, own = _read(file)
        if found.layers is not None and found.layers[number] != layer:
            raise FileFormatError(
                f"{file.path}: its folder is of layer {found.layers[number]}, config.json says layer {layer}"
            )
        if layer in layers:
            raise FileFormatError(
                f"{file.path}: there are two of layer {layer} in {name}; name the folder of one series"
            )
        file.require_all_understood("Lorsa", HARMLESS_TENSORS, HARMLESS_KEYS)
        layers[layer] = SingleLayerTranscoder.from_weights(weights, layer, device=device, dtype=dtype)
        patterns[layer] = own.to(device=device, dtype=dtype)
    return Lorsa(layers, patterns, Path(name).name)


def _files(name: str | Path) -> LayerFiles:
    reference, selection = resolve(name, None)
    return locate.on_hub(reference) if isinstance(reference, HubReference) else locate.in_folder(reference, selection)


def _holds(file: LayerFile) -> bool:
    return {"W_Q", "W_K", "W_V", "W_O"} <= file.names


def _read(file: LayerFile) -> tuple[int, LayerWeights, QueriesKeys]:
    if not _holds(file) or file.key("sae_type", default="lorsa") != "lorsa":
        raise FileFormatError(f"{file.path} holds no Lorsa (W_Q, W_K, W_V, W_O): its tensors are {file.describe()}")
    reads, writes = file.key("hook_point_in"), file.key("hook_point_out")
    layer = _layer(file, reads, writes)
    n_heads, width, d_head = file.shapes["W_Q"]
    n_features = file.shapes["W_V"][0]
    for name, expected in (("d_model", width), ("n_qk_heads", n_heads), ("d_qk_head", d_head)):
        file.expect(name, expected, "its tensors have")
    file.expect("use_decoder_bias", "b_D" in file, "whether there is a tensor b_D is")
    scale_in, scale_out = _factors(file, width, reads, writes)
    query, key = (file.shaped(name, n_heads, width, d_head) * scale_in for name in ("W_Q", "W_K"))
    own = {"W_Q": query, "W_K": key, **{name: file.shaped(name, n_heads, d_head) for name in ("b_Q", "b_K")}}
    if file.key("use_post_qk_ln", default=False) not in (False, None):
        own |= {name[:4]: file.shaped(name, n_heads, d_head) for name in _NORMED}
    encoder, bias = file.shaped("W_V", n_features, width) * scale_in, file.shaped("b_V", n_features)
    decoder = file.shaped("W_O", n_features, width) / scale_out
    constant = file.shaped("b_D", width) / scale_out if "b_D" in file else decoder.new_zeros(width)
    k = _top_k(file)
    if file.key("sparsity_include_decoder_norm", default=True):
        norm_F = (decoder.float() * scale_out).norm(dim=1)
        encoder, bias = encoder * norm_F[:, None], bias * norm_F
        decoder = decoder / norm_F.where(norm_F > 0, 1.0)[:, None]
    weights = LayerWeights(str(file.path), encoder, decoder, bias, constant, k=k, nonnegative=k is not None)
    scale = file.key("attn_scale")
    epsilon = file.key("eps", default=1e-6)
    return layer, weights, QueriesKeys(own, float(scale or sqrt(d_head)), _rotary(file), float(epsilon))


def _layer(file: LayerFile, reads: Any, writes: Any) -> int:
    for said, hook in ((reads, READS), (writes, WRITES)):
        head, _, last = str(said).partition(".")[2].partition(".")
        if not head.isdecimal() or last != hook:
            raise FileFormatError(
                f"{file.path}: it stands at {shortened(reads)} and {shortened(writes)}; Lorsa reads blocks.N.{READS} and "
                f"writes blocks.N.{WRITES}"
            )
    layers = {int(str(said).split(".")[1]) for said in (reads, writes)}
    if len(layers) > 1:
        raise FileFormatError(f"{file.path}: it reads {reads} and writes {writes}; Lorsa of a layer does both there")
    return layers.pop()


def _factors(file: LayerFile, width: int, *hooks: Any) -> list[float]:
    scaled = any(name.startswith(_NORM) for name in file.names)
    method = file.key("norm_activation", default="dataset-wise" if scaled else "inference")
    if method == "inference":
        return [1.0, 1.0]
    if method != "dataset-wise":
        raise FileFormatError(
            f"{file.path}: config.json has norm_activation {shortened(method)}; only dataset-wise and inference can be read"
        )
    return [sqrt(width) / file.number(f"{_NORM}.{hook}") for hook in hooks]


def _top_k(file: LayerFile) -> int | None:
    name = str(file.key("act_fn", default="relu")).lower()
    k = whole(file.key("top_k"))
    if name not in ("relu", "topk") or (name == "topk" and k is None):
        raise FileFormatError(
            f"{file.path}: config.json has act_fn {name!r} and top_k {k}; topk with a whole top_k, and relu can be read"
        )
    return k if name == "topk" else None


def _rotary(file: LayerFile) -> Rotary | None:
    kind = file.key("positional_embedding_type", default="rotary")
    width, base = file.key("rotary_dim"), file.key("rotary_base", default=10000)
    adjacent = file.key("rotary_adjacent_pairs", default=True)
    if kind == "none":
        return None
    if kind != "rotary" or whole(width) is None or not isinstance(base, int | float):
        raise FileFormatError(
            f"{file.path}: config.json has positional_embedding_type {shortened(kind)}, rotary_dim {shortened(width)} and "
            f"rotary_base {shortened(base)}; rotary with whole numbers, or none, can be read"
        )
    return Rotary(int(width), float(base), bool(adjacent))
