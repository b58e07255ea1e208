"""Miniature folders in the layouts that other libraries publish, and what their own code computes, in ten lines each.

Letters: L layers, P positions, F features, D width, N pairs of layers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

L, F, D, K = 3, 7, 4, 3
Reference = Callable[[Tensor], Tensor]  # (L, P, D) -> (L, P, D)


@dataclass(frozen=True)
class Published:
    """One layout: `write` makes a folder and returns the library's own computation."""

    write: Callable[[Path], Reference]
    kind: str = "transcoder_set"
    hooks: tuple[str, str] | None = None  # as the files say them; None: they do not
    assumed: bool = False  # hooks are assumed with a warning
    options: dict[str, Any] = field(default_factory=dict)


def draw(*shape: int) -> Tensor:
    return torch.rand(*shape) * 2 - 1


def jump(pre: Tensor, threshold: Tensor) -> Tensor:
    return pre * (pre > threshold)


def topk(pre: Tensor, k: int = K) -> Tensor:
    value, index = pre.clamp(min=0).topk(k)
    return torch.zeros_like(pre).scatter(-1, index, value)


def save(path: Path, tensors: dict[str, Tensor], config: dict[str, Any] | None = None, name: str = "cfg.json") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, path)
    if config is not None:
        (path.parent / name).write_text(json.dumps(config))


def layerwise(layers: list[Callable[[Tensor], Tensor]]) -> Reference:
    return lambda x_LPD: torch.stack([one(x) for one, x in zip(layers, x_LPD, strict=True)])


# ---- Gemma Scope


def gemma_scope_1(folder: Path) -> Reference:
    def one(layer: int) -> Callable[[Tensor], Tensor]:
        t = {"W_enc": draw(D, F), "W_dec": draw(F, D), "b_enc": draw(F), "b_dec": draw(D), "threshold": draw(F).abs()}
        path = folder / f"layer_{layer}" / "width_16k" / f"average_l0_{70 + 9 * layer}"
        path.mkdir(parents=True)
        np.savez(path / "params.npz", **{name: tensor.numpy() for name, tensor in t.items()})
        return lambda x: jump(x @ t["W_enc"] + t["b_enc"], t["threshold"]) @ t["W_dec"] + t["b_dec"]

    return layerwise([one(layer) for layer in range(L)])


def gemma_scope_2(
    folder: Path, name: str = "layer_{}_width_16k_l0_small_affine", layers: range = range(L)
) -> Reference:
    def one(layer: int) -> Callable[[Tensor], Tensor]:
        t = {"w_enc": draw(D, F), "w_dec": draw(F, D), "b_enc": draw(F), "b_dec": draw(D), "threshold": draw(F).abs()}
        t |= {"affine_skip_connection": draw(D, D)} if "affine" in name else {}
        at = f"model.layers.{layer}"
        config = {
            "hf_hook_point_in": f"{at}.pre_feedforward_layernorm.output",
            "hf_hook_point_out": f"{at}.post_feedforward_layernorm.output",
            "width": F, "model_name": "google/gemma-3-270m", "architecture": "jump_relu", "l0": 20,
            "affine_connection": "affine" in name, "type": "transcoder",
        }  # fmt: skip
        save(folder / name.format(layer) / "params.safetensors", t, config, "config.json")

        def run(x: Tensor) -> Tensor:
            y = jump(x @ t["w_enc"] + t["b_enc"], t["threshold"]) @ t["w_dec"] + t["b_dec"]
            return y + x @ t["affine_skip_connection"] if "affine" in name else y

        return run

    return layerwise([one(layer) for layer in layers])


