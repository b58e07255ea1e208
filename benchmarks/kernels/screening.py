"""Encoding on a CPU: the dense float32 product and a selection, as it was, and screened in bfloat16, decided by exact sums.

    python -m benchmarks.kernels.screening
    python -m benchmarks.kernels.screening --model WORK/smollm2-hf --transcoders WORK/clt-2048

Without a model inputs and dictionaries are random, one feature in a hundred active; with one also what a layer of a dictionary
that reads the residual stream before MLPs (`hook_resid_mid`) reads on texts. Nothing is reported unless on 1,000 prompts of 25
tokens both products give the same entries, and wherever the dense float32 selection differs, an exact sum says it was wrong.

Letters: P tokens, D width, F features.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import INPUTS, RESULTS
from circuit_tracer.kernels.encode.coarse import has_bfloat16_products
from circuit_tracer.kernels.encode.kept import Kept
from circuit_tracer.kernels.encode.scan import positive
from circuit_tracer.transcoders import JumpReLU, TopK
from circuit_tracer.transcoders.activations import Activation, Selected
from circuit_tracer.transcoders.encoding import encode_in_blocks
from circuit_tracer.transcoders.weight_rows import MemoryRows

PROMPTS, LENGTH = 1000, 25
TOKENS = (25, 2048)  # that take times
KEPT = 32  # of a token, TopK
ACTIVE = 0.01
SHAPES = ((2048, 576), (16384, 576))  # F, D
REPEATS = {25: 40, 2048: 5}


class Encoder(NamedTuple):
    """Weights (F, D), biases (F,), and what it is; thresholds (F,), None: such that one in a hundred is above."""

    weight_FD: Tensor
    bias_F: Tensor
    name: str
    cut_F: Tensor | None = None


def before(x_PD: Tensor, encoder: Encoder, activation: Activation) -> Selected:
    """Encoding as it was: the whole product in float32, and what is active in it."""
    selector = activation.selector()
    selector.add(torch.nn.functional.linear(x_PD, encoder.weight_FD, encoder.bias_F), 0)
    return selector.finish()


def now(x_PD: Tensor, encoder: Encoder, activation: Activation, kept: Kept) -> Selected:
    """Encoding as it is."""
    return encode_in_blocks(x_PD, MemoryRows(encoder.weight_FD), encoder.bias_F, activation, layer=0, kept=kept)


def candidates(x_PD: Tensor, encoder: Encoder, cut_F: Tensor) -> int:
    """How many entries the coarse product leaves open or says are active."""
    weights = Kept().of(encoder.weight_FD, PROMPTS * LENGTH)
    if weights.coarse is None:
        return 0
    lifted_F = weights.cuts(cut_F, encoder.bias_F)[1]
    assert lifted_F is not None
    tokens_PC = weights.coarse.tokens(x_PD, weights.rows(x_PD, encoder.bias_F).norm_B)
    return len(positive(torch.addmm(lifted_F[:, None], weights.coarse.weight_FC, tokens_PC.T))[0])


def random_inputs(width: int) -> Iterator[Tensor]:
    """Prompts (25, D) whose tokens have norms between a half and twice the usual."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(PROMPTS):
        x_PD = torch.randn(LENGTH, width, generator=generator)
        x_PD *= 2.0 ** (2 * torch.rand(LENGTH, 1, generator=generator) - 1)
        yield x_PD


