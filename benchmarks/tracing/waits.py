"""How often a trace, and a token that is written with features changed, would wait for a GPU: counted on a CPU.

    python -m benchmarks.tracing.waits           # half a minute, no GPU
    python -m benchmarks.tracing.waits --lines   # and which line of the engine asks for each

tests/support/waits.py says what is counted, tests/support/waiting_cases.py what is run. Beside the counts of now stand those of
the commit before anything was done about it. Nothing is reported unless the graph that is counted is that of a CPU.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import torch

from benchmarks.common.harness import versions
from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import RESULTS
from circuit_tracer.graph.balance import ReconstructionWarning
from tests.support.waiting_cases import CASES, count, embedded, trace
from tests.support.waits import counting, on_device

BEFORE_COMMIT = "cfacfaa8"
BEFORE = {  # counted there with the files of tests/support
    "trace": {"reads": 245, "uploads": 321, "launches": 1366, "copies not waited for": 0, "bytes read": 293472},
    "trace, several rounds": {
        "reads": 1598,
        "uploads": 3002,
        "launches": 8136,
        "copies not waited for": 0,
        "bytes read": 3189656,
    },
    "long trace": {"reads": 474, "uploads": 122, "launches": 5336, "copies not waited for": 0, "bytes read": 1798440},
    "steered token": {"reads": 15, "uploads": 7, "launches": 308, "copies not waited for": 0, "bytes read": 8},
    "generated token": {"reads": 14, "uploads": 4, "launches": 305, "copies not waited for": 0, "bytes read": 8},
}


def require_same_graph() -> None:
    """What runs on the device that is none gives the graph of a CPU."""
    model = embedded()
    here = trace(model)
    with counting():
        there = trace(on_device(model))
    same = torch.equal(here.selected_features, there.selected_features) and len(here.edges) == len(there.edges)
    if not (same and torch.allclose(here.edges.weight, there.edges.weight, rtol=1e-4, atol=1e-5)):
        raise SystemExit("the graph that was counted is not that of a CPU; nothing is reported")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", action="store_true", help="which line asks for each")
    parser.add_argument("--results", type=Path, default=RESULTS / "waits.json")
    args = parser.parse_args()
    warnings.simplefilter("ignore", ReconstructionWarning)  # one of the models is random
    require_same_graph()
    cases = {}
    for name, found in count(*CASES).items():
        cases[name] = {"before": BEFORE[name], "now": found.summary()}
        print(f"{name:22}", "  ".join(f"{key} {was} -> {found.summary()[key]}" for key, was in BEFORE[name].items()))
        if args.lines:
            print(found.table(), end="\n\n")
    write_results(args.results, describe(versions=versions(), before=BEFORE_COMMIT, cases=cases))


if __name__ == "__main__":
    main()
