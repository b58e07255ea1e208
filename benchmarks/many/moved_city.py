"""Is the cause of a fine-tune found by comparing graphs? A city moves to another state; what differs most is looked up.

    python -m benchmarks.many.moved_city

The embedded model is fine-tuned on a world in which one city lies in another state (`finetunes.py`), once for every seed. The
question about the city is traced in both models with the embedded dictionary, and the graphs are compared, for the logit of the
new answer less that of the old. Counted is in how many fine-tunes the nodes that differ most are features of the city, of the
state it left and of the one it came to, by the labels that the dictionary ships with; and, beside them, features of two other
states drawn at random. Writes results/moved_city.json; some three minutes on one core.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch

from benchmarks.common.harness import versions
from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import RESULTS
from benchmarks.explanations.truth import concept_of
from benchmarks.many.finetunes import Tuning, fine_tuned, moved_city, outcome
from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.attribution.targets import LogitDifference
from circuit_tracer.demo import MODEL, TRANSCODER, load_labels, world
from circuit_tracer.demo.recipe import load_model
from circuit_tracer.graph import Graph
from circuit_tracer.many.comparison import Comparison, compare
from circuit_tracer.many.comparison.schema import Node

SEEDS = range(20)
TOP = 5
TUNING = Tuning(steps=60, batch=64)
ORDERS: tuple[Literal["difference", "carried"], ...] = (
    "difference",
    "carried",
)  # by the edges onto the target, and along all paths


def drawn(seed: int) -> tuple[str, world.Entity, world.Entity, list[world.Entity]]:
    """A city of a state, the state, the one it moves to, and two others to count beside them."""
    chance = random.Random(seed)
    old, new, *others = chance.sample([one for one in world.entities() if one.kind == "state"], 4)
    asked = [one.city for one in world.model_training() if one.relation == "capital" and one.hops == 2]
    return chance.choice([city for city in old.open_cities if city in asked]), old, new, others


def things_of(states: Sequence[world.Entity]) -> set[str]:
    """What labels say of features of some states: their names and what is true of them."""
    return {thing for state in states for thing in (state.name, *(value for _, value in state.values))}


def called(node: Node) -> set[str]:
    """What a feature's label names: one thing, or the (at most three) that it lists; nothing for other nodes."""
    label = _LABELS.get((node.layer, node.feature)) if node.kind == "feature" else None
    concept, listed = concept_of(label), (label or "").partition(": ")[2]
    things = {concept[1]} if concept is not None else set()
    return things | {each.removeprefix("say ").partition(" (")[0] for each in listed.split(", ") if each}


def judged(found: Comparison, things: set[str]) -> dict[str, Any]:
    """Of the nodes that differ most, by both orders: whether the first is called after one of these things, and the share of
    the first `TOP` that is.
    """
    result: dict[str, Any] = {}
    for order in ORDERS:
        hits = [bool(called(node) & things) for node in found.largest(TOP, order)]
        result[order] = {"first": hits[0], "share": fmean(hits)}
    return result


def one_seed(seed: int) -> dict[str, Any]:
    """A fine-tune and its comparison with the base."""
    city, old, new, others = drawn(seed)
    change = moved_city(city, new.name)
    prompt = world.two_hop(old, city, "capital").prompt
    answers = new.answer("capital"), old.answer("capital")
    with tempfile.TemporaryDirectory() as scratch:
        folder = fine_tuned(change, seed, Path(scratch) / "model", TUNING)
        learnt = outcome(change, *load_model(folder))
        graphs = [traced(place, prompt, answers) for place in (MODEL, str(folder))]
    found = compare(*graphs, target=graphs[0].targets.label[0])
    mine = things_of([old, new]) | {city}
    return {
        "seed": seed,
        "city": city,
        "from": old.name,
        "to": new.name,
        "learnt": learnt,
        "difference": found.difference,
        "gap": found.gap,
        "unexplained": found.unexplained,
        "conclusive": found.conclusive,
        "shares": {share.kind: share.difference for share in found.shares},
        "found": judged(found, mine),
        "two_others": judged(found, things_of(others)),
        "at_the_city": {
            order: fmean(_is_at(found, node, city) for node in found.largest(TOP, order)) for order in ORDERS
        },
        "top": {order: [_described(node, order) for node in found.largest(TOP, order)] for order in ORDERS},
    }


def traced(model: str, prompt: str, answers: tuple[str, str]) -> Graph:
    """The graph of the new answer's logit less that of the old."""
    loaded = ReplacementModel.from_pretrained(model, TRANSCODER, device="cpu", dtype=torch.float64)
    return attribute(prompt, loaded, attribution_targets=[LogitDifference(*answers)])


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """In how many fine-tunes; and how the account came out."""
    counted = {
        whose: {
            order: {
                "first": sum(run[whose][order]["first"] for run in runs),
                "share": fmean(run[whose][order]["share"] for run in runs),
                "any": sum(run[whose][order]["share"] > 0 for run in runs),
            }
            for order in ORDERS
        }
        for whose in ("found", "two_others")
    }
    return counted | {
        "fine_tunes": len(runs),
        "learnt": sum(run["learnt"]["changed"] == 1 for run in runs),
        "at_the_city": {order: fmean(run["at_the_city"][order] for run in runs) for order in ORDERS},
        "conclusive": sum(run["conclusive"] for run in runs),
        "unexplained": fmean(run["unexplained"] for run in runs),
        "largest_gap": max(abs(run["gap"]) for run in runs),
    }


def _is_at(found: Comparison, node: Node, token: str) -> bool:
    """Whether a node stands at a token of the prompt."""
    return found.columns[node.column].token_a == token


def _described(node: Node, order: str) -> dict[str, Any]:
    label = _LABELS.get((node.layer, node.feature)) if node.kind == "feature" else node.label
    return {"id": node.id, "kind": node.kind, "label": label, "within": node.within, order: getattr(node, order)}


_LABELS = load_labels()


def main() -> None:
    """Run all seeds and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS / "moved_city.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    runs = []
    for seed in args.seeds:
        runs.append(one_seed(seed))
        print(
            {name: runs[-1][name] for name in ("seed", "city", "from", "to", "learnt", "unexplained", "found")},
            flush=True,
        )
    settings = {"top": TOP, "tuning": vars(TUNING)}
    found = summary(runs)
    write_results(
        args.results, describe(versions={"ours": versions()}, settings=settings) | {"summary": found, "runs": runs}
    )
    print(found)


if __name__ == "__main__":
    main()