def model_inputs(folder: Path, layer: int) -> Iterator[Tensor]:
    """The residual stream before the MLP of a layer on prompts cut from the benchmark's texts."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    words = "\n".join(path.read_text() for path in sorted((INPUTS / "texts").glob("*.txt")))
    ids = torch.tensor(AutoTokenizer.from_pretrained(folder)(words)["input_ids"])
    starts = torch.randint(len(ids) - LENGTH, (PROMPTS,), generator=torch.Generator().manual_seed(0))
    read: list[Tensor] = []
    norm = model.get_submodule(f"model.layers.{layer}.post_attention_layernorm")
    norm.register_forward_pre_hook(lambda _, given: read.append(given[0].detach()))
    for some in starts.split(50):
        with torch.no_grad():
            model.model(torch.stack([ids[start : start + LENGTH] for start in some]))
        yield from read.pop()


def wrong(x_PD: Tensor, encoder: Encoder, cut_F: Tensor, old: Selected, new: Selected) -> tuple[int, int]:
    """(how many entries differ, in how many of them the new ones are wrong), by exact sums."""
    n_features = len(encoder.bias_F)
    sets = [set((position * n_features + index).tolist()) for position, index, _ in (old, new)]
    mistakes = 0
    for place in sets[0] ^ sets[1]:
        p, f = divmod(place, n_features)
        pairs = zip(x_PD[p].tolist(), encoder.weight_FD[f].tolist(), strict=True)
        exact = torch.tensor(math.fsum([a * b for a, b in pairs] + [encoder.bias_F[f].item()]), dtype=torch.float64)
        mistakes += bool(exact.float() > cut_F[f]) is not (place in sets[1])
    return len(sets[0] ^ sets[1]), mistakes


def seconds(call: Callable[[], Any], repeats: int) -> float:
    """The best of some calls."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def measure(encoder: Encoder, prompts: list[Tensor]) -> dict[str, Any]:
    """Equality on all prompts, then times; AssertionError where entries are not the same."""
    every_PD = torch.cat(prompts[:200])
    cut_F = encoder.cut_F
    if cut_F is None:
        pre_PF = every_PD @ encoder.weight_FD.T + encoder.bias_F
        cut_F = pre_PF.topk(max(1, int(ACTIVE * len(pre_PF))), dim=0).values[-1]
    activations = {"threshold": JumpReLU(cut_F), "topk": TopK(KEPT)}
    differing, entries = 0, 0
    for name, activation in activations.items():
        coarse, float32 = Kept(), Kept(may_copy=False)
        coarse.of(encoder.weight_FD, PROMPTS * LENGTH)
        for x_PD in prompts:
            new = now(x_PD, encoder, activation, coarse)
            other = now(x_PD, encoder, activation, float32)
            assert all(map(torch.equal, new[:2], other[:2])), f"{name}: coarse and float32 products differ"
            if name == "threshold":
                found, mistakes = wrong(x_PD, encoder, cut_F, before(x_PD, encoder, activation), new)
                assert not mistakes, f"{mistakes} entries are not what exact sums say"
                differing, entries = differing + found, entries + len(new[0])
    tokens_PD = every_PD[torch.arange(max(TOKENS)) % len(every_PD)]
    rows = []
    for n_tokens in TOKENS:
        x_PD = tokens_PD[:n_tokens].contiguous()
        for name, activation in activations.items():
            kept = Kept()
            kept.of(encoder.weight_FD, PROMPTS * LENGTH)
            old = seconds(lambda x=x_PD, a=activation: before(x, encoder, a), REPEATS[n_tokens])  # type: ignore[misc]
            new_time = seconds(lambda x=x_PD, a=activation, k=kept: now(x, encoder, a, k), REPEATS[n_tokens])  # type: ignore[misc]
            rows.append({"tokens": n_tokens, "rule": name, "before": old, "now": new_time, "ratio": old / new_time})
    return {
        "encoder": encoder.name,
        "features": len(encoder.bias_F),
        "width": encoder.weight_FD.shape[1],
        "prompts": len(prompts),
        "active": entries,
        "candidates": sum(candidates(x_PD, encoder, cut_F) for x_PD in prompts[:100]) * len(prompts) // 100,
        "decided_otherwise_before": differing,
        "times": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="Hugging Face folder of a Llama")
    parser.add_argument("--transcoders", type=Path, help="a dictionary of its MLPs' inputs")
    parser.add_argument("--layer", type=int, default=12)
    parser.add_argument("--out", type=Path, default=RESULTS / "encode_screening.json")
    args = parser.parse_args()
    torch.manual_seed(0)
    found = []
    with torch.no_grad():
        for n_features, width in SHAPES:
            weight_FD = torch.randn(n_features, width) / width**0.5
            encoder = Encoder(weight_FD, 0.1 * torch.randn(n_features), "random")
            found.append(measure(encoder, list(random_inputs(width))))
        if args.model and args.transcoders:
            from circuit_tracer.transcoders.loading import load_dictionary

            dictionary, _ = load_dictionary(args.transcoders)
            weight_FD = dictionary.encoder(args.layer).block(0, dictionary.n_features(args.layer))
            rule = dictionary.activation(args.layer)
            cut_F = rule.threshold if isinstance(rule, JumpReLU) else torch.tensor(0.0)
            name = f"layer {args.layer} of {args.transcoders.name}"
            bias_F = dictionary.encoder_bias(args.layer)
            encoder = Encoder(weight_FD, bias_F, name, cut_F.expand(len(bias_F)).contiguous())
            found.append(measure(encoder, list(model_inputs(args.model, args.layer))))
    write_results(
        args.out,
        {**describe(threads=torch.get_num_threads()), "bfloat16_products": has_bfloat16_products(), "encoders": found},
    )
    for each in found:
        print(each)


if __name__ == "__main__":
    main()
