"""Encoding on a CPU: the dense float32 product and a selection, as it was, and screened in bfloat16, decided by exact sums.

    python -m benchmarks.kernels.screening
    python -m benchmarks.kernels.screening --model WORK/smollm2-hf --transcoders WORK/clt-2048

Without a model inputs and dictionaries are random, one feature in a hundred active; with one also what a layer of a dictionary
that reads the residual stream before MLPs (`hook_resid_mid`) reads on texts. Nothing is reported unless

- on 1,000 prompts of 25 tokens the same entries are found prompt by prompt, by the float32 product and with one thread, and in
  batches of 40 prompts, by the scan (where the CPU has one) and with all threads;
- wherever the dense float32 selection differs from them, an exact sum says that it was wrong;
- with every feature's cut at, one step above, or one step below what one of the tokens gives, exact sums say the same.

Letters: P tokens, D width, F features.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.common.harness import versions
from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import INPUTS, RESULTS
from circuit_tracer.kernels.encode.coarse import has_bfloat16_products
from circuit_tracer.kernels.encode.kept import Kept
from circuit_tracer.kernels.encode.scan import candidates, products
from circuit_tracer.transcoders import JumpReLU, TopK
from circuit_tracer.transcoders.activations import Activation, Selected
from circuit_tracer.transcoders.encoding import encode_in_blocks
from circuit_tracer.transcoders.weight_rows import MemoryRows

LENGTH = 25  # tokens of a prompt
TOGETHER = 40  # prompts of a batch
KEPT = 32  # of a token, TopK
ACTIVE = 0.01
SHAPES = ((2048, 576), (16384, 576))  # F, D
TIMES = {25: 20, 2048: 3}  # tokens whose encoding is timed, and how often


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


def share_left_open(x_PD: Tensor, encoder: Encoder, cut_F: Tensor) -> float | None:
    """Of all entries, those that the coarse product leaves open or says are active."""
    weights = Kept().of(encoder.weight_FD, len(x_PD))
    coarse, lifted_F = weights.coarse, weights.cuts(cut_F, encoder.bias_F)[1]
    if coarse is None or lifted_F is None:
        return None
    tokens_PC = coarse.tokens(x_PD, weights.rows(x_PD, encoder.bias_F).norm_B)
    memory = products(len(x_PD), len(cut_F))
    return len(candidates(coarse, tokens_PC, lifted_F, memory)[0]) / (len(x_PD) * len(cut_F))


def random_inputs(width: int, n_prompts: int) -> Iterator[Tensor]:
    """Prompts (25, D) whose tokens have norms between a half and twice the usual."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(n_prompts):
        x_PD = torch.randn(LENGTH, width, generator=generator)
        x_PD *= 2.0 ** (2 * torch.rand(LENGTH, 1, generator=generator) - 1)
        yield x_PD


