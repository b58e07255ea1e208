"""How few neurons hold the agreement of subject and verb?

    python -m benchmarks.neurons.agreement --model FOLDER [--results neurons_agreement.json]

Pairs of sentences differ in the number of their subject, "The key near the old doors" and "The keys near the old doors"; what
is read is logit(are) - logit(is) at the end. A neuron's part in a pair's difference is what it does otherwise there, times its
total effect by RelP's rules in the singular sentence (or its plain gradient), summed over positions. Neurons are ranked by
their mean part in some pairs, and tested on others, with other nouns: the first k of the ranking take on, in the singular
sentence, the activations of the plural one, at every position, while all else reacts. Reported is the share of the difference
that k neurons bring back, and the least k for 80 and 95 % of it, and of what all neurons together bring back: the rest runs
from token to token through attention alone. Published (arXiv 2601.22594): about 200 neurons control agreement.

Pairs that the model gets wrong (the difference is not above zero) are left out; nothing is reported if that leaves half.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor

from benchmarks.common.harness import versions
from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import RESULTS
from benchmarks.neurons.effects import activations, by_relp, gradients, last_logits, mlps_of, network_of
from circuit_tracer.models.run import ModelRun

if TYPE_CHECKING:
    from circuit_tracer.replacement_model import ReplacementModel

NOUNS = (  # one half ranks, the other tests
    ("key", "door", "book", "picture", "window", "teacher", "doctor", "song", "letter", "box"),
    ("car", "house", "student", "farmer", "table", "story", "river", "machine", "painting", "guard"),
)
PLURALS = {"box": "boxes", "story": "stories"}
PHRASES = ("near the old {}", "behind the small {}", "that the man saw with the {}", "of the young {}")
VERBS = (" is", " are")
COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
SHARES = (0.8, 0.95)


def plural(noun: str) -> str:
    return PLURALS.get(noun, f"{noun}s")


def pairs(nouns: tuple[str, ...], count: int, seed: int) -> list[tuple[str, str]]:
    """Singular and plural sentence of some pairs; what stands between subject and verb is singular in one half of them."""
    every = list(itertools.product(nouns, nouns, PHRASES, (False, True)))
    chosen = random.Random(seed).sample([each for each in every if each[0] != each[1]], count)
    found = []
    for subject, other, phrase, many in chosen:
        between = phrase.format(plural(other) if many else other)
        found.append((f"The {subject} {between}", f"The {plural(subject)} {between}"))
    return found


class Pair:
    """A pair on the model: ids, networks and activations of both sentences."""

    def __init__(self, model: ReplacementModel, texts: tuple[str, str], verbs: tuple[int, int]) -> None:
        self.model, self.texts, self.verbs = model, texts, verbs
        self.ids = [model.ensure_tokenized(text) for text in texts]
        self.networks = [network_of(model, ids) for ids in self.ids]
        self.values = [activations(model, network) for network in self.networks]
        self.reads = [float(self.read(last_logits(model, net.captured.final[None]))) for net in self.networks]

    @property
    def usable(self) -> bool:
        """Whether both have as many tokens, and the model agrees with the grammar."""
        return len(self.ids[0]) == len(self.ids[1]) and self.reads[0] < 0 < self.reads[1]

    @property
    def difference(self) -> float:
        return self.reads[1] - self.reads[0]

    def read(self, logits_BV: Tensor) -> Tensor:
        singular, many = self.verbs
        return logits_BV[..., many] - logits_BV[..., singular]

    def parts(self, method: str) -> Tensor:
        """(L, F) each neuron's part in the difference."""
        weight = self.model.parts.unembed.weight
        vector = (weight[self.verbs[1]] - weight[self.verbs[0]]).to(self.networks[0].captured.final)
        if method == "RelP":
            effects = by_relp(self.model, self.networks[0], vector)
        else:
            plain = gradients(self.model, self.ids[0], self.read)
            effects = [g @ mlp.units[0].write.T for g, mlp in zip(plain, mlps_of(self.model), strict=True)]
        changes = [many - one for one, many in zip(*self.values, strict=True)]
        return torch.stack([(change * effect).sum(0) for change, effect in zip(changes, effects, strict=True)])

    def brought_back(self, groups: list[Tensor]) -> Tensor:
        """(B,) shares of the difference when neurons (L, F) of each group take on the plural sentence's activations."""
        live, mlps = dict[int, Tensor](), mlps_of(self.model)

        def keep(layer: int, x_BPD: Tensor) -> None:
            live[layer] = mlps[layer].activations(x_BPD.flatten(0, 1)).unflatten(0, x_BPD.shape[:2])

        def put(layer: int, y_BPD: Tensor) -> Tensor:
            mask = torch.stack([group[layer] for group in groups])[:, None]
            change = (self.values[1][layer] - live.pop(layer)) * mask
            return y_BPD + change @ mlps[layer].units[0].write

        run = ModelRun(self.model.parts, {"mlp.hook_in": keep, "mlp.hook_out": put})
        changed = self.read(last_logits(self.model, run(self.ids[0], copies=len(groups)).final))
        return (changed - self.reads[0]) / self.difference


