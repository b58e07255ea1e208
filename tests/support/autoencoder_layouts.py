"""Miniature autoencoders in every layout that is read, each with the formula of its own library, as transcoder_layouts.py.

Letters: L layers, P positions, D width, F features a layer.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.support.dictionaries import uniform
from tests.support.published import D, F, K, L
from tests.support.transcoder_layouts import Formula, Layout, jump, relu, topk, topk_of_relu, write_tensors

OfOne = Callable[[Tensor], Tensor]  # (P, D) -> (P, D)


def layers_of(write: Callable[[Path, int], OfOne]) -> Callable[[Path], Formula]:
    """A writer of all layers, from one of a layer."""

    def every(folder: Path) -> Formula:
        made = [write(folder, layer) for layer in range(L)]
        return lambda x_LPD: torch.stack([one(x) for one, x in zip(made, x_LPD, strict=True)])

    return every


def _say(path: Path, said: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(said))


def _matrices(bias: float = 0.3) -> dict[str, Tensor]:
    return {"W_enc": uniform(D, F), "W_dec": uniform(F, D), "b_enc": uniform(F) * bias, "b_dec": uniform(D)}


# ---- SAELens


def saelens(folder: Path, layer: int, architecture: str) -> OfOne:
    t, said = _matrices(), {"architecture": architecture, "d_in": D, "d_sae": F, "dtype": "float32", "device": "cpu"}
    scale, place = 1.0, "hook_resid_post"
    if architecture == "gated":  # at heads, laid side by side
        del t["b_enc"]
        t |= {name: uniform(F) * 0.5 for name in ("b_gate", "b_mag", "r_mag")}
        said |= {"reshape_activations": "hook_z", "apply_b_dec_to_input": True, "normalize_activations": "none"}
        place = "attn.hook_z"
    elif architecture == "jumprelu":  # the input scaled by its expected norm
        t["threshold"], scale = uniform(F), 1.7
        said |= {"apply_b_dec_to_input": True, "normalize_activations": "expected_average_only_in"}
        _say(folder / f"layer_{layer}" / "activation_scaler.json", {"scaling_factor": scale})
    else:
        said |= {"k": K, "rescale_acts_by_decoder_norm": True, "apply_b_dec_to_input": False}
    said["metadata"] = {"model_name": "gpt2", "hook_name": f"blocks.{layer}.{place}", "sae_lens_version": "6.5.0",
                        "hf_hook_name": "model.layers.0", "prepend_bos": True}  # fmt: skip
    write_tensors(folder / f"layer_{layer}" / "sae_weights.safetensors", t)
    _say(folder / f"layer_{layer}" / "cfg.json", said)

    def of_one(x: Tensor) -> Tensor:
        sae_in = x * scale - (t["b_dec"] if said["apply_b_dec_to_input"] else 0)
        pre = sae_in @ t["W_enc"]
        if architecture == "gated":
            acts = (pre + t["b_gate"] > 0) * torch.relu(sae_in @ (t["W_enc"] * t["r_mag"].exp()) + t["b_mag"])
        elif architecture == "jumprelu":
            acts = torch.relu(jump(pre + t["b_enc"], t["threshold"]))
        else:
            norm = t["W_dec"].norm(dim=-1)
            acts = topk_of_relu((pre + t["b_enc"]) * norm, K) / norm
        return (acts @ t["W_dec"] + t["b_dec"]) / scale

    return of_one


def saelens_first(folder: Path, layer: int) -> OfOne:
    """Before version 3: no architecture, b_dec subtracted and the stream centred without a word, a scale of features, and
    settings of training beside.
    """
    t = _matrices() | {"scaling_factor": torch.rand(F) + 0.5}
    write_tensors(folder / f"blocks.{layer}.hook_resid_pre" / "sae_weights.safetensors", t)
    said = {"model_name": "gpt2", "hook_point": f"blocks.{layer}.hook_resid_pre", "hook_point_layer": layer,
            "hook_point_head_index": None, "d_in": D, "d_sae": F, "activation_fn_str": "relu",
            "normalize_activations": "none", "finetuning_scaling_factor": True, "is_dataset_tokenized": False,
            "b_dec_init_method": "geometric_median", "lr_warm_up_steps": 5000, "dead_feature_window": 5000,
            "total_training_tokens": 300000000, "wandb_entity": None}  # fmt: skip
    _say(folder / f"blocks.{layer}.hook_resid_pre" / "cfg.json", said)

    def of_one(x: Tensor) -> Tensor:
        sae_in = x - x.mean(-1, keepdim=True) - t["b_dec"]
        return (torch.relu(sae_in @ t["W_enc"] + t["b_enc"]) * t["scaling_factor"]) @ t["W_dec"] + t["b_dec"]

    return of_one


# ---- Google


def gemma_scope_1(folder: Path, layer: int) -> OfOne:
    t = _matrices() | {"threshold": torch.rand(F)}
    write_tensors(folder / "gemma-scope-2b-pt-att" / f"layer_{layer}" / "width_16k" / "params.npz", t)
    return lambda x: jump(x @ t["W_enc"] + t["b_enc"], t["threshold"]) @ t["W_dec"] + t["b_dec"]


def gemma_scope_2(folder: Path, layer: int) -> OfOne:
    t = {name.lower(): tensor for name, tensor in _matrices().items()} | {"threshold": torch.rand(F)}
    place, at = f"model.layers.{layer}.self_attn.o_proj.input", folder / f"layer_{layer}_width_16k_l0_small"
    write_tensors(at / "params.safetensors", t)
    _say(at / "config.json", {"hf_hook_point_in": place, "hf_hook_point_out": place, "width": F, "type": "sae", "l0": 20,
                              "model_name": "google/gemma-3-1b", "architecture": "jump_relu",
                              "affine_connection": False})  # fmt: skip
    return lambda x: jump(x @ t["w_enc"] + t["b_enc"], t["threshold"]) @ t["w_dec"] + t["b_dec"]


# ---- EleutherAI, OpenMOSS


def sparsify(folder: Path, layer: int) -> OfOne:
    t = {"encoder.weight": uniform(F, D), "encoder.bias": uniform(F), "W_dec": uniform(F, D), "b_dec": uniform(D)}
    write_tensors(folder / f"layers.{layer}" / "sae.safetensors", t)
    _say(folder / f"layers.{layer}" / "cfg.json", {"expansion_factor": 2, "normalize_decoder": True, "num_latents": F, "k": K,
         "multi_topk": False, "d_in": D})  # fmt: skip
    return lambda x: (
        topk_of_relu((x - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"], K) @ t["W_dec"] + t["b_dec"]
    )


def open_moss(folder: Path, layer: int) -> OfOne:
    t = {"W_E": uniform(D, F), "b_E": uniform(F), "W_D": uniform(F, D), "b_D": uniform(D)}
    place, norm, at = f"blocks.{layer}.hook_attn_out", 3.0 + layer, folder / f"layer{layer}_sae_8x_k{K}"
    key = f"dataset_average_activation_norm.{place}"
    write_tensors(at / "sae_weights.safetensors", t | {key: torch.tensor(norm)})
    _say(at / "config.json", {"sae_type": "sae", "hook_point_in": place, "hook_point_out": place, "d_model": D, "top_k": K,
         "act_fn": "topk", "norm_activation": "dataset-wise", "sparsity_include_decoder_norm": True})  # fmt: skip

    def of_one(x: Tensor) -> Tensor:
        scale, size = sqrt(D) / norm, t["W_D"].norm(dim=1)
        acts = topk_of_relu((x * scale @ t["W_E"] + t["b_E"]) * size, K) / size
        return (acts @ t["W_D"] + t["b_D"]) / scale

    return of_one


def llama_scope(folder: Path, layer: int) -> OfOne:
    t = {
        "encoder.weight": uniform(F, D),
        "encoder.bias": uniform(F),
        "decoder.weight": uniform(D, F),
        "decoder.bias": uniform(D),
    }
    place, norm, at = f"blocks.{layer}.hook_resid_post", 2.0 + layer, folder / f"Llama3_1-8B-Base-L{layer}R-8x"
    write_tensors(at / "checkpoints" / "final.safetensors", t)
    _say(at / "hyperparams.json", {"hook_point_in": place, "hook_point_out": place, "act_fn": "jumprelu", "d_model": D,
         "d_sae": F, "jump_relu_threshold": 0.4, "norm_activation": "dataset-wise", "sparsity_include_decoder_norm": True,
         "dataset_average_activation_norm": {"in": norm, "out": norm}, "expansion_factor": 8,
         "apply_decoder_bias_to_pre_encoder": False, "use_decoder_bias": True, "use_glu_encoder": False})  # fmt: skip

    def of_one(x: Tensor) -> Tensor:
        scale, size = sqrt(D) / norm, t["decoder.weight"].norm(dim=0)
        pre = x * scale @ t["encoder.weight"].T + t["encoder.bias"]
        return ((pre * (pre * size > 0.4)) @ t["decoder.weight"].T + t["decoder.bias"]) / scale

    return of_one


# ---- pickles


def qwen_scope(folder: Path, layer: int) -> OfOne:
    t = {"W_enc": uniform(F, D), "W_dec": uniform(D, F), "b_enc": uniform(F), "b_dec": uniform(D)}
    write_tensors(folder / "SAE-Res-Qwen3-1.7B-Base-W32K-L0_3" / f"layer{layer}.sae.pt", t)
    return lambda x: topk(x @ t["W_enc"].T + t["b_enc"], 3) @ t["W_dec"].T + t["b_dec"]


def goodfire(folder: Path, layer: int) -> OfOne:
    t = {"encoder_linear.weight": uniform(F, D), "encoder_linear.bias": uniform(F), "decoder_linear.weight": uniform(D, F),
         "decoder_linear.bias": uniform(D)}  # fmt: skip
    write_tensors(folder / f"Llama-SAE-layer{layer}" / "sae.pth", t)
    return lambda x: (
        torch.relu(x @ t["encoder_linear.weight"].T + t["encoder_linear.bias"]) @ t["decoder_linear.weight"].T
        + t["decoder_linear.bias"]
    )


def dictionary_learning(folder: Path, layer: int, kind: str) -> OfOne:
    enc, dec, bias, b = uniform(F, D), uniform(F, D), uniform(F), uniform(D)
    gate, mag, r = (uniform(F) * 0.5 for _ in range(3))
    layers = {"encoder.weight": enc, "encoder.bias": bias, "decoder.weight": dec.T.contiguous()}
    matrices = {"W_enc": enc.T.contiguous(), "W_dec": dec, "b_enc": bias, "b_dec": b}
    number, threshold = torch.tensor(K), torch.tensor(0.4)
    tensors, encode = {
        "AutoEncoder": (layers | {"bias": b}, lambda x: relu((x - b) @ enc.T + bias, None)),
        "AutoEncoderNew": (layers | {"decoder.bias": b}, lambda x: relu(x @ enc.T + bias, None)),
        "GatedAutoEncoder": (
            {"encoder.weight": enc, "decoder.weight": dec.T.contiguous(), "decoder_bias": b, "gate_bias": gate,
             "mag_bias": mag, "r_mag": r},
            lambda x: ((x - b) @ enc.T + gate > 0) * torch.relu(r.exp() * ((x - b) @ enc.T) + mag),
        ),
        "AutoEncoderTopK": (
            layers | {"b_dec": b, "k": number, "threshold": torch.tensor(-1.0)},
            lambda x: topk_of_relu((x - b) @ enc.T + bias, K),
        ),
        "BatchTopKSAE": (
            layers | {"b_dec": b, "k": number, "threshold": threshold},
            lambda x: jump(torch.relu((x - b) @ enc.T + bias), threshold),
        ),
        "MatryoshkaBatchTopKSAE": (
            matrices | {"k": number, "threshold": threshold, "group_sizes": torch.tensor([2, F - 2])},
            lambda x: jump(torch.relu((x - b) @ enc.T + bias), threshold),
        ),
        "JumpReluAutoEncoder": (
            matrices | {"threshold": gate}, lambda x: torch.relu(jump(x @ enc.T + bias, gate)),
        ),
    }[kind]  # fmt: skip
    at = folder / f"resid_post_layer_{layer}"
    write_tensors(at / "ae.pt", tensors)
    _say(at / "config.json", {"trainer": {"dict_class": kind, "trainer_class": "Trainer", "activation_dim": D, "dict_size": F,
         "layer": layer, "lm_name": "EleutherAI/pythia-70m-deduped", "submodule_name": f"resid_post_layer_{layer}", "lr": 1e-3},
         "buffer": {"d_submodule": D, "io": "out", "ctx_len": 128}})  # fmt: skip
    return lambda x: encode(x) @ dec + b


DICTIONARY_LEARNING = (
    "AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE",
    "JumpReluAutoEncoder",
)  # fmt: skip


def switch(folder: Path, layer: int) -> OfOne:
    """Ours: two experts, of which the router's favourite encodes a token; their features are an even number."""
    n_features, k = F - 1, 2
    t = {"W_enc": uniform(D, n_features), "W_dec": uniform(n_features, D), "b_enc": uniform(n_features), "b_dec": uniform(D),
         "W_router": uniform(2, D), "b_router": uniform(2)}  # fmt: skip
    said = {"architecture": "switch", "k": k, "metadata": {"hook_name": f"blocks.{layer}.hook_resid_post"}}
    write_tensors(folder / f"layer_{layer}" / "sae_weights.safetensors", t)
    _say(folder / f"layer_{layer}" / "cfg.json", said)

    def formula(x: Tensor) -> Tensor:
        share, expert = torch.softmax(x @ t["W_router"].T + t["b_router"], -1).max(-1, keepdim=True)
        own = torch.arange(n_features) // (n_features // 2) == expert
        acts = topk_of_relu((x @ t["W_enc"] + t["b_enc"]).masked_fill(~own, 0), k) * share
        return acts @ t["W_dec"] + t["b_dec"]

    return formula


