"""Are graphs faithful? `validate` over many prompts of the embedded default, or over a few of a real model.

    python -m benchmarks.faithfulness.validation --demo                                       # some minutes on two cores
    python -m benchmarks.faithfulness.validation --model MODELS/smollm2-hf --transcoders MODELS/clt-256 \
        [--per-layer MODELS/plt-256]

Every number is a mean over prompts, with the lowest and the highest; where a graph has none (no kept edge between features,
say), the prompt does not count, and `prompts` says how many did. Neither prompts nor thresholds are chosen by the results.
`large` is one graph of about 300 nodes, timed alone. With --demo the run fails if the aims of AIMS are missed.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from benchmarks.common.harness import versions
from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import RESULTS
from circuit_tracer import Graph, ReplacementModel, attribute
from circuit_tracer.demo import world
from circuit_tracer.demo.show import load_demo
from circuit_tracer.graph.validation import Measures, ValidationReport
from circuit_tracer.interventions import approximate_edges, validate
from circuit_tracer.transcoders.loading import load_transcoder_from_hub

PROMPTS = (
    "The capital of France is",
    "The capital of the state containing Dallas is",
    "The opposite of small is",
    "Fact: Michael Jordan plays the sport of",
    "1, 2, 3, 4, 5,",
    "She opened the door and saw",
)
DEMO_PROMPTS = 200
LARGE = 300  # nodes of the timed graph
SECONDS = 60.0
AIMS = {"window: edges, Spearman": 0.72, "live: edges, Spearman": 0.72, "stream cosine, feature, +1": 0.8}
GRADIENT_GRAPHS = {True: 20, False: 1}  # of the demo, of a real model: a backward pass a node
STEPS = 8  # of integrated gradients

Columns = dict[str, Callable[[Measures], "float | None"]]


def columns() -> Columns:
    """Numbers of a report's measures, by name."""
    found: Columns = {}
    for name in ("constrained", "attention", "window", "live"):
        found |= {
            f"{name}: edges, Spearman": lambda m, name=name: m.effects[name].edges.spearman,
            f"{name}: edges, slope": lambda m, name=name: m.effects[name].edges.slope,
            f"{name}: edges, worst": lambda m, name=name: m.effects[name].edges.worst,
            f"{name}: influence with effect": lambda m, name=name: m.effects[name].influence,
            f"{name}: influence with KL": lambda m, name=name: m.effects[name].divergence,
            f"{name}: nodes along paths, Spearman": lambda m, name=name: m.effects[name].paths.spearman,
        }
    for number, kind in enumerate(("feature", "encoder", "random")):
        for passed in range(3):
            for title, field in (("stream", ""), ("MLP", "mlp_")):
                for what in ("cosine", "nmse"):
                    found[f"{title} {what}, {kind}, +{passed + 1}"] = _curve(number, f"{field}{what}", passed)
    for name in ("constrained", "live"):
        for what in ("clean", "without", "without_others", "only", "nothing"):
            found[f"probability, {name}, {what}"] = lambda m, name=name, what=what: getattr(m.circuit[name], what)
    for what in ("explained", "errors", "unselected", "attention", "residual"):
        found[f"share, {what}"] = lambda m, what=what: getattr(m.accounting, what)
    found["kept features"] = lambda m: m.n_features
    found["kept edges"] = lambda m: m.n_edges
    return found


def _curve(number: int, field: str, passed: int) -> Callable[[Measures], float | None]:
    def read(measures: Measures) -> float | None:
        values = getattr(measures.curves[number], field)
        return values[passed] if passed < len(values) else None

    return read


def summary(measures: Iterable[Measures]) -> dict[str, dict[str, float]]:
    """Mean, least, most and number of prompts, by column."""
    listed, found = list(measures), {}
    for name, read in columns().items():
        values = [float(value) for one in listed if (value := read(one)) is not None]
        if values:
            found[name] = _spread(values)
    return found


def _spread(values: list[float]) -> dict[str, float]:
    mean = sum(values) / len(values)
    numbers = {"mean": mean, "least": min(values), "most": max(values)}
    return {**{name: float(f"{value:.4g}") for name, value in numbers.items()}, "prompts": len(values)}