def model_inputs(folder: Path, layer: int, n_prompts: int) -> Iterator[Tensor]:
    """The residual stream before the MLP of a layer on prompts cut from the benchmark's texts."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    words = "\n".join(path.read_text() for path in sorted((INPUTS / "texts").glob("*.txt")))
    ids = torch.tensor(AutoTokenizer.from_pretrained(folder)(words)["input_ids"])
    model.model.layers = model.model.layers[: layer + 1]
    starts = torch.randint(len(ids) - LENGTH, (n_prompts,), generator=torch.Generator().manual_seed(0))
    read: list[Tensor] = []
    norm = model.get_submodule(f"model.layers.{layer}.post_attention_layernorm")
    norm.register_forward_pre_hook(lambda _, given: read.append(given[0].detach()))
    for some in starts.split(50):
        with torch.no_grad():
            model.model(torch.stack([ids[start : start + LENGTH] for start in some]))
        yield from read.pop()


def places(found: Selected, n_features: int) -> np.ndarray:
    """Entries as one number each, ascending."""
    return (found[0] * n_features + found[1]).numpy()


def exact(x_PD: Tensor, encoder: Encoder, token: int, feature: int) -> Tensor:
    """A pre-activation (0-d), summed without rounding and rounded once."""
    products = x_PD[token].double() * encoder.weight_FD[feature].double()
    total = math.fsum([*products.tolist(), encoder.bias_F[feature].item()])
    return torch.tensor(total, dtype=torch.float64).float()


def everywhere(prompts: list[Tensor], encoder: Encoder, activation: Activation) -> Iterator[tuple[Tensor, Selected]]:
    """Batches (P, D) and their entries; AssertionError unless each of their prompts gives the same by the other product."""
    coarse, float32, threads = Kept(), Kept(may_copy=False), torch.get_num_threads()
    n_features = len(encoder.bias_F)
    for start in range(0, len(prompts), TOGETHER):
        batch = prompts[start : start + TOGETHER]
        x_PD = torch.cat(batch)
        together = now(x_PD, encoder, activation, coarse)
        torch.set_num_threads(1)
        alone = [places(now(x, encoder, activation, float32), n_features) for x in batch]
        torch.set_num_threads(threads)
        each = np.concatenate([place + number * LENGTH * n_features for number, place in enumerate(alone)])
        assert np.array_equal(places(together, n_features), each), f"{activation}: entries depend on the batch"
        yield x_PD, together


def compared(prompts: list[Tensor], encoder: Encoder, cut_F: Tensor) -> dict[str, int]:
    """How many entries there are, and how many the dense float32 selection decides otherwise: wrongly, or AssertionError."""
    entries, differing, n_features = 0, 0, len(encoder.bias_F)
    for x_PD, found in everywhere(prompts, encoder, JumpReLU(cut_F)):
        new, old = places(found, n_features), places(before(x_PD, encoder, JumpReLU(cut_F)), n_features)
        otherwise = np.setxor1d(new, old)
        for place, active in zip(otherwise.tolist(), np.isin(otherwise, new).tolist(), strict=True):
            token, feature = divmod(place, n_features)
            above = bool(exact(x_PD, encoder, token, feature) > cut_F[feature])
            assert above is active, f"{encoder.name}: not what an exact sum says"
        differing += len(otherwise)
        entries += len(new)
    for _ in everywhere(prompts, encoder, TopK(KEPT)):
        pass
    return {"active": entries, "decided_otherwise_before": differing}


def at_thresholds(prompts: list[Tensor], encoder: Encoder) -> int:
    """How many entries were asked that lie at their cuts, one step above or below; AssertionError unless all are right."""
    prompts, n_features = prompts[:TOGETHER], len(encoder.bias_F)
    x_PD = torch.cat(prompts)
    pre_PF = x_PD @ encoder.weight_FD.T + encoder.bias_F
    token_F = pre_PF.topk(min(len(x_PD), 10), dim=0).indices[-1]  # few others are above
    cut_F = torch.stack([exact(x_PD, encoder, int(token_F[feature]), feature) for feature in range(n_features)])
    value_F, step_F = cut_F.clone(), torch.arange(n_features) % 3
    for step, towards in ((1, math.inf), (2, -math.inf)):
        cut_F[step_F == step] = torch.nextafter(cut_F, cut_F.new_tensor(towards))[step_F == step]
    for _, found in everywhere(prompts, encoder, JumpReLU(cut_F)):
        asked = (token_F * n_features + torch.arange(n_features)).numpy()
        active_F = np.isin(asked, places(found, n_features))
        assert np.array_equal(active_F, (value_F > cut_F).numpy()), f"{encoder.name}: wrong at a threshold"
    return n_features


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
        cut_F = pre_PF.topk(max(2, int(ACTIVE * len(pre_PF))), dim=0).values[-2:].mean(0)  # between two tokens
    found = {**compared(prompts, encoder, cut_F), "at_thresholds": at_thresholds(prompts, encoder)}
    tokens_PD = every_PD[torch.arange(max(TIMES)) % len(every_PD)]
    rows = []
    for n_tokens, repeats in TIMES.items():
        x_PD = tokens_PD[:n_tokens].contiguous()
        for name, activation in {"threshold": JumpReLU(cut_F), "topk": TopK(KEPT)}.items():
            kept = Kept()
            row = {
                "before": seconds(partial(before, x_PD, encoder, activation), repeats),
                "now": seconds(partial(now, x_PD, encoder, activation, kept), repeats),
                "new_weights": seconds(lambda x=x_PD, a=activation: now(x, encoder, a, Kept()), repeats),  # type: ignore[misc]
            }
            rows.append({"tokens": n_tokens, "rule": name, **row, "ratio": row["before"] / row["now"]})
    return {
        "encoder": encoder.name,
        "features": len(encoder.bias_F),
        "width": encoder.weight_FD.shape[1],
        "prompts": len(prompts),
        **found,
        "left_open": share_left_open(every_PD, encoder, cut_F),
        "times": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="Hugging Face folder of a Llama")
    parser.add_argument("--transcoders", type=Path, help="a dictionary of its MLPs' inputs")
    parser.add_argument("--layer", type=int, default=12)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=RESULTS / "encode_screening.json")
    args = parser.parse_args()
    torch.manual_seed(0)
    found = []
    with torch.no_grad():
        for n_features, width in SHAPES:
            weight_FD = torch.randn(n_features, width) / width**0.5
            encoder = Encoder(weight_FD, 0.1 * torch.randn(n_features), "random")
            found.append(measure(encoder, list(random_inputs(width, args.prompts))))
        if args.model and args.transcoders:
            from circuit_tracer.transcoders.loading import load_dictionary

            dictionary, _ = load_dictionary(args.transcoders)
            weight_FD = dictionary.encoder(args.layer).block(0, dictionary.n_features(args.layer))
            rule = dictionary.activation(args.layer)
            cut_F = rule.threshold if isinstance(rule, JumpReLU) else torch.tensor(0.0)
            name = f"layer {args.layer} of {args.transcoders.name}"
            bias_F = dictionary.encoder_bias(args.layer)
            encoder = Encoder(weight_FD, bias_F, name, cut_F.expand(len(bias_F)).contiguous())
            found.append(measure(encoder, list(model_inputs(args.model, args.layer, args.prompts))))
    head = describe(threads=torch.get_num_threads(), versions=versions(), bfloat16_products=has_bfloat16_products())
    write_results(args.out, {**head, "encoders": found})
    for each in found:
        print(each)


if __name__ == "__main__":
    main()
