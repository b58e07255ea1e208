"""A prompt of thousands of tokens on a random model of Gemma 2 2B's shape with per-layer transcoders. Needs no files.

    python -m benchmarks.tracing.gemma_shaped --device cuda --memory 80GB      # 6,000 tokens, a minute or two on one GPU
    python -m benchmarks.tracing.gemma_shaped --try                            # does the script work? a tiny model, on a CPU

Weights are random: what is measured is work and memory, which do not depend on what features mean. Encoders are Gaussian and
read the normalised stream, so one threshold lets about --active features of a layer fire at each token. Before the trace of
full length, the sum rule must hold on a short prompt of the same model in the same precision, or nothing is reported.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from transformers import Gemma2Config

from benchmarks.common.harness import measure, versions
from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import RESULTS
from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.transcoders.activations import JumpReLU
from circuit_tracer.transcoders.single_layer import SingleLayerTranscoder
from circuit_tracer.transcoders.transcoder_set import TranscoderSet

SHORT = 64  # tokens of the prompt whose sum rule is checked
RESIDUAL = {"float32": 1e-5, "bfloat16": 2e-2}
TINY = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": 32,
}


def random_transcoders(
    config: Gemma2Config, n_features: int, active: float, device: torch.device, dtype: torch.dtype
) -> TranscoderSet:
    """About `active` of `n_features` fire at a token: a unit Gaussian is above the threshold that often."""
    generator = torch.Generator(device).manual_seed(0)
    width = config.hidden_size
    threshold = statistics.NormalDist().inv_cdf(1 - active / n_features)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device).mul_(width**-0.5).to(dtype)

    layers = {}
    for layer in range(config.num_hidden_layers):
        cut = JumpReLU(torch.full((n_features,), threshold, device=device, dtype=dtype))
        one = SingleLayerTranscoder(width, n_features, cut, layer, device=device, dtype=dtype)
        one.W_enc, one.W_dec = normal(n_features, width), normal(n_features, width)
        one.b_enc, one.b_dec = (torch.zeros(size, device=device, dtype=dtype) for size in (n_features, width))
        layers[layer] = one
    return TranscoderSet(layers, "mlp.hook_in", "mlp.hook_out")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=list(RESIDUAL), default="bfloat16")
    parser.add_argument("--tokens", type=int, default=6000)
    parser.add_argument("--features", type=int, default=16384, help="a layer")
    parser.add_argument("--active", type=float, default=50, help="features a layer that fire at a token, about")
    parser.add_argument("--rows", type=int, default=1000, help="features expanded")
    parser.add_argument("--memory", default="80GB", help="what the trace may hold in all")
    parser.add_argument("--try", action="store_true", dest="small", help="tiny sizes: does the script work?")
    parser.add_argument("--results", type=Path, help="default: results/gemma_shaped.json or gemma_shaped_cuda.json")
    args = parser.parse_args()
    if args.small:
        args.tokens, args.features, args.active, args.rows = 600, 64, 4, 50
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    config = Gemma2Config(**(TINY if args.small else {}), max_position_embeddings=max(8192, args.tokens))
    torch.manual_seed(0)
    transcoders = random_transcoders(config, args.features, args.active, device, dtype)
    model = ReplacementModel.from_config(config, transcoders, device=device, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, config.vocab_size, (args.tokens,), generator=generator)

    short = attribute(ids[:SHORT], model, max_feature_nodes=args.rows)
    print(f"sum rule on {SHORT} tokens: {short.residual:.1e} (at most {RESIDUAL[args.dtype]:.0e})", flush=True)
    if not short.residual <= RESIDUAL[args.dtype]:
        raise SystemExit("no speed reported: the sum rule is broken")
    options = {"max_feature_nodes": args.rows, "memory": args.memory, "verbose": True}
    graph, measured = measure(lambda: attribute(ids, model, **options), args.device)
    record: dict[str, Any] = describe(versions=versions(), device=args.device, dtype=args.dtype, **measured)
    record |= {"tokens": graph.n_pos, "active": len(graph.active_features), "memory": args.memory}
    record |= {"expanded": len(graph.selected_features), "edges": len(graph.edges), "residual": graph.residual}
    record |= {"dropped_mass": graph.provenance["dropped_mass"], "plan": graph.provenance["memory_plan"]}
    if device.type == "cuda":
        record["gpu"] = torch.cuda.get_device_name()
    print(
        f"{record['tokens']} tokens, {record['active']} active features, {record['expanded']} expanded: "
        f"{record['seconds']:.1f} s, {record['peak_gb']:.1f} GB, residual {graph.residual:.1e}"
    )
    name = "gemma_shaped_cuda.json" if device.type == "cuda" else "gemma_shaped.json"
    if args.results or not args.small:
        write_results(args.results or RESULTS / name, record)


if __name__ == "__main__":
    main()