def gemma_scope_2_clt(folder: Path) -> Reference:
    shards = []
    for layer in range(L):
        t = {
            "w_enc": draw(D, F),
            "w_dec": draw(F, L, D),
            "b_enc": draw(F),
            "b_dec": draw(D),
            "threshold": draw(F).abs(),
        }
        t["w_dec"][:, :layer] = 0
        t["affine_skip_connection"] = draw(D, D)
        save(folder / "clt" / "width_262k_l0_big_affine" / f"params_layer_{layer}.safetensors", t)
        shards.append(t)
    at = "model.layers.{}"
    config = {
        "hf_hook_point_in": [f"{at.format(i)}.pre_feedforward_layernorm.output" for i in range(L)],
        "hf_hook_point_out": [f"{at.format(i)}.post_feedforward_layernorm.output" for i in range(L)],
        "type": "clt",
    }
    del config["hf_hook_point_in"], config["hf_hook_point_out"]
    (folder / "clt" / "width_262k_l0_big_affine" / "config.json").write_text(json.dumps(config))

    def run(x_LPD: Tensor) -> Tensor:
        y = torch.stack([t["b_dec"] + x @ t["affine_skip_connection"] for t, x in zip(shards, x_LPD, strict=True)])
        for t, x in zip(shards, x_LPD, strict=True):
            y = y + torch.einsum("pf,fld->lpd", jump(x @ t["w_enc"] + t["b_enc"], t["threshold"]), t["w_dec"])
        return y

    return run


# ---- EleutherAI


def sparsify(folder: Path, shift: bool = False, scale: float = 1.0, **config: Any) -> Reference:
    def one(layer: int) -> Callable[[Tensor], Tensor]:
        t = {
            "encoder.weight": draw(F, D),
            "encoder.bias": draw(F),
            "W_dec": draw(F, D) * scale,
            "b_dec": draw(D) * scale,
        }
        t["W_skip"] = draw(D, D) * scale
        said = {"activation": "topk", "expansion_factor": 2, "normalize_decoder": True, "num_latents": 0, "k": K,
                "multi_topk": False, "skip_connection": True, "d_in": D}  # fmt: skip
        save(folder / f"layers.{layer}.mlp" / "sae.safetensors", t, {**said, **config})

        def run(x: Tensor) -> Tensor:
            seen = x - t["b_dec"] if shift else x
            pre = seen @ t["encoder.weight"].T + t["encoder.bias"]
            return topk(pre) @ t["W_dec"] + t["b_dec"] + x @ t["W_skip"].T

        return run

    return layerwise([one(layer) for layer in range(L)])


def clt_training(folder: Path) -> Reference:
    def one(layer: int) -> Callable[[Tensor], Tensor]:
        t = {"encoder.weight": draw(F, D), "encoder.bias": draw(F), "W_dec": draw(F, D), "b_dec": draw(D),
             "W_skip": draw(D, D), "post_enc": torch.zeros(F), "post_enc_scale": draw(F) + 2,
             "in_norm": torch.tensor([3.0]), "out_norm": torch.tensor([5.0])}  # fmt: skip
        save(folder / f"layers.{layer}.mlp" / "sae.safetensors", t, clt_training_config(normalize_io=True))

        def run(x: Tensor) -> Tensor:
            x = x * (D**0.5 / t["in_norm"])
            a = topk(x @ t["encoder.weight"].T + t["encoder.bias"])
            a = (a + t["post_enc"] * (a > 0)) * t["post_enc_scale"]
            return (a @ t["W_dec"] + t["b_dec"] + x @ t["W_skip"].T) * (t["out_norm"] / D**0.5)

        return run

    return layerwise([one(layer) for layer in range(L)])


def clt_training_config(**changed: Any) -> dict[str, Any]:
    return {
        "dtype": "none", "activation": "topk", "expansion_factor": 2, "normalize_decoder": True, "num_latents": F, "k": K,
        "multi_topk": False, "skip_connection": True, "transcode": True, "tp_output": True, "n_targets": 0, "n_sources": 0,
        "normalize_io": False, "divide_cross_layer": False, "train_post_encoder": False, "post_encoder_scale": True,
        "per_source_tied": False, "secondary_target_tied": False, "coalesce_topk": "none", "topk_coalesced": False,
        "matryoshka": False, "matryoshka_expansion_factors": [], "matryoshka_k_values": [], "use_fp8": False, "d_in": D,
        **changed,
    }  # fmt: skip