_SAELENS = ("SAELens autoencoder", "layer_{layer}/sae_weights.safetensors", "cfg.json")


def _layout(
    name: str,
    write: Callable[[Path, int], OfOne],
    tensors: str,
    config: str | None = None,
    redundant: tuple[str, ...] = (),
) -> Layout:
    return Layout(name, layers_of(write), tensors, config, says_hooks=True, redundant=redundant)


# name -> layout and the place that it says
AUTOENCODERS: dict[str, tuple[Layout, str]] = {
    "saelens-gated": (_layout(_SAELENS[0], partial(saelens, architecture="gated"), *_SAELENS[1:]), "attn.hook_z"),
    "saelens-jump": (_layout(_SAELENS[0], partial(saelens, architecture="jumprelu"), *_SAELENS[1:]), "hook_resid_post"),
    "saelens-topk": (_layout(_SAELENS[0], partial(saelens, architecture="topk"), *_SAELENS[1:]), "hook_resid_post"),
    "saelens-first": (
        _layout(_SAELENS[0], saelens_first, "blocks.{layer}.hook_resid_pre/sae_weights.safetensors", "cfg.json"),
        "hook_resid_pre",
    ),
    "gemma-scope-1-att": (
        _layout("Gemma Scope 1", gemma_scope_1, "gemma-scope-2b-pt-att/layer_{layer}/width_16k/params.npz"), "attn.hook_z",
    ),
    "gemma-scope-2-sae": (
        _layout("Gemma Scope 2 autoencoder", gemma_scope_2, "layer_{layer}_width_16k_l0_small/params.safetensors",
                "config.json"),
        "attn.hook_z",
    ),
    "sparsify-sae": (
        _layout("EleutherAI sparsify autoencoder", sparsify, "layers.{layer}/sae.safetensors", "cfg.json", ("transcode",)),
        "hook_resid_post",
    ),
    "open-moss-sae": (
        _layout("OpenMOSS autoencoder", open_moss, f"layer{{layer}}_sae_8x_k{K}/sae_weights.safetensors", "config.json"),
        "hook_attn_out",
    ),
    "llama-scope": (
        _layout("Llama Scope autoencoder", llama_scope, "Llama3_1-8B-Base-L{layer}R-8x/checkpoints/final.safetensors",
                redundant=("sparsity_include_decoder_norm",)),
        "hook_resid_post",
    ),
    "qwen-scope": (
        _layout("Qwen-Scope autoencoder", qwen_scope, "SAE-Res-Qwen3-1.7B-Base-W32K-L0_3/layer{layer}.sae.pt"),
        "hook_resid_post",
    ),
    "switch": (
        _layout("switch autoencoder", switch, "layer_{layer}/sae_weights.safetensors", "cfg.json"), "hook_resid_post",
    ),
    "goodfire": (_layout("Goodfire autoencoder", goodfire, "Llama-SAE-layer{layer}/sae.pth"), "hook_resid_post"),
    **{
        f"dictionary-learning-{kind}": (
            _layout("dictionary_learning autoencoder", partial(dictionary_learning, kind=kind),
                    "resid_post_layer_{layer}/ae.pt", "config.json"),
            "hook_resid_post",
        )
        for kind in DICTIONARY_LEARNING
    },
}  # fmt: skip
