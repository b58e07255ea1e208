"""Are effects of neurons and MLP outputs those of true ablations? RelP's rules beside plain gradient times activation.

    python -m benchmarks.neurons.ablation --models FOLDER FILE.gguf [--results neurons_ablation.json]

On each prompt the read-out is the logit of the likeliest token, less the mean of all logits. Taken out, each by itself while
all else reacts: whole outputs of MLPs, drawn from all layers and all positions but the first; and single neurons, some of the
strongest by either method, some at random. Predicted is value times total effect: by RelP's rules (one backward pass of the
frozen network, `attribution/neuron_choice.py`), and by the plain gradient of the model at the MLP's output. Reported are
Pearson and rank correlations of predicted with measured changes, on each prompt, and their mean. Published, on pairs of prompts
patched into each other (arXiv 2508.21258): Pearson .956 against .006 for MLP outputs of GPT-2 Large, .992 against .195 for
GPT-2 small.

Nothing is reported if the effects do not add up: all neurons, tokens and constants to the logit, within rounding.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor

from benchmarks.common.harness import versions
from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import RESULTS
from benchmarks.neurons.effects import activations, by_relp, gradients, last_logits, mlps_of, network_of, without
from circuit_tracer.models.run import ModelRun

if TYPE_CHECKING:
    from circuit_tracer.replacement_model import ReplacementModel

PROMPTS = (
    "The capital of the state containing Dallas is",
    "The keys to the old cabinet in the hall",
    "When Mary and John went to the store, John gave a drink to",
    "Water freezes at zero degrees and boils at one hundred",
    "She opened the umbrella because it had started to",
    "The opposite of small is",
)
PLACES = 160  # MLP outputs of a prompt, drawn at random
STRONGEST, DRAWN = 32, 32  # neurons of a prompt: by each method, and at random of all


def demeaned(token: int) -> Any:
    """What is read of logits (B, V): one token's, less the mean."""

    def read(logits_BV: Tensor) -> Tensor:
        return logits_BV[:, token] - logits_BV.mean(-1)

    return read


def correlation(first: Tensor, second: Tensor) -> float:
    """Pearson's."""
    return float(torch.corrcoef(torch.stack([first.double(), second.double()]))[0, 1])


def ranks(values: Tensor) -> Tensor:
    return values.argsort().argsort().double()


def of_prompt(model: ReplacementModel, text: str, generator: torch.Generator) -> dict[str, Any]:
    """Correlations on one prompt."""
    ids = model.ensure_tokenized(text)
    network = network_of(model, ids)
    logits = last_logits(model, ModelRun(model.parts)(ids).final)
    token = int(logits[0].argmax())
    read, clean = demeaned(token), float(demeaned(token)(logits))
    weight = model.parts.unembed.weight
    vector = (weight[token] - weight.mean(0)).to(network.captured.final)
    relp = by_relp(model, network, vector)
    plain = gradients(model, ids, read)
    n_layers, n_pos = len(relp), len(ids)
    every = [(layer, position) for layer in range(n_layers) for position in range(1, n_pos)]
    places = [every[number] for number in torch.randperm(len(every), generator=generator)[:PLACES].tolist()]
    output = torch.stack([network.transcoder_output(layer) for layer in range(n_layers)])
    value, write = activations(model, network), [mlp.units[0].write for mlp in mlps_of(model)]
    at = torch.tensor(places).T
    of_outputs = {
        "RelP": torch.stack([(a * e).sum(1) for a, e in zip(value, relp, strict=True)])[at[0], at[1]],
        "gradient": (output * plain).sum(-1)[at[0], at[1]],
    }
    measured = clean - without(model, ids, [(layer, p, output[layer, p]) for layer, p in places], read)
    one_each = {
        "RelP": torch.stack([a * e for a, e in zip(value, relp, strict=True)])[:, 1:],
        "gradient": torch.stack([a * (g @ w.T) for a, g, w in zip(value, plain, write, strict=True)])[:, 1:],
    }
    flat = {name: each.flatten() for name, each in one_each.items()}
    drawn = torch.randint(len(flat["RelP"]), (DRAWN,), generator=generator)
    chosen = torch.cat([*(each.abs().topk(STRONGEST).indices for each in flat.values()), drawn]).unique()
    width, n_rest = value[0].shape[1], n_pos - 1
    taken = []
    for place in chosen.tolist():
        layer, rest = divmod(place, n_rest * width)
        position, neuron = 1 + rest // width, rest % width
        taken.append((layer, position, value[layer][position, neuron] * write[layer][neuron]))
    neurons = clean - without(model, ids, taken, read)
    found: dict[str, Any] = {"prompt": text, "token": model.to_string(torch.tensor([token])), "logit": round(clean, 3)}
    for what, predicted, true in (
        ("MLP outputs", of_outputs, measured),
        ("neurons", {name: each[chosen] for name, each in flat.items()}, neurons),
    ):
        found[what] = {"n": len(true)}
        for name, each in predicted.items():
            found[what][name] = {
                "pearson": round(correlation(each, true), 4),
                "spearman": round(correlation(ranks(each), ranks(true)), 4),
            }
    return found


def mean_of(prompts: list[dict[str, Any]]) -> dict[str, Any]:
    """Correlations, averaged over prompts."""
    return {
        what: {
            name: {
                kind: round(statistics.mean(each[what][name][kind] for each in prompts), 3)
                for kind in ("pearson", "spearman")
            }
            for name in ("RelP", "gradient")
        }
        for what in ("MLP outputs", "neurons")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="+", required=True)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", help="write this file of benchmarks/results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    from circuit_tracer import ReplacementModel, attribute

    results: dict[str, Any] = describe(versions=versions(), threads=args.threads, models={})
    for path in args.models:
        start = time.perf_counter()
        model = ReplacementModel.from_pretrained(str(path), "neurons", dtype=torch.float32)
        attribute(PROMPTS[0], model, max_feature_nodes=50)  # raises if rows do not add up
        generator = torch.Generator().manual_seed(0)
        each = [of_prompt(model, text, generator) for text in PROMPTS[: args.prompts]]
        seconds = round(time.perf_counter() - start, 1)
        results["models"][path.name] = {"mean": mean_of(each), "prompts": each, "seconds": seconds}
        for what, found in results["models"][path.name]["mean"].items():
            print(
                f"{path.name:34} {what:12}", "  ".join(f"{name} {value}" for name, value in found.items()), flush=True
            )
    if args.results:
        write_results(RESULTS / args.results, results)


if __name__ == "__main__":
    main()