def clt_training_cross(folder: Path, ahead: int = L) -> Reference:
    """What layer s writes to layer t = s + k has W_decs[k]; the sum is in the units of layer t, by its own out_norm."""
    files = []
    for layer in range(L):
        count = min(ahead, L - layer)
        t = {"encoder.weight": draw(F, D), "encoder.bias": draw(F), "in_norm": torch.tensor([2.0 + layer]),
             "out_norm": torch.tensor([4.0 + layer])}  # fmt: skip
        for slot in range(count):
            t |= {f"W_decs.{slot}": draw(F, D), f"b_decs.{slot}": draw(D), f"post_encs.{slot}": torch.zeros(F)}
            t |= {
                f"post_enc_scales.{slot}": draw(F) + 2,
                f"W_skips.{slot}": draw(D, D) if slot == 0 else torch.zeros(D, D),
            }
        t |= {"W_dec": t["W_decs.0"], "b_dec": t["b_decs.0"], "W_skip": t["W_skips.0"]}
        config = clt_training_config(normalize_io=True, n_targets=count)
        save(folder / f"layers.{layer}.mlp" / "sae.safetensors", t, config)
        files.append(t)

    def run(x_LPD: Tensor) -> Tensor:
        y = torch.zeros_like(x_LPD)
        for source, t in enumerate(files):
            x = x_LPD[source] * (D**0.5 / t["in_norm"])
            a = topk(x @ t["encoder.weight"].T + t["encoder.bias"])
            for slot in range(min(ahead, L - source)):
                y[source + slot] += (a * t[f"post_enc_scales.{slot}"]) @ t[f"W_decs.{slot}"] + t[f"b_decs.{slot}"]
            y[source] += x @ t["W_skips.0"].T
        return y * torch.stack([t["out_norm"] for t in files])[:, None] / D**0.5

    return run


# ---- SAELens, OpenMOSS


def saelens(folder: Path) -> Reference:
    def one(layer: int) -> Callable[[Tensor], Tensor]:
        t = {"W_enc": draw(D, F), "W_dec": draw(F, D), "b_enc": draw(F), "b_dec": draw(D), "threshold": draw(F).abs()}
        at = f"blocks.{layer}"
        metadata = {
            "hook_name": f"{at}.ln2.hook_normalized",
            "hook_name_out": f"{at}.hook_mlp_out",
            "model_name": "gpt2",
        }
        config = {"architecture": "jumprelu_transcoder", "d_in": D, "d_out": D, "d_sae": F, "dtype": "float32",
                  "normalize_activations": "none", "apply_b_dec_to_input": False, "metadata": metadata}  # fmt: skip
        save(folder / f"{at}.ln2.hook_normalized" / "sae_weights.safetensors", t, config)
        save(folder / f"{at}.ln2.hook_normalized" / "sparsity.safetensors", {"sparsity": torch.zeros(F)})
        return lambda x: jump(x @ t["W_enc"] + t["b_enc"], t["threshold"]) @ t["W_dec"] + t["b_dec"]

    return layerwise([one(layer) for layer in range(L)])


OPEN_MOSS = f"transcoder/8x/k{K}/layer{{layer}}_transcoder_8x_k{K}/sae_weights.safetensors"


