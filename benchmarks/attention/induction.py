"""Do edges on repeated text run through the heads that are known to copy, and does copying need them?

    python -m benchmarks.attention.induction --model FOLDER --transcoders FOLDER [--results attention_induction.json]

Two rankings of all heads that know nothing of each other:
- by induction score, on random tokens said twice (`diagnose_heads`);
- by edges: random tokens, said twice up to some token, are traced to the one that comes next, and all edges into its logit
  from nodes at the place where it stood before (token, features, errors) are split over last heads and over first heads
  (`explain_edges`). Loadings, by size, are shares of what all heads carry on a prompt, averaged over prompts.

Reported: how many of the first ten are the same, beside the number that chance gives; and what is added to the loss on the second
copy, of other sequences, when the first five of each ranking are set to zero, or to their mean; beside five random heads, drawn
from all layers, and five from the layers of those with the highest induction scores.

With random dictionaries features explain little, and errors carry the edges: heads are those of the model all the same. Nothing is
reported if the split of an edge is not the edge (`explain_edges` refuses), or if a model does not copy these tokens.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor

from benchmarks.attention.heads import Head, head_name, heads_of, ranked
from benchmarks.common.harness import versions
from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import RESULTS
from circuit_tracer.attention import RandomTokens, ablate_heads, diagnose_heads, explain_edges
from circuit_tracer.attribution.attribute import attribute

if TYPE_CHECKING:
    from circuit_tracer.replacement_model import ReplacementModel

BLOCK = 16  # tokens said twice in traced prompts
SEEDS = {"scores": 0, "prompts": 1, "losses": 2}  # different tokens for each
OVERLAP, ABLATED, DRAWS = 10, 5, 20
COPIED = 0.5  # of the prompts at least must be copied


def repeated_prompts(model: ReplacementModel, count: int) -> list[tuple[Tensor, int, int]]:
    """(ids, position of the token that is copied, its id): a block of random tokens, and the same up to its middle or beyond."""
    drawn = RandomTokens(BLOCK, count, SEEDS["prompts"]).draw(model.parts, model.tokenizer, model.prepend_bos)
    front, found = drawn.ids_NT.shape[1] - 2 * BLOCK, []
    for number, ids_T in enumerate(drawn.ids_NT):
        said = BLOCK // 2 + number % (BLOCK // 2 - 1)  # tokens of the second copy
        found.append((ids_T[: front + BLOCK + said], front + said, int(ids_T[front + said])))
    return found


def loadings(model: ReplacementModel, ids_P: Tensor, position: int, token: int, rows: int) -> dict[str, Any]:
    """Of one prompt: (L, H) shares of first and last heads in the edges to the copied token, and whether it is copied."""
    graph = attribute(ids_P, model, attribution_targets=torch.tensor([token]), max_feature_nodes=rows)
    target, edges = graph.nodes.layout.target_start, graph.edges
    chosen = (edges.target == target) & (graph.nodes.position[edges.source] == position)
    heads = heads_of(model.parts)
    kept = explain_edges(graph, model, len(heads), [(source, target) for source in edges.source[chosen].tolist()])
    shape = (model.parts.config.n_layers, model.parts.config.n_heads)
    found: dict[str, Any] = {"edges": int(chosen.sum()), "weight": float(edges.weight[chosen].double().sum())}
    for name in ("last", "first"):
        places, weights = getattr(kept, name), getattr(kept, f"{name}_weight").double().abs()
        share = torch.zeros(shape, dtype=torch.float64)
        named = places[..., 0] >= 0
        share.index_put_(tuple(places[named].T), weights[named], accumulate=True)
        found[name] = share / share.sum()
    found["copied"] = float(graph.targets.weight[0])
    return found


def rankings(model: ReplacementModel, prompts: int, rows: int) -> tuple[dict[str, list[Head]], dict[str, Any]]:
    """Heads in order, by induction score, last and first loadings; and what was traced."""
    drawn = RandomTokens(seed=SEEDS["scores"])
    scores = diagnose_heads(model, random=drawn, ablate=0)["induction"]
    each = [loadings(model, *one, rows) for one in repeated_prompts(model, prompts)]
    copied = sum(one["copied"] > 0.5 for one in each)
    if copied < COPIED * len(each):
        raise SystemExit(f"nothing reported: {copied} of {len(each)} prompts are copied by this model")
    mean = {name: torch.stack([one[name] for one in each]).mean(0) for name in ("last", "first")}
    weights = {"induction": scores, **mean}
    order = {name: ranked(values, values.numel()) for name, values in weights.items()}
    return order, {
        "prompts": len(each),
        "copied": copied,
        "edges": sum(one["edges"] for one in each),
        "median weight of the copied token's position": round(statistics.median(one["weight"] for one in each), 3),
        "strongest": {
            name: [[head_name(head), round(float(weights[name][head]), 4)] for head in order[name][:OVERLAP]]
            for name in order
        },
    }


def overlap(order: dict[str, list[Head]]) -> dict[str, Any]:
    """How many of the first heads by induction score are among the first by loadings; what chance gives."""
    best = set(order["induction"][:OVERLAP])
    return {
        "of": OVERLAP,
        **{name: len(best & set(order[name][:OVERLAP])) for name in ("last", "first")},
        "by chance": round(OVERLAP**2 / len(order["induction"]), 2),
    }


def random_groups(heads: Sequence[Head], like: Sequence[Head] | None, count: int = DRAWS) -> list[list[Head]]:
    """Groups of random heads, of the same layers as others if these are given."""
    chance = random.Random(0)
    if like is None:
        return [chance.sample(list(heads), ABLATED) for _ in range(count)]
    groups: list[list[Head]] = []
    for _ in range(count):
        group: list[Head] = []
        for layer, _ in like:
            group.append(chance.choice([head for head in heads if head[0] == layer and head not in (*group, *like)]))
        groups.append(group)
    return groups


def ablation(model: ReplacementModel, order: dict[str, list[Head]], how: Any) -> dict[str, Any]:
    """Losses on the second copy and what is added without groups of heads."""
    first = {name: found[:ABLATED] for name, found in order.items()}
    heads = heads_of(model.parts)
    drawn = {
        "random": random_groups(heads, None),
        "random of the same layers": random_groups(heads, first["induction"]),
    }
    groups = [*first.values(), *(group for each in drawn.values() for group in each)]
    losses = ablate_heads(model, groups, random=RandomTokens(seed=SEEDS["losses"]), how=how)
    change, first_change = losses.change.tolist(), losses.first_change.tolist()
    found: dict[str, Any] = {"first copy": round(losses.first, 4), "second copy": round(losses.second, 4)}
    found["added"] = {
        name: {"second copy": round(change[at], 4), "first copy": round(first_change[at], 4)}
        for at, name in enumerate(first)
    }
    start = len(first)
    for name, each in drawn.items():
        values = change[start : start + len(each)]
        numbers = {"mean": statistics.mean(values), "median": statistics.median(values), "most": max(values)}
        found["added"][name] = {"groups": len(each), **{key: round(value, 4) for key, value in numbers.items()}}
        start += len(each)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--transcoders", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument(
        "--rows", type=int, default=64, help="features of a graph that get a row; as few again are nodes"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", help="write this file of benchmarks/results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    from circuit_tracer import ReplacementModel

    results, start = describe(versions=versions(), threads=args.threads), time.perf_counter()
    results |= {"model": args.model.name, "transcoders": args.transcoders.name}
    model = ReplacementModel.from_pretrained(str(args.model), str(args.transcoders), dtype=torch.float32)
    order, results["traced"] = rankings(model, args.prompts, args.rows)
    results["overlap"] = overlap(order)
    results["ablation"] = {how: ablation(model, order, how) for how in ("zero", "mean")}
    results["seconds"] = round(time.perf_counter() - start, 1)
    for name, strongest in results["traced"].pop("strongest").items():
        results.setdefault("strongest", {})[name] = strongest
        print(f"{name:10}", ", ".join(f"{head} {weight:.3f}" for head, weight in strongest))
    for name in ("traced", "overlap"):
        print(name, results[name])
    for how, found in results["ablation"].items():
        print(f"{how}: loss {found['first copy']} on the first copy, {found['second copy']} on the second; added:")
        for name, added in found["added"].items():
            print(f"  {name:28} {added}")
    if args.results:
        write_results(RESULTS / args.results, results)


if __name__ == "__main__":
    main()
