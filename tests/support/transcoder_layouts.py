"""Miniature transcoders in every layout that is read, each with the formula of its own library: a row a layout.

A row's `write` makes the files in a folder and returns the function that they stand for, in plain torch, for inputs
(L, P, D). To add a layout, add a row: the tests of strict readers take it from there.
Letters: L layers, P positions, D d_model, F features a layer.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support import published
from tests.support.dictionaries import uniform
from tests.support.published import D, F, K, L

Formula = Callable[[Tensor], Tensor]
HOOKS = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "mlp.hook_out"}


@dataclass(frozen=True)
class Layout:
    """format: the name of the format that reads it. tensors: the files of layers 0, 1, ... that hold tensors to which others
    can be added, `{layer}` for the number. config: the file of settings beside them that the layout has, if it has one.
    says_hooks: the files say where they stand. extra: how a tensor of all layers is called, with `{name}`.
    """

    format: str
    write: Callable[[Path], Formula]
    tensors: str
    config: str | None = None
    says_hooks: bool = False
    extra: str = "{name}"
    redundant: tuple[str, ...] = ()

    @property
    def hooks(self) -> dict[str, str]:
        """What must be given to load it."""
        return {} if self.says_hooks else HOOKS

    def files(self, folder: Path) -> list[Path]:
        """The tensor files of all layers (of all, if there is one)."""
        return list(dict.fromkeys(folder / self.tensors.format(layer=layer) for layer in range(L)))

    def add_tensor(self, folder: Path, name: str, tensor: Tensor) -> None:
        """One more tensor in the file of every layer."""
        for layer, path in enumerate(self.files(folder)):
            write_tensors(path, read_tensors(path) | {self.extra.format(name=name, layer=layer): tensor})

    def key(self, folder: Path, key: str) -> Any:
        """What the settings beside layer 0 say."""
        beside = self.files(folder)[0].parent / self.config if self.config else None
        return json.loads(beside.read_text()).get(key) if beside else None

    def add_key(self, folder: Path, key: str, value: Any, file: str | None = None) -> None:
        """One more key, or another value, in the settings beside every layer; in ``file``, if the layout has none."""
        for path in self.files(folder):
            beside = path.parent / (self.config or file or "cfg.json")
            found = json.loads(beside.read_text()) if beside.is_file() else {}
            beside.write_text(json.dumps(found | {key: value}))


def read_tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".npz":
        return {name: torch.from_numpy(array) for name, array in np.load(path).items()}
    if path.suffix in (".pt", ".pth"):
        tensors: dict[str, Tensor] = torch.load(path, weights_only=True)
        return tensors
    return load_file(path)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez(path, **{name: tensor.numpy() for name, tensor in tensors.items()})
    elif path.suffix in (".pt", ".pth"):
        path.unlink(missing_ok=True)  # what maps it keeps the file that it mapped
        torch.save(tensors, path)
    else:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


# ---- activation functions, as their libraries write them


def relu(pre: Tensor, _: Any) -> Tensor:
    return torch.relu(pre)


def jump(pre: Tensor, threshold: Tensor) -> Tensor:
    return pre * (pre > threshold)


def topk_of_relu(pre: Tensor, k: int) -> Tensor:
    value, index = torch.relu(pre).topk(k)
    return torch.zeros_like(pre).scatter(-1, index, value)


def topk(pre: Tensor, k: int) -> Tensor:
    value, index = pre.topk(k)
    return torch.zeros_like(pre).scatter(-1, index, value)


# ---- writers


def _native_plt(folder: Path, act: str = "relu") -> Formula:
    layers = [
        {
            "W_enc": uniform(F, D),
            "W_dec": uniform(F, D),
            "b_enc": uniform(F),
            "b_dec": uniform(D),
            "W_skip": uniform(D, D),
        }
        for _ in range(L)
    ]
    for layer, t in enumerate(layers):
        extra = {"jump": {"activation_function.threshold": torch.rand(F)}, "topk": {"k": torch.tensor(K)}}.get(act, {})
        t.update(extra)
        write_tensors(folder / f"layer_{layer}.safetensors", t)

    def formula(x_LPD: Tensor) -> Tensor:
        out = []
        for x, t in zip(x_LPD, layers, strict=True):
            pre = x @ t["W_enc"].T + t["b_enc"]
            a = {"relu": relu(pre, None), "topk": topk(pre, K)}.get(act)
            a = jump(pre, t["activation_function.threshold"]) if a is None else a
            out.append(a @ t["W_dec"] + t["b_dec"] + x @ t["W_skip"].T)
        return torch.stack(out)

    return formula


def _native_clt(folder: Path, jumps: bool = False) -> Formula:
    layers = [
        {"W_enc": uniform(F, D), "b_enc": uniform(F), "b_dec": uniform(D)}
        | ({"threshold": torch.rand(F)} if jumps else {})
        for _ in range(L)
    ]
    decoders = [uniform(F, L - layer, D) for layer in range(L)]
    for layer, t in enumerate(layers):
        write_tensors(folder / f"W_enc_{layer}.safetensors", {f"{name}_{layer}": tensor for name, tensor in t.items()})
        write_tensors(folder / f"W_dec_{layer}.safetensors", {f"W_dec_{layer}": decoders[layer]})

    def formula(x_LPD: Tensor) -> Tensor:
        y = torch.stack([t["b_dec"].expand_as(x) for x, t in zip(x_LPD, layers, strict=True)])
        for layer, (x, t) in enumerate(zip(x_LPD, layers, strict=True)):
            pre = x @ t["W_enc"].T + t["b_enc"]
            a = jump(pre, t["threshold"]) if jumps else relu(pre, None)
            y[layer:] += torch.einsum("pf,ftd->tpd", a, decoders[layer])
        return y

    return formula


def _gemma_scope_1(folder: Path) -> Formula:
    layers = [
        {
            "W_enc": uniform(D, F),
            "W_dec": uniform(F, D),
            "b_enc": uniform(F),
            "b_dec": uniform(D),
            "threshold": torch.rand(F),
        }
        for _ in range(L)
    ]
    for layer, t in enumerate(layers):
        write_tensors(folder / f"layer_{layer}.npz", t)
    return lambda x_LPD: torch.stack(
        [
            jump(x @ t["W_enc"] + t["b_enc"], t["threshold"]) @ t["W_dec"] + t["b_dec"]
            for x, t in zip(x_LPD, layers, strict=True)
        ]
    )


def _gemma_scope_2(folder: Path, cross_layer: bool) -> Formula:
    layers = []
    for layer in range(L):
        decoder = uniform(F, L, D) if cross_layer else uniform(F, D)
        if cross_layer:
            decoder[:, :layer] = 0
        t = {
            "w_enc": uniform(D, F), "w_dec": decoder, "b_enc": uniform(F), "b_dec": uniform(D),
            "threshold": torch.rand(F), "affine_skip_connection": uniform(D, D),
        }  # fmt: skip
        layers.append(t)
        path = folder / (f"params_layer_{layer}.safetensors" if cross_layer else f"layer_{layer}_w/params.safetensors")
        write_tensors(path, t)
        said = {"type": "clt" if cross_layer else "transcoder", "architecture": "jump_relu", "width": F, "l0": 10,
                "affine_connection": True, "model_name": "gemma-v3-270m"}  # fmt: skip
        if not cross_layer:
            said |= {
                "hf_hook_point_in": f"model.layers.{layer}.pre_feedforward_layernorm.output",
                "hf_hook_point_out": f"model.layers.{layer}.post_feedforward_layernorm.output",
            }
        (path.parent / "config.json").write_text(json.dumps(said))

    def formula(x_LPD: Tensor) -> Tensor:
        y = torch.zeros_like(x_LPD)
        for layer, (x, t) in enumerate(zip(x_LPD, layers, strict=True)):
            a = jump(x @ t["w_enc"] + t["b_enc"], t["threshold"])
            if cross_layer:
                y += torch.einsum("pf,ftd->tpd", a, t["w_dec"])
            else:
                y[layer] += a @ t["w_dec"]
            y[layer] += t["b_dec"] + x @ t["affine_skip_connection"]
        return y

    return formula


def _sparsify(folder: Path) -> Formula:
    layers = [
        {"encoder.weight": uniform(F, D), "encoder.bias": uniform(F), "W_dec": uniform(F, D), "b_dec": uniform(D)}
        for _ in range(L)
    ]
    for layer, t in enumerate(layers):
        path = folder / f"layers.{layer}.mlp" / "sae.safetensors"
        write_tensors(path, t)
        said = {"activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": 0, "k": K,
                "multi_topk": False, "skip_connection": False, "transcode": True, "d_in": D}  # fmt: skip
        (path.parent / "cfg.json").write_text(json.dumps(said))
    return lambda x_LPD: torch.stack(
        [
            topk_of_relu(x @ t["encoder.weight"].T + t["encoder.bias"], K) @ t["W_dec"] + t["b_dec"]
            for x, t in zip(x_LPD, layers, strict=True)
        ]
    )


def _saelens(folder: Path, architecture: str, old: bool = False) -> Formula:
    layers = []
    for layer in range(L):
        t = {"W_enc": uniform(D, F), "W_dec": uniform(F, D), "b_enc": uniform(F), "b_dec": uniform(D)}
        if "jumprelu" in architecture:
            t["threshold"] = torch.rand(F)
        if "skip" in architecture:
            t["W_skip"] = uniform(D, D)
        layers.append(t)
        path = folder / f"layer_{layer}" / "sae_weights.safetensors"
        write_tensors(path, t)
        places = {"hook_name": f"blocks.{layer}.mlp.hook_in", "hook_name_out": f"blocks.{layer}.mlp.hook_out"}
        said: dict[str, Any] = {"architecture": architecture, "d_in": D, "d_out": D, "d_sae": F, "dtype": "float32",
                "device": "cpu", "normalize_activations": "none", "apply_b_dec_to_input": False}  # fmt: skip
        if old:
            said |= {**places, "hook_layer": layer, "hook_head_index": None, "activation_fn_str": "topk",
                     "activation_fn_kwargs": {"k": K}, "finetuning_scaling_factor": False, "prepend_bos": True}  # fmt: skip
        else:
            notes = {"sae_lens_version": "6.5.0", "model_name": "gpt2", "prepend_bos": True, "neuronpedia_id": None}
            said |= {"reshape_activations": "none", "metadata": {**places, **notes}}
        (path.parent / "cfg.json").write_text(json.dumps(said))

    def formula(x_LPD: Tensor) -> Tensor:
        out = []
        for x, t in zip(x_LPD, layers, strict=True):
            pre = x @ t["W_enc"] + t["b_enc"]
            a = topk_of_relu(pre, K) if old else jump(pre, t["threshold"]) if "threshold" in t else relu(pre, None)
            out.append(a @ t["W_dec"] + t["b_dec"] + (x @ t["W_skip"].T if "W_skip" in t else 0))
        return torch.stack(out)

    return formula


NATIVE_CLT, NATIVE_PLT = "circuit-tracer cross-layer", "circuit-tracer per-layer"
LAYOUTS: dict[str, Layout] = {
    "native-clt": Layout(NATIVE_CLT, _native_clt, "W_enc_{layer}.safetensors", extra="{name}_{layer}"),
    "native-clt-jump": Layout(NATIVE_CLT, lambda folder: _native_clt(folder, True), "W_dec_{layer}.safetensors"),
    "native-plt": Layout(NATIVE_PLT, _native_plt, "layer_{layer}.safetensors"),
    "native-plt-jump": Layout(NATIVE_PLT, lambda folder: _native_plt(folder, "jump"), "layer_{layer}.safetensors"),
    "native-plt-topk": Layout(NATIVE_PLT, lambda folder: _native_plt(folder, "topk"), "layer_{layer}.safetensors"),
    "gemma-scope-1": Layout("Gemma Scope 1", _gemma_scope_1, "layer_{layer}.npz"),
    "gemma-scope-2-plt": Layout(
        "Gemma Scope 2 per-layer", lambda folder: _gemma_scope_2(folder, False), "layer_{layer}_w/params.safetensors",
        "config.json", says_hooks=True,
    ),
    "gemma-scope-2-clt": Layout(
        "Gemma Scope 2 cross-layer", lambda folder: _gemma_scope_2(folder, True), "params_layer_{layer}.safetensors",
        "config.json", redundant=("width",),
    ),
    "sparsify": Layout(
        "EleutherAI sparsify", _sparsify, "layers.{layer}.mlp/sae.safetensors", "cfg.json", says_hooks=True
    ),
    "saelens": Layout(
        "SAELens", lambda folder: _saelens(folder, "transcoder"), "layer_{layer}/sae_weights.safetensors", "cfg.json",
        says_hooks=True,
    ),
    "saelens-jump-skip": Layout(
        "SAELens", lambda folder: _saelens(folder, "jumprelu_skip_transcoder"), "layer_{layer}/sae_weights.safetensors",
        "cfg.json", says_hooks=True,
    ),
    "saelens-old-topk": Layout(
        "SAELens", lambda folder: _saelens(folder, "transcoder", old=True), "layer_{layer}/sae_weights.safetensors",
        "cfg.json", says_hooks=True,
    ),
    "clt-training": Layout(
        "EleutherAI clt-training", published.clt_training, "layers.{layer}.mlp/sae.safetensors", "cfg.json", says_hooks=True
    ),
    "clt-training-cross-layer": Layout(
        "EleutherAI clt-training cross-layer", published.clt_training_cross, "layers.{layer}.mlp/sae.safetensors", "cfg.json",
        says_hooks=True,
    ),
    "open-moss": Layout(
        "OpenMOSS", published.open_moss, published.OPEN_MOSS, "config.json", says_hooks=True,
    ),
    "open-moss-jump": Layout(
        "OpenMOSS", lambda folder: published.open_moss(folder, "jumprelu", "inference"), published.OPEN_MOSS, "config.json",
        says_hooks=True,
    ),
    "clt-forge": Layout("CLT-Forge", published.clt_forge, "clt_weights.safetensors", "cfg.json"),
    "clt-forge-per-layer": Layout(
        "CLT-Forge per-layer", lambda folder: published.clt_forge(folder, False), "clt_weights.safetensors", "cfg.json"
    ),
    "crosslayer-coding": Layout(
        "crosslayer-coding", published.crosslayer_coding, "full_model.safetensors", "cfg.json", says_hooks=True,
        redundant=("jumprelu_threshold",),
    ),
}  # fmt: skip