def open_moss(folder: Path, act_fn: str = "topk", norm_activation: str = "dataset-wise", **changed: Any) -> Reference:
    """The library's steps: inputs times sqrt(D) / norm, an activation function of pre * |W_D|, outputs times norm / sqrt(D)."""
    normalised = norm_activation == "dataset-wise"

    def one(layer: int) -> Callable[[Tensor], Tensor]:
        reads, writes = f"blocks.{layer}.ln2.hook_normalized", f"blocks.{layer}.hook_mlp_out"
        norms = {f"dataset_average_activation_norm.{hook}": torch.tensor(3.0 + len(hook)) for hook in (reads, writes)}
        t = {"W_E": draw(D, F), "b_E": draw(F), "W_D": draw(F, D), "b_D": draw(D), **norms}
        if act_fn == "jumprelu":
            t["activation_function.log_jumprelu_threshold"] = draw(F) - 1
        config = {"sae_type": "sae", "hook_point_in": reads, "hook_point_out": writes, "d_model": D, "expansion_factor": 2.0,
                  "use_decoder_bias": True, "act_fn": act_fn, "norm_activation": norm_activation, "top_k": K,
                  "sparsity_include_decoder_norm": True, "use_triton_kernel": False, "use_glu_encoder": False,
                  "sparsity_threshold_for_triton_spmm_kernel": 0.996, "jumprelu_threshold_window": 2.0, **changed}  # fmt: skip
        path = folder / OPEN_MOSS.format(layer=layer)
        save(path, t, config, "config.json")
        scale_in, scale_out = (D**0.5 / float(norm) if normalised else 1.0 for norm in norms.values())

        def run(x: Tensor) -> Tensor:
            norm = t["W_D"].norm(dim=1)
            score = (x * scale_in @ t["W_E"] + t["b_E"]) * norm
            kept = {
                "topk": topk, "relu": torch.relu,
                "jumprelu": lambda s: jump(s, t["activation_function.log_jumprelu_threshold"].exp()),
            }[act_fn](score)  # fmt: skip
            return (kept / norm @ t["W_D"] + t["b_D"]) / scale_out

        return run

    return layerwise([one(layer) for layer in range(L)])


# ---- libraries for cross-layer transcoders


def clt_forge(folder: Path, cross_layer: bool = True) -> Reference:
    pairs = [(s, t) for s in range(L) for t in range(s, L if cross_layer else s + 1)]
    t = {"W_enc": draw(L, D, F), "b_enc": draw(L, F), "log_threshold": draw(L, F) - 2, "W_dec": draw(len(pairs), F, D),
         "b_dec": draw(len(pairs), D), "estimated_norm_scaling_factor_in": draw(L) + 2,
         "estimated_norm_scaling_factor_out": draw(L) + 2, "feature_count": torch.zeros(L, F, dtype=torch.int64)}  # fmt: skip
    t |= {"layer_mask": torch.ones(L, len(pairs))} if cross_layer else {}
    config = {"device": "cuda", "dtype": "float32", "seed": 0, "model_name": "gpt2", "d_in": D, "d_latent": F, "n_layers": L,
              "jumprelu_bandwidth": 1.0, "jumprelu_init_threshold": 0.03, "normalize_decoder": False, "debug": False,
              "dead_feature_window": 250, "cross_layer_decoders": cross_layer, "context_size": 16, "l0_coefficient": 2.0,
              "activation_fn": "jumprelu", "sparse_decode": "dense", "sparse_threshold": 0.9995, "ddp": False, "fsdp": False,
              "feature_sharding": False}  # fmt: skip
    save(folder / "clt_weights.safetensors", t, config)

    def run(x_LPD: Tensor) -> Tensor:
        x = x_LPD * t["estimated_norm_scaling_factor_in"][:, None, None]
        a = jump(torch.einsum("lpd,ldf->lpf", x, t["W_enc"]) + t["b_enc"][:, None], t["log_threshold"].exp()[:, None])
        y = torch.zeros_like(x)
        for number, (source, target) in enumerate(pairs):
            y[target] += a[source] @ t["W_dec"][number] + t["b_dec"][number]
        return y / t["estimated_norm_scaling_factor_out"][:, None, None]

    return run


