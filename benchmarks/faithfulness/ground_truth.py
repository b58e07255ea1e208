"""Do graphs and interventions find what is known to be true? The embedded world, and the toys whose circuits were built.

    python -m benchmarks.faithfulness.ground_truth [--every N] [--results FILE]

In the embedded world every two-hop question has a known intermediate entity (Dallas -> *Texas* -> Austin). Measured for
all of them, in three groups: statements that model and transcoder were trained on; statements held out of all training;
and reserved cities, which the transcoder never saw.

Graph: does it hold, on a path from the city to the answer, a feature selective for the entity? Beside it the same for an
entity that has nothing to do with the prompt. Swaps: does replacing the entity's features by another's turn the answer into
the other's? Beside it random features of equal activation, and raw MLP neurons. Then what the transcoders of the toys
claim about circuits that are known (`circuit_tracer/demo/toys/README.md`). Ten minutes or so on one quiet core. The exit
status is 1 if an aim is missed.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import RESULTS
from benchmarks.faithfulness.graphs import entity_on_path
from benchmarks.faithfulness.swaps import swaps
from circuit_tracer.demo import MODEL, TRANSCODER, toys, world
from circuit_tracer.demo.dictionary import load_dictionary
from circuit_tracer.demo.probes import entity_features
from circuit_tracer.demo.recipe import load_model
from circuit_tracer.demo.show import load_demo
from circuit_tracer.demo.world import Statement

# Aims, at the usual activation; of reserved cities, which the transcoder never saw, only what swaps do.
ON_A_PATH, SWAPPED, BY_CHANCE = 0.90, 0.85, 0.02


def groups(every: int = 1) -> dict[str, Sequence[Statement]]:
    """The two-hop statements, or every n-th of them."""
    found = {"trained": world.seen_two_hops(), "held out": world.held_out(), "reserved cities": world.reserved()}
    return {name: statements[::every] for name, statements in found.items()}


def measure(every: int = 1) -> dict[str, Any]:
    """All that is known about the embedded world, as plain data."""
    model, tokenizer = load_model(MODEL)
    transcoder = load_dictionary(TRANSCODER)
    features = entity_features(model, tokenizer, transcoder)
    tracing = load_demo()
    return {
        name: {
            "prompts": len(statements),
            "graph": entity_on_path(tracing, features, statements),
            "swaps": swaps(model, tokenizer, transcoder, features, statements),
        }
        for name, statements in groups(every).items()
    }


def table(found: dict[str, Any]) -> list[str]:
    """Two tables of shares: one line a group, then one line an intervention."""
    graph_names = list(next(iter(found.values()))["graph"])
    lines = [f"  {'graph':34}" + "".join(f"{name:>18}" for name in found)]
    lines += [f"  {'prompts':34}" + "".join(f"{group['prompts']:18}" for group in found.values())]
    for name in graph_names:
        lines.append(f"  {name:34}" + "".join(f"{group['graph'][name]:18.1%}" for group in found.values()))
    lines += ["", f"  {'answer becomes the other entity’s':34}" + "".join(f"{name:>18}" for name in found)]
    for name in next(iter(found.values()))["swaps"]:
        cells = [group["swaps"][name].values() for group in found.values()]
        lines.append(f"  {name:34}" + "".join(f"{' / '.join(f'{share:.1%}' for share in cell):>18}" for cell in cells))
    return [*lines, "  (at the usual activation / at twice)"]


def missed(world_: dict[str, Any]) -> list[str]:
    """Aims that the embedded default does not reach."""
    found = {f"path, {name}": world_[name]["graph"]["is on a path"] >= ON_A_PATH for name in ("trained", "held out")}
    for name, group in world_.items():
        found[f"swap, {name}"] = group["swaps"]["features"]["1"] >= SWAPPED
        found[f"random swap, {name}"] = group["swaps"]["random features"]["1"] <= BY_CHANCE
    return [name for name, reached in found.items() if not reached]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="only every n-th statement, for a try")
    parser.add_argument("--results", type=Path, default=RESULTS / "ground_truth.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start, results = time.perf_counter(), describe()
    results["versions"] = {"python": platform.python_version()} | {
        name: version(name) for name in ("circuit-tracing", "torch", "transformers")
    }
    results["world"] = measure(args.every)
    print("\n".join(["the embedded world", *table(results["world"])]), flush=True)
    results["toys"] = toys.report()
    for name, claims in results["toys"].items():
        print("\n".join(["", f"toy: {name}", *toys.table(claims)]))
    results["seconds"] = round(time.perf_counter() - start, 1)
    write_results(args.results, results)
    if args.every == 1 and (names := missed(results["world"])):
        raise SystemExit(f"missed: {', '.join(names)}")


if __name__ == "__main__":
    main()
