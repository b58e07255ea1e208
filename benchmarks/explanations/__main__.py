"""Does an explanation say what is known? Groups, names and swaps on two-hop prompts of the embedded world.

    python -m benchmarks.explanations [--prompts N] [--folder PAIR] [--results FILE]

Every two-hop prompt has a known entity between its hops (Dallas -> *Texas* -> Austin) and a known answer. Each is traced,
grouped and named by the package's defaults. Measured: is there a group named after the entity, one that says the answer; of
how much influence are the groups pure; does the entity's group, swapped for another prompt's, turn the answer, and do random
groups of its size; what do groups taken out at once do, measured over predicted. In three kinds of prompts: those that model
and dictionary were trained on; statements held out of both; reserved cities, which the dictionary never saw. Under four minutes
on one core. The exit status is 1 if an aim is missed.
"""

from __future__ import annotations

import argparse
import platform
import random
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import RESULTS
from benchmarks.explanations.effects import effects
from benchmarks.explanations.explained import Explained, found
from benchmarks.explanations.swaps import swaps
from circuit_tracer.demo import demo_folder, world
from circuit_tracer.demo.world import Statement
from circuit_tracer.features.labels import read_labels
from circuit_tracer.replacement_model import ReplacementModel

PROMPTS = 80  # of each kind
EVERY = 2  # prompts whose groups are taken out

# (table, row): at least, or at most
AT_LEAST = {
    ("found", "the entity's group is found"): 0.9,
    ("found", "the answer's group is found"): 0.9,
    ("found", "purity by influence"): 0.9,
    ("swaps", "the answer turns, 1x"): 0.9,
}
AT_MOST = {
    ("found", "mixed features, of the pruned graph's influence"): 0.1,
    ("swaps", "random groups, 1x"): 0.03,
}


def prompts(count: int = PROMPTS) -> dict[str, list[Statement]]:
    """So many statements of each kind, the same ones every time."""
    kinds: dict[str, Sequence[Statement]] = {
        "trained": world.seen_two_hops(),
        "held out": world.held_out(),
        "reserved cities": world.reserved(),
    }
    return {
        name: random.Random(0).sample(statements, min(count, len(statements))) for name, statements in kinds.items()
    }


def measure(count: int = PROMPTS, folder: Path | None = None) -> dict[str, Any]:
    """By kind of prompts: what is found, what swaps do, what taking groups out does. folder: another pair than the shipped."""
    model, labels = pair(demo_folder() if folder is None else folder)
    cases = {
        name: [Explained.of(one, model, labels) for one in statements] for name, statements in prompts(count).items()
    }
    return {
        name: {
            "found": found(each),
            "swaps": swaps(each, cases["trained"], model),
            "effects": effects(each[::EVERY], model),
        }
        for name, each in cases.items()
    }


def pair(folder: Path) -> tuple[ReplacementModel, dict[tuple[int, int], str]]:
    """The model with its dictionary, and the dictionary's labels, of a folder of `circuit-tracer demo train`."""
    model = ReplacementModel.from_pretrained(folder / "model", folder / "transcoder", device="cpu", dtype=torch.float32)
    return model, read_labels(folder / "labels.json")


def missed(measured: Mapping[str, Any]) -> list[str]:
    """Aims that are not reached, with what was found."""
    names = []
    for kind, tables in measured.items():
        for aims, sign in ((AT_LEAST, 1), (AT_MOST, -1)):
            for (table, row), aim in aims.items():
                value = tables[table][row]
                if sign * value < sign * aim:
                    names.append(f"{kind}: {row} {value:.1%} (aim {aim:.0%})")
    return names


def lines(measured: Mapping[str, Any]) -> list[str]:
    """One line a number, one column a kind of prompts."""
    head = [f"{'':52}" + "".join(f"{kind:>18}" for kind in measured)]
    return head + [
        f"{name:52}" + "".join(f"{shown(value):>18}" for value in values) for name, values in rows(measured).items()
    ]


def rows(measured: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Every number by its name, one for each kind of prompts."""
    columns = [_flat(tables) for tables in measured.values()]
    return {name: [column[name] for column in columns] for name in columns[0]}


def shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _flat(tables: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of all tables; those of a table in a table have its name in front."""
    flat: dict[str, Any] = {}
    for table in tables.values():
        for name, value in table.items():
            flat |= (
                {f"{name}: {row}": each for row, each in value.items()} if isinstance(value, dict) else {name: value}
            )
    return flat


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="of each kind")
    parser.add_argument("--folder", type=Path, help="another pair, as `circuit-tracer demo train -o FOLDER` leaves it")
    parser.add_argument("--results", type=Path, default=RESULTS / "explanations.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start, results = time.perf_counter(), describe()
    results["versions"] = {"python": platform.python_version()} | {
        name: version(name) for name in ("circuit-tracing", "torch", "transformers")
    }
    results["world"] = measure(args.prompts, args.folder)
    results["missed"] = missed(results["world"])
    results["seconds"] = round(time.perf_counter() - start, 1)
    write_results(args.results, results)
    print("\n".join(lines(results["world"])), f"\n{results['seconds']} s")
    if results["missed"]:
        raise SystemExit("missed: " + "; ".join(results["missed"]))


if __name__ == "__main__":
    main()