def least(counts: list[int], shares: list[float], wanted: float) -> int | None:
    """The least count from which on a share is reached."""
    reached = [count for count, share in zip(counts, shares, strict=True) if share >= wanted]
    return min(reached) if reached else None


def measured(model: ReplacementModel, ranked: list[Pair], tested: list[Pair]) -> dict[str, Any]:
    """Shares of the difference by the number of neurons, for each method, and at random."""
    found: dict[str, Any] = {}
    n_layers = model.parts.config.n_layers
    width = model.transcoders.d_transcoder // 2
    every = n_layers * width
    counts = [*COUNTS, every]
    generator = torch.Generator().manual_seed(0)
    orders = {
        method: torch.stack([pair.parts(method) for pair in ranked]).mean(0).flatten().argsort(descending=True)
        for method in ("RelP", "gradient")
    }
    orders["random"] = torch.randperm(every, generator=generator)
    for method, order in orders.items():
        groups = []
        for count in counts:
            group = torch.zeros(every)
            group[order[:count]] = 1
            groups.append(group.view(n_layers, width))
        shares = torch.stack([pair.brought_back(groups) for pair in tested]).mean(0).tolist()
        whole = shares[-1]
        found[method] = {
            "shares": {str(count): round(share, 4) for count, share in zip(counts, shares, strict=True)},
            "of the difference": {str(wanted): least(counts, shares, wanted) for wanted in SHARES},
            "of what all neurons bring": {str(wanted): least(counts, shares, wanted * whole) for wanted in SHARES},
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=30, help="pairs that rank, and as many that test")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", help="write this file of benchmarks/results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    from circuit_tracer import ReplacementModel

    start = time.perf_counter()
    results: dict[str, Any] = describe(versions=versions(), threads=args.threads, model=args.model.name)
    model = ReplacementModel.from_pretrained(str(args.model), "neurons", dtype=torch.float32)
    verbs = tuple(model.to_single_token(verb) for verb in VERBS)
    halves = [
        [Pair(model, texts, verbs) for texts in pairs(nouns, args.pairs, seed)]  # type: ignore[arg-type]
        for seed, nouns in enumerate(NOUNS)
    ]
    ranked, tested = ([pair for pair in half if pair.usable] for half in halves)
    if min(len(ranked), len(tested)) < args.pairs / 2:
        raise SystemExit(f"nothing reported: the model agrees on {len(ranked)} and {len(tested)} of {args.pairs} pairs")
    results |= {"pairs": {"of": args.pairs, "ranked": len(ranked), "tested": len(tested)}}
    results["difference"] = round(sum(pair.difference for pair in tested) / len(tested), 3)
    results["examples"] = [tested[0].texts, tested[1].texts]
    results["methods"] = measured(model, ranked, tested)
    results["seconds"] = round(time.perf_counter() - start, 1)
    for method, found in results["methods"].items():
        print(f"{method:10}", found, flush=True)
    if args.results:
        write_results(RESULTS / args.results, results)


if __name__ == "__main__":
    main()
