"""What does it cost to explain an edge, a score, and all edges of a pruned graph?

    python -m benchmarks.attention.cost --model FOLDER --transcoders FOLDER [--results attention_cost.json]

One graph is traced, which is not counted. Then, each a median:
- one edge (`explain_edge`) and one score (`explain_score`, without and with all pairs): the first question about a graph, which
  runs the model again, and later ones: edges into the answer from features, errors and tokens in turn; scores of heads of
  all depths;
- three heads an edge (`explain_edges`) of the graph pruned to about 300 nodes, after the first question.

Nothing is reported unless the sums of all of them are what they are of, to 1e-5. The exit status is 1 if an aim is missed. Keep
the machine quiet: the load at the start is written beside the numbers.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from benchmarks.common.harness import read_prompts, versions
from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import PROMPTS, RESULTS
from circuit_tracer.attention import explain_edge, explain_edges, explain_score
from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.nodes import NodeKind
from circuit_tracer.graph.pruning import PruneResult, prune_graph

if TYPE_CHECKING:
    from circuit_tracer.replacement_model import ReplacementModel

AIMS = {"edge": 0.3, "score": 0.3, "edges": 10.0}  # seconds
FIRST, LATER, TABLES = 3, 12, 3  # questions that are timed
NODES, KEEP = 300, 3
SOURCES = (NodeKind.FEATURE, NodeKind.ERROR, NodeKind.TOKEN)
SUMS = 1e-5


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and the result."""
    start = time.perf_counter()
    found = call()
    return time.perf_counter() - start, found


def spread(seconds: list[float]) -> dict[str, float]:
    """Median, least, most and how many."""
    numbers = {"median": statistics.median(seconds), "least": min(seconds), "most": max(seconds)}
    return {**{name: round(value, 4) for name, value in numbers.items()}, "questions": len(seconds)}


def questions(graph: Graph, model: ReplacementModel, ask: Callable[[Graph, int], Any]) -> dict[str, Any]:
    """First and later questions about a graph; `ask` takes the graph and a number. SystemExit where sums miss."""
    first = [
        timed(partial(ask, copy.copy(graph), number)) for number in range(FIRST)
    ]  # nothing is remembered of a copy
    ask(graph, 0)
    later = [timed(partial(ask, graph, number)) for number in range(LATER)]
    if not (worst := max(found.residual for _, found in [*first, *later])) <= SUMS:
        raise SystemExit(f"nothing reported: sums miss what they are of by {worst:.1e}")
    return {
        "first": spread([each for each, _ in first]),
        "later": spread([each for each, _ in later]),
        "residual": worst,
    }


def pruned_to(graph: Graph, wanted: int) -> PruneResult:
    """The graph pruned to as close to so many nodes as a threshold gives."""
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if int(prune_graph(graph, middle).node_mask.sum()) < wanted else (low, middle)
    return prune_graph(graph, high)


def measure(graph: Graph, model: ReplacementModel) -> dict[str, Any]:
    """All numbers."""
    layout, edges, config = graph.nodes.layout, graph.edges, model.parts.config
    into = edges.source[edges.target == layout.target_start]
    of_kinds = [into[graph.nodes.kind[into] == kind].tolist() for kind in SOURCES]
    sources = [of_kind[-1 - place] for place in range(LATER // len(of_kinds)) for of_kind in of_kinds]
    last = graph.n_pos - 1

    def edge(about: Graph, number: int) -> Any:
        return explain_edge(about, sources[number], layout.target_start, model)

    def score(pairs: bool) -> Callable[[Graph, int], Any]:
        def ask(about: Graph, number: int) -> Any:
            layer = (number + 1) * config.n_layers // LATER - 1
            return explain_score(about, model, layer, number % config.n_heads, last, last // 2, pairs=pairs)

        return ask

    found = {"edge": questions(graph, model, edge), "score": questions(graph, model, score(False))}
    found["score with pairs"] = questions(graph, model, score(True))
    pruned = pruned_to(graph, NODES)
    edge(graph, 0)
    seconds = [timed(lambda: explain_edges(graph, model, KEEP, pruned))[0] for _ in range(TABLES)]
    found["edges"] = {
        "nodes": int(pruned.node_mask.sum()),
        "edges": int(pruned.kept_edges.sum()),
        "keep": KEEP,
        "later": spread(seconds),
    }
    return found


def missed(found: dict[str, Any]) -> list[str]:
    """Aims that are not reached, of questions after the trace."""
    return [f"{name} in {aim} s" for name, aim in AIMS.items() if found[name]["later"]["median"] >= aim]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--transcoders", type=Path, required=True)
    parser.add_argument("--prompt", default="long-25")
    parser.add_argument("--rows", type=int, default=1024, help="features that are nodes of the graph")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", help="write this file of benchmarks/results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    from circuit_tracer import ReplacementModel

    results = describe(versions=versions(), threads=args.threads)
    model = ReplacementModel.from_pretrained(str(args.model), str(args.transcoders), dtype=torch.float32)
    prompt = read_prompts(PROMPTS, [args.prompt], model.tokenizer)[args.prompt]
    seconds, graph = timed(lambda: attribute(prompt, model, max_feature_nodes=args.rows))
    results |= {
        "model": args.model.name,
        "transcoders": args.transcoders.name,
        "prompt": args.prompt,
        "tokens": graph.n_pos,
    }
    results |= {"active": len(graph.active_features), "nodes": graph.n_nodes, "seconds_of_the_trace": round(seconds, 2)}
    results |= measure(graph, model)
    print(f"{graph.n_pos} tokens, {args.threads} threads; the trace took {seconds:.1f} s")
    for name in ("edge", "score", "score with pairs"):
        print(
            f"  {name:18} first {results[name]['first']['median']:.3f} s, later {results[name]['later']['median']:.3f} s"
        )
    table = results["edges"]
    print(f"  {table['edges']} edges among {table['nodes']} nodes, {KEEP} heads each: {table['later']['median']:.2f} s")
    if args.results:
        write_results(RESULTS / args.results, results)
    if names := missed(results):
        raise SystemExit(f"missed: {', '.join(names)}")


if __name__ == "__main__":
    main()
