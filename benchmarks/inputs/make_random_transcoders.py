"""Random transcoders for a Llama-class Hugging Face folder, in circuit-tracer's native layouts, deterministic by seed.

    python -m benchmarks.inputs.make_random_transcoders MODEL_FOLDER OUT --kind clt --features 2048 --active 16

Encoders are Gaussian in the standardised space of each layer's input; one threshold a layer (JumpReLU) is set so that
about `--active` features fire at a position, measured on texts/calibration.txt; decoders are Gaussian, scaled so that a
reconstruction is about as long as the true MLP output. They explain nothing: they are for comparing engines, whose work
and whose answer do not depend on whether a feature means something.

    clt  `W_enc_{l}.safetensors` (W_enc (F,D), b_enc, b_dec, threshold), `W_dec_{l}.safetensors` (F, L-l, D);
         reads hook_resid_mid, writes hook_mlp_out
    plt  `layer_{l}.safetensors` (W_enc (F,D), W_dec (F,D), b_enc, b_dec, activation_function.threshold,
         W_skip with --skip); reads mlp.hook_in, writes mlp.hook_out (as the published Llama and Qwen sets)
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.common.places import INPUTS

TEXT = INPUTS / "texts" / "calibration.txt"
HOOKS = {"clt": ("hook_resid_mid", "hook_mlp_out"), "plt": ("mlp.hook_in", "mlp.hook_out")}
KINDS = {"clt": "cross_layer_transcoder", "plt": "transcoder_set"}


@dataclass
class Capture:
    """What one layer reads and writes on the calibration text, without position 0: (P-1, D) each."""

    resid_mid: Tensor
    mlp_in: Tensor
    mlp_out: Tensor


def capture(folder: Path) -> list[Capture]:
    """One forward pass over the calibration text, behind a BOS token."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = [tokenizer.bos_token_id, *tokenizer(TEXT.read_text(), add_special_tokens=False).input_ids]
    norm_in: dict[int, Tensor] = {}
    norm_out: dict[int, Tensor] = {}
    mlp_out: dict[int, Tensor] = {}
    for layer, block in enumerate(model.model.layers):
        norm, mlp = block.post_attention_layernorm, block.mlp
        norm.register_forward_pre_hook(lambda _m, inputs, at=layer: norm_in.update({at: inputs[0][0, 1:]}))
        norm.register_forward_hook(lambda _m, _i, output, at=layer: norm_out.update({at: output[0, 1:]}))
        mlp.register_forward_hook(lambda _m, _i, output, at=layer: mlp_out.update({at: output[0, 1:]}))
    with torch.no_grad():
        model(torch.tensor([ids]))
    return [Capture(norm_in[at], norm_out[at], mlp_out[at]) for at in range(len(model.model.layers))]


@dataclass
class Layer:
    """Encoder (F, D), bias, threshold (F,), decoder bias (D,) and the root-mean-square length of a decoder row."""

    W_enc: Tensor
    b_enc: Tensor
    threshold: Tensor
    b_dec: Tensor
    row_length: float


def random_layer(
    x: Tensor, y: Tensor, n_features: int, n_active: float, n_writers: int, generator: torch.Generator
) -> Layer:
    """`n_writers` layers write to one MLP output (1 for per-layer transcoders); their sum should match it in length."""
    d_model = x.shape[1]
    mean = x.mean(0)
    spread = (x - mean).std(0) + 1e-3
    W_enc = torch.randn(n_features, d_model, generator=generator) / d_model**0.5 / spread
    b_enc = -(W_enc @ mean)
    pre = x @ W_enc.T + b_enc
    rank = round(pre.numel() * (1 - n_active / n_features))
    threshold = pre.flatten().kthvalue(max(rank, 1)).values.clamp(min=0)
    active = pre[pre > threshold]
    row_length = float(y.norm(dim=-1).mean() / active.mean() / (n_active * n_writers) ** 0.5)
    return Layer(W_enc, b_enc, threshold.expand(n_features).contiguous(), y.mean(0), row_length)


def cast(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}


def write_clt_layer(
    out: Path, at: int, n_layers: int, layer: Layer, dtype: torch.dtype, generator: torch.Generator
) -> None:
    """The two files of one layer of a cross-layer transcoder."""
    n_features, d_model = layer.W_enc.shape
    scale = layer.row_length / d_model**0.5
    encoder = {"W_enc": layer.W_enc, "b_enc": layer.b_enc, "b_dec": layer.b_dec, "threshold": layer.threshold}
    named = {f"{name}_{at}": tensor for name, tensor in encoder.items()}
    save_file(cast(named, dtype), out / f"W_enc_{at}.safetensors")
    W_dec = torch.randn(n_features, n_layers - at, d_model, generator=generator) * scale
    save_file(cast({f"W_dec_{at}": W_dec}, dtype), out / f"W_dec_{at}.safetensors")


def write_plt_layer(
    out: Path, at: int, layer: Layer, skip: bool, dtype: torch.dtype, generator: torch.Generator
) -> None:
    """The file of one per-layer transcoder."""
    n_features, d_model = layer.W_enc.shape
    scale = layer.row_length / d_model**0.5
    tensors = {
        "W_enc": layer.W_enc,
        "W_dec": torch.randn(n_features, d_model, generator=generator) * scale,
        "b_enc": layer.b_enc,
        "b_dec": layer.b_dec,
        "activation_function.threshold": layer.threshold,
    }
    if skip:
        tensors["W_skip"] = torch.randn(d_model, d_model, generator=generator) * (0.1 / d_model**0.5)
    save_file(cast(tensors, dtype), out / f"layer_{at}.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="Hugging Face folder of a Llama-class model")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--kind", choices=sorted(KINDS), default="clt")
    parser.add_argument("--features", type=int, default=256, help="features a layer")
    parser.add_argument("--active", type=float, default=4, help="features a layer that fire at a position, about")
    parser.add_argument("--skip", action="store_true", help="plt only: with a random skip connection")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.skip and args.kind != "plt":
        parser.error("--skip needs --kind plt: circuit-tracer 0.5.0 loses the skip connection of a saved CLT")

    args.out.mkdir(parents=True, exist_ok=True)
    captures, dtype = capture(args.model), getattr(torch, args.dtype)
    generator = torch.Generator().manual_seed(args.seed)
    for at, seen in enumerate(captures):
        x, writers = (seen.resid_mid, at + 1) if args.kind == "clt" else (seen.mlp_in, 1)
        layer = random_layer(x, seen.mlp_out, args.features, args.active, writers, generator)
        if args.kind == "clt":
            write_clt_layer(args.out, at, len(captures), layer, dtype, generator)
        else:
            write_plt_layer(args.out, at, layer, args.skip, dtype, generator)
    hook_in, hook_out = HOOKS[args.kind]
    (args.out / "config.yaml").write_text(
        f"model_kind: {KINDS[args.kind]}\nmodel_name: {args.model.name}\nscan: random-{args.kind}-{args.features}\n"
        f"feature_input_hook: {hook_in}\nfeature_output_hook: {hook_out}\n"
    )
    print(f"{args.out}: {args.kind}, {len(captures)} layers x {args.features} features, about {args.active:g} active")


if __name__ == "__main__":
    main()