def crosslayer_coding(folder: Path) -> Reference:
    t = {"theta_manager.log_threshold": draw(L, F) - 2}
    for s in range(L):
        t |= {f"encoder_module.encoders.{s}.weight": draw(F, D), f"encoder_module.encoders.{s}.bias_param": draw(F)}
        for target in range(s, L):
            name = f"decoder_module.decoders.{s}->{target}"
            t |= {f"{name}.weight": draw(D, F), f"{name}.bias_param": draw(D)}
    config = {"num_features": F, "num_layers": L, "d_model": D, "model_name": "gpt2", "normalization_method": "auto",
              "activation_fn": "jumprelu", "jumprelu_threshold": 0.03, "batchtopk_k": None, "decoder_tying": "none",
              "enable_feature_offset": False, "enable_feature_scale": False, "skip_connection": False, "clt_dtype": "float32",
              "mlp_input_template": "transformer.h.{}.ln_2.output", "mlp_output_template": "transformer.h.{}.mlp.output",
              "tl_input_template": "blocks.{}.ln2.hook_normalized", "tl_output_template": "blocks.{}.hook_mlp_out"}  # fmt: skip
    save(folder / "full_model.safetensors", t, config)
    stats = {side: [(draw(D), draw(D).abs() + 0.5) for _ in range(L)] for side in ("inputs", "targets")}  # mean, std
    said = {
        str(layer): {
            side: {"mean": mean.tolist(), "std": std.tolist()}
            for side, rows in stats.items()
            for mean, std in rows[layer : layer + 1]
        }
        for layer in range(L)
    }
    (folder / "norm_stats.json").write_text(json.dumps(said))

    def run(x_LPD: Tensor) -> Tensor:
        y = torch.zeros_like(x_LPD)
        for s in range(L):
            mean, std = stats["inputs"][s]
            pre = (x_LPD[s] - mean) / std @ t[f"encoder_module.encoders.{s}.weight"].T
            a = jump(pre + t[f"encoder_module.encoders.{s}.bias_param"], t["theta_manager.log_threshold"][s].exp())
            for target in range(s, L):
                name = f"decoder_module.decoders.{s}->{target}"
                y[target] += a @ t[f"{name}.weight"].T + t[f"{name}.bias_param"]
        return torch.stack([y[i] * std + mean for i, (mean, std) in enumerate(stats["targets"])])

    return run


CLT = "cross_layer_transcoder"
NORMALISED = ("ln2.hook_normalized", "hook_mlp_out")
MLP = ("mlp.hook_in", "mlp.hook_out")
PUBLISHED: dict[str, Published] = {
    "Gemma Scope 1": Published(gemma_scope_1, hooks=NORMALISED, assumed=True),
    "Gemma Scope 2": Published(gemma_scope_2, hooks=("mlp.hook_in", "hook_mlp_out")),
    "Gemma Scope 2 CLT": Published(gemma_scope_2_clt, CLT),
    "sparsify": Published(lambda folder: sparsify(folder, transcode=True), hooks=MLP),
    "sparsify, older, shifted": Published(lambda f: sparsify(f, shift=True), hooks=MLP, options={"input_shift": True}),
    "sparsify, older, as it is": Published(sparsify, hooks=MLP, options={"input_shift": False}),
    "clt-training": Published(clt_training, hooks=MLP),
    "clt-training cross-layer": Published(clt_training_cross, CLT, hooks=MLP),
    "clt-training, two layers ahead": Published(lambda folder: clt_training_cross(folder, 2), CLT, hooks=MLP),
    "SAELens": Published(saelens, hooks=NORMALISED),
    "OpenMOSS topk": Published(open_moss, hooks=NORMALISED),
    "OpenMOSS relu": Published(lambda folder: open_moss(folder, "relu"), hooks=NORMALISED),
    "OpenMOSS jumprelu": Published(lambda folder: open_moss(folder, "jumprelu", "inference"), hooks=NORMALISED),
    "CLT-Forge": Published(clt_forge, CLT, hooks=NORMALISED, assumed=True),
    "CLT-Forge per-layer": Published(lambda folder: clt_forge(folder, False), hooks=NORMALISED, assumed=True),
    "crosslayer-coding": Published(crosslayer_coding, CLT, hooks=NORMALISED),
}  # fmt: skip
