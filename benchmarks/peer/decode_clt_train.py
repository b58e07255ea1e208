"""One dictionary by decode-clt 0.0.1 from activations on disk (../training/rows.py), in circuit-tracer's layout.

Runs inside the virtual environment that setup_decode_clt.sh makes. Training is that of its own trainer by its own recipe
(decode_clt.py), with another learning rate if --rate says so.

--space tells in which space: "own" is its "mean_std" (every dimension centred and scaled, the loss in the model's own space, as
its stores and LossManager have it); "scaled" is this package's (one scale a layer, so that the loss weighs layers alike).

BatchTopK becomes a JumpReLU by the better of two ways, judged on the rows of calibration: its own estimate
(`estimate_theta_posthoc`), scaled layer by layer to the BatchTopK's L0 as its README recommends; or the same cut on the
standardised pre-activation that BatchTopK ranks by, one a layer, at that L0. Thresholds may be negative, as its activations.

Letters: N rows, B tokens, L layers, F features, D width.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))  # last: what is installed here comes before this repository

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.peer.decode_clt import RATE, ByLayer, recipe, require_version, sizes, train
from benchmarks.training.rows import Rows


class Space:
    """To and from the space that it trains in: x' = (x - mean) / scale for each dimension."""

    def __init__(self, rows: Rows, name: str) -> None:
        moments = rows.moments
        self.mean = {side: moments[f"mean_{side}"] for side in "xy"}  # (L, D)
        std = {side: moments[f"std_{side}"] for side in "xy"}
        if name == "own":
            self.scale = {side: one + 1e-6 for side, one in std.items()}
        else:
            self.scale = {
                side: one.square().mean(1, keepdim=True).sqrt().expand_as(one).clone() for side, one in std.items()
            }

    def into(self, side: str, rows_NLD: Tensor) -> ByLayer:
        """By layer (N, D)."""
        moved_NLD = (rows_NLD - self.mean[side]) / self.scale[side]
        return {layer: moved_NLD[:, layer].contiguous() for layer in range(moved_NLD.shape[1])}


class Store:
    """What CLTTrainer asks of a store of activations."""

    def __init__(self, rows: Rows, space: Space, batch: int, own: bool) -> None:
        self.space, self.batches = space, rows.batches(batch)
        layers = range(len(space.mean["y"]))
        # with these its loss is taken in the model's own space
        self.mean_tg = {layer: space.mean["y"][layer, None] for layer in layers} if own else {}
        self.std_tg = {layer: space.scale["y"][layer, None] for layer in layers} if own else {}

    def __iter__(self) -> Iterator[tuple[ByLayer, ByLayer]]:
        return self

    def __next__(self) -> tuple[ByLayer, ByLayer]:
        x_BLD, y_BLD = next(self.batches)
        return self.space.into("x", x_BLD), self.space.into("y", y_BLD)


@torch.no_grad()
def convert(model: Any, space: Space, x_NLD: Tensor, y_NLD: Tensor, batch: int) -> tuple[list[Tensor], dict[str, Any]]:
    """The better thresholds, (F,) a layer, and what was measured on these rows."""
    parts = [space.into("x", part) for part in x_NLD.split(batch) if len(part) > 1]
    chosen = [model.get_feature_activations(part) for part in parts]
    rows = sum(len(part[0]) for part in parts)
    counts = [sum(int((one[layer] != 0).sum()) for one in chosen) for layer in range(len(space.mean["x"]))]
    del chosen
    inputs = space.into("x", x_NLD[:rows])
    pre = [model.get_preactivations(inputs[layer], layer) for layer in range(len(counts))]
    by_cut = [_cut(pre_NF, count) for pre_NF, count in zip(pre, counts, strict=True)]
    model.estimate_theta_posthoc(iter([(part, None) for part in parts]), num_batches=len(parts))
    theta_LF = model.log_threshold.detach().exp()
    by_estimate = [
        _scaled(theta_F, pre_NF, count) for theta_F, pre_NF, count in zip(theta_LF, pre, counts, strict=True)
    ]
    errors = {
        name: nmse(
            model, space, x_NLD[:rows], y_NLD[:rows], lambda pre_NF, layer, t=thresholds: pre_NF * (pre_NF > t[layer])
        )
        for name, thresholds in (("cut", by_cut), ("estimate", by_estimate))
    }
    best = min(errors, key=lambda name: errors[name])
    found = {"nmse_by_conversion": errors, "conversion": best, "l0": sum(counts) / rows}
    return by_cut if best == "cut" else by_estimate, found


