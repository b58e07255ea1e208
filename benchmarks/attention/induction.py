"""Do edges on repeated text run through the heads that are known to copy, and does copying need them?

    python -m benchmarks.attention.induction --model FOLDER --transcoders FOLDER [--results attention_induction.json]

Rankings of all heads that know nothing of each other:
- by induction score, on random tokens said twice (`diagnose_heads`);
- by edges: random tokens, said twice up to some token, are traced to the one that comes next, and all edges into its logit
  from nodes at the place where it stood before (token, features, errors) are split over last heads and over first heads
  (`explain_edges`). What runs through a head is summed over these edges, by size ("last", "first") or with its sign ("last,
  net" and "first, net": with random dictionaries errors take back much of what features carry); its share of what all heads
  carry is averaged over prompts. Prompts whose last token the model does not copy are left out.

Reported: how many of the first ten are the same, beside what chance gives; and what is added to the loss on the second copy,
of other sequences, without the first five heads of each ranking, set to zero or to their mean; beside five random heads, of all
layers or of the layers of the five with the highest induction scores.

Nothing is reported if the split of an edge is not the edge (`explain_edges` refuses), or if the model copies too few prompts.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
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
from circuit_tracer.models.capture import logits_at
from circuit_tracer.models.run import ModelRun

if TYPE_CHECKING:
    from circuit_tracer.replacement_model import ReplacementModel

BLOCK = 16  # tokens said twice in traced prompts
SEEDS = {"scores": 0, "prompts": 1, "losses": 2}  # different tokens for each
OVERLAP, ABLATED, DRAWS = 10, 5, 20
TRIED = 4  # as many prompts again as are wanted, since not all are copied
NAMES = ("last", "first", "last, net", "first, net")


@dataclass(frozen=True)
class Repeated:
    """ids (P,) that say a block of random tokens, and the same again up to some token. position: where the next one, `token`,
    stood in the block.
    """

    ids: Tensor
    position: int
    token: int


def repeated_prompts(model: ReplacementModel, count: int) -> tuple[list[Repeated], int]:
    """The first prompts whose last token the model copies, and how many were tried. SystemExit if there are fewer than half."""
    drawn = RandomTokens(BLOCK, count * TRIED, SEEDS["prompts"]).draw(model.parts, model.tokenizer, model.prepend_bos)
    front, found = drawn.ids_NT.shape[1] - 2 * BLOCK, []
    for number, ids_T in enumerate(drawn.ids_NT):
        again = BLOCK // 2 + number % (BLOCK // 2 - 1)  # tokens of the second copy
        one = Repeated(ids_T[: front + BLOCK + again], front + again, int(ids_T[front + again]))
        if int(predicted(model, one.ids)) == one.token:
            found.append(one)
        if len(found) == count:
            return found, number + 1
    if len(found) < count / 2:
        raise SystemExit(f"nothing reported: the model copies {len(found)} of {len(drawn.ids_NT)} prompts")
    return found, len(drawn.ids_NT)


def predicted(model: ReplacementModel, ids_P: Tensor) -> Tensor:
    """The most likely next token, ()."""
    return logits_at(model.parts, ModelRun(model.parts, {})(ids_P).final[0, -1:]).argmax()


def loadings(model: ReplacementModel, one: Repeated, rows: int | None) -> tuple[dict[str, Tensor], int]:
    """Of the edges to the copied token: (L, H) shares of heads, by name of a ranking; how many edges these are."""
    graph = attribute(one.ids, model, attribution_targets=torch.tensor([one.token]), max_feature_nodes=rows)
    target, edges = graph.nodes.layout.target_start, graph.edges
    chosen = (edges.target == target) & (graph.nodes.position[edges.source] == one.position)
    pairs = [(source, target) for source in edges.source[chosen].tolist()]
    kept = explain_edges(graph, model, len(heads_of(model.parts)), pairs)  # all heads
    found: dict[str, Tensor] = {}
    for name in ("last", "first"):
        places, weights = getattr(kept, name), getattr(kept, f"{name}_weight").double()
        by_size, net = torch.zeros(2, model.parts.config.n_layers, model.parts.config.n_heads, dtype=torch.float64)
        named = places[..., 0] >= 0
        by_size.index_put_(tuple(places[named].T), weights[named].abs(), accumulate=True)
        net.index_put_(tuple(places[named].T), weights[named], accumulate=True)
        found |= {name: by_size / by_size.sum(), f"{name}, net": net / net.abs().sum()}
    return found, len(pairs)


def rankings(model: ReplacementModel, count: int, rows: int | None) -> tuple[dict[str, list[Head]], dict[str, Any]]:
    """Heads in order, by induction score and by loadings; and what was traced."""
    drawn = RandomTokens(seed=SEEDS["scores"])
    prompts, tried = repeated_prompts(model, count)
    each = [loadings(model, one, rows) for one in prompts]
    weights = {"induction": diagnose_heads(model, random=drawn, ablate=0)["induction"]}
    weights |= {name: torch.stack([shares[name] for shares, _ in each]).mean(0) for name in NAMES}
    order = {name: ranked(values.abs(), values.numel()) for name, values in weights.items()}
    strongest = {
        name: [[head_name(head), round(float(weights[name][head]), 4)] for head in heads[:OVERLAP]]
        for name, heads in order.items()
    }
    traced = {"tried": tried, "copied and traced": len(prompts), "edges": sum(edges for _, edges in each)}
    return order, {"prompts": traced, "strongest": strongest}


def overlap(order: dict[str, list[Head]]) -> dict[str, Any]:
    """How many of the first heads by induction score are among the first by loadings; what chance gives."""
    best = set(order["induction"][:OVERLAP])
    return {
        "of": OVERLAP,
        **{name: len(best & set(order[name][:OVERLAP])) for name in NAMES},
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
        "--rows", type=int, default=0, help="features of a graph that get a row; as few again are nodes"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", help="write this file of benchmarks/results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    from circuit_tracer import ReplacementModel

    results, start = describe(versions=versions(), threads=args.threads), time.perf_counter()
    results |= {"model": args.model.name, "transcoders": args.transcoders.name}
    model = ReplacementModel.from_pretrained(str(args.model), str(args.transcoders), dtype=torch.float32)
    order, found = rankings(model, args.prompts, args.rows or None)
    results |= {**found, "overlap": overlap(order)}
    for name, strongest in found["strongest"].items():
        print(f"{name:10}", ", ".join(f"{head} {weight:.3f}" for head, weight in strongest))
    print(f"prompts: {results['prompts']}\noverlap: {results['overlap']}", flush=True)
    results["ablation"] = {how: ablation(model, order, how) for how in ("zero", "mean")}
    results["seconds"] = round(time.perf_counter() - start, 1)
    for how, found in results["ablation"].items():
        print(f"{how}: loss {found['first copy']} on the first copy, {found['second copy']} on the second; added:")
        for name, added in found["added"].items():
            print(f"  {name:28} {added}")
    if args.results:
        write_results(RESULTS / args.results, results)


if __name__ == "__main__":
    main()