def demo_prompts(count: int) -> list[str]:
    """Two-hop questions, held-out ones first, then evenly spaced others."""
    held_out = [one.prompt for one in world.held_out()]
    others = [one.prompt for one in world.two_hops() if one.prompt not in set(held_out)]
    wanted = max(0, count - len(held_out))
    return [*held_out, *others[:: max(1, len(others) // max(1, wanted))]][:count]


def gradient_agreement(model: ReplacementModel, graphs: list[Graph]) -> dict[str, dict[str, float]]:
    """Edges against their estimates by gradients of the live model."""
    found: dict[str, dict[str, float]] = {}
    for steps in (1, STEPS):
        agreements = [approximate_edges(model, graph, steps=steps).agreement for graph in graphs]
        for what in ("spearman", "slope"):
            values = [value for each in agreements if (value := getattr(each, what)) is not None]
            if values:
                found[f"{what} with {'integrated' if steps > 1 else 'plain'} gradients"] = _spread(values)
    return found


def large_graph(model: ReplacementModel, wanted: int) -> tuple[Graph, dict[str, Any]]:
    """One graph of at least `wanted` nodes: questions of the world, one after the other; and how long its validation took."""
    words, number = "", 0
    while True:
        words = f"{words} {world.two_hops()[number * 37].prompt}".strip()
        number += 1
        graph = attribute(words, model)
        if graph.n_nodes >= wanted:
            break
    started = time.perf_counter()
    report = validate(graph, model, node_threshold=1.0, edge_threshold=1.0)
    seconds = time.perf_counter() - started
    return graph, {
        "nodes": graph.n_nodes,
        "kept_nodes": report.graph.n_nodes,
        "kept_edges": report.graph.n_edges,
        "tokens": graph.n_pos,
        "seconds": round(seconds, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", action="store_true", help="the embedded default")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--transcoders", type=Path)
    parser.add_argument("--per-layer", type=Path, help="another dictionary to measure beside")
    parser.add_argument(
        "--prompts", type=int, default=0, help="how many; default: 200 of the demo, all 6 of a real model"
    )
    parser.add_argument("--max-feature-nodes", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="default: results/validation-{demo|name of the transcoders}.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    controls = {}
    if args.demo:
        model, prompts, name = load_demo(), demo_prompts(args.prompts or DEMO_PROMPTS), "demo"
    else:
        model = ReplacementModel.from_pretrained(str(args.model), str(args.transcoders), dtype=torch.float32)
        prompts, name = list(PROMPTS[: args.prompts or None]), args.transcoders.name
        if args.per_layer:
            controls["per-layer"] = load_transcoder_from_hub(str(args.per_layer), dtype=torch.float32)[0]
    reports: list[ValidationReport] = []
    graphs: list[Graph] = []
    for number, prompt in enumerate(prompts, start=1):
        graph = attribute(prompt, model, max_feature_nodes=args.max_feature_nodes or None)
        reports.append(validate(graph, model, controls=controls))
        graphs.append(graph)
        print(f"{number}/{len(prompts)} {reports[-1].seconds:.1f} s {prompt!r}", flush=True)
    results = {
        **describe(versions=versions(), subject=name, threads=args.threads),
        "prompts": len(prompts),
        "graph": summary(each.graph for each in reports),
        "controls": {key: summary(each.controls[key] for each in reports) for key in reports[0].controls},
        "stability": _stability(reports),
        "gradients": gradient_agreement(model, graphs[: GRADIENT_GRAPHS[args.demo]]),
        "seconds_a_validation": _spread([each.seconds for each in reports]),
        "words": {each.prompt: [*each.verdict, *each.distrust] for each in reports[:6]},
    }
    if args.demo:
        _, results["large"] = large_graph(model, LARGE)
    write_results(args.out or RESULTS / f"validation-{name}.json", results)
    for key, value in results["graph"].items():
        print(f"{key:<42}{value['mean']:>10.4g}   {value['least']:.3g} ... {value['most']:.3g}  ({value['prompts']})")
    for key in ("controls", "stability", "gradients", "seconds_a_validation", "large"):
        print(key, results.get(key))
    missed = [name for name, aim in AIMS.items() if args.demo and results["graph"][name]["mean"] < aim]
    if args.demo and results["large"]["seconds"] > SECONDS:
        missed.append(f"validation of {results['large']['nodes']} nodes in {SECONDS:.0f} s")
    if missed:
        raise SystemExit(f"missed: {', '.join(missed)}")


def _stability(reports: list[ValidationReport]) -> dict[str, dict[str, float]]:
    found = {}
    for what in ("nodes", "edges"):
        values = [value for each in reports if (value := getattr(each.stability, what)) is not None]
        if values:
            found[what] = _spread(values)
    return found


if __name__ == "__main__":
    main()