def _cut(pre_NF: Tensor, count: int) -> Tensor:
    """Thresholds of one cut on the standardised pre-activations, above which ``count`` of them are."""
    mean_F, std_F = pre_NF.mean(0), pre_NF.std(0) + 1e-6
    score = ((pre_NF - mean_F) / std_F).flatten()
    largest = torch.topk(score, min(count + 1, len(score))).values
    return mean_F + float(largest[-2:].mean()) * std_F


def _scaled(theta_F: Tensor, pre_NF: Tensor, count: int) -> Tensor:
    """A multiple of the thresholds above which ``count`` pre-activations are, by bisection."""
    low, high = 0.0, 1.0
    while int((pre_NF > high * theta_F).sum()) > count and high < 1e6:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if int((pre_NF > middle * theta_F).sum()) > count else (low, middle)
    return high * theta_F


@torch.no_grad()
def nmse(
    model: Any, space: Space, x_NLD: Tensor, y_NLD: Tensor, activation: Callable[[Tensor, int], Tensor] | None
) -> float:
    """Mean over layers of the normalised error in the model's own space; None: by its own forward pass (BatchTopK)."""
    inputs = space.into("x", x_NLD)
    if activation is None:
        outputs = model(inputs)
    else:
        active = {layer: activation(model.get_preactivations(x_ND, layer), layer) for layer, x_ND in inputs.items()}
        outputs = {layer: model.decode(active, layer) for layer in inputs}
    shares = []
    for layer, output_ND in outputs.items():
        y_ND = y_NLD[:, layer]
        error_ND = output_ND * space.scale["y"][layer] + space.mean["y"][layer] - y_ND
        shares.append(float(error_ND.square().sum() / (y_ND - y_ND.mean(0)).square().sum()))
    return sum(shares) / len(shares)


@torch.no_grad()
def write(model: Any, space: Space, thresholds: list[Tensor], folder: Path, model_name: str) -> None:
    """circuit-tracer's layout; the space folded into the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    n_layers = len(thresholds)
    decoders = model.decoder_module.decoders
    for layer in range(n_layers):
        encoder = model.encoder_module.encoders[layer]
        encoder_FD = encoder.weight / space.scale["x"][layer]
        bias_D = sum(decoders[f"{source}->{layer}"].bias_param for source in range(layer + 1))
        tensors = {
            f"W_enc_{layer}": encoder_FD,
            f"b_enc_{layer}": encoder.bias_param - encoder_FD @ space.mean["x"][layer],
            f"b_dec_{layer}": space.mean["y"][layer] + bias_D * space.scale["y"][layer],
            f"threshold_{layer}": thresholds[layer],
        }
        rows = [decoders[f"{layer}->{to}"].weight.T * space.scale["y"][to] for to in range(layer, n_layers)]
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()}, folder / f"W_enc_{layer}.safetensors"
        )
        save_file({f"W_dec_{layer}": torch.stack(rows, 1).contiguous()}, folder / f"W_dec_{layer}.safetensors")
    described = {
        "model_name": model_name,
        "model_kind": "cross_layer_transcoder",
        "feature_input_hook": "hook_resid_mid",
        "feature_output_hook": "hook_mlp_out",
        "scan": folder.name,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(described))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True, help="folder of activations (training/rows.py)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the dictionary")
    parser.add_argument("--features", type=int, required=True)
    parser.add_argument("--active", type=int, required=True, help="features a layer and token")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--space", choices=["own", "scaled"], default="own")
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    versions = require_version()
    if args.threads:
        torch.set_num_threads(args.threads)
    rows = Rows(args.rows)
    about, own = rows.about, args.space == "own"
    space = Space(rows, args.space)
    config = sizes(about["layers"], about["width"], args.features, args.active)
    steps = about["tokens"] // args.batch
    normalisation = "mean_std" if own else "none"
    training = recipe(steps, args.batch, learning_rate=args.rate, normalization_method=normalisation)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        model = train(config, training, Store(rows, space, args.batch, own), scratch)
    seconds = time.perf_counter() - start
    own_rule = {}
    for group in ("calibration", "test"):
        x_NLD, y_NLD = rows.group(group)
        own_rule[group] = nmse(model, space, x_NLD, y_NLD, None)
    thresholds, found = convert(model, space, *rows.group("calibration"), args.batch)
    x_NLD, y_NLD = rows.group("test")
    converted = nmse(model, space, x_NLD, y_NLD, lambda pre_NF, layer: pre_NF * (pre_NF > thresholds[layer]))
    write(model, space, thresholds, args.out, about["model"])
    found |= {
        "rate": args.rate,
        "space": args.space,
        "seconds": seconds,
        "steps": steps,
        "nmse_batch_topk": own_rule,
        "nmse_test": converted,
        "versions": versions,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
