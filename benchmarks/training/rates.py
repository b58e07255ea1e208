"""Is the default learning rate the right one? The error on held-out tokens at rates around it, and around its budget.

    python -m benchmarks.training.rates --work WORK --model MODELS/smollm2-hf --corpus CORPUS/corpus.jsonl

Activations of the embedded model and of the first layers of SmolLM2 are written once (activations.py). On each of them every
rule trains at the default rate and at multiples of it, on one budget and on four times as many steps, with several seeds of
weights and batches (fewer of them where --longer-seeds says so). Errors are those of the training rule, on tokens that were
not trained on (run/find.py). Reported: mean and interval of the mean over seeds (Student's t, 95 %), by how much the default
is above the best multiple, the active features of a layer and token beside those asked for, and features never active, in all
and in the layer with most of them. What is in WORK already is used again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from benchmarks.common.harness import versions
from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import RESULTS
from benchmarks.training.activations import demo_subject, smollm2_subject, write_demo, write_smollm2
from benchmarks.training.ours import space_of
from benchmarks.training.rows import Rows
from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.data.batch import ActivationBatch
from circuit_tracer.training.evaluation.intervals import student
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.run.find import Repeated, trial
from circuit_tracer.training.step import schedules

CPU = torch.device("cpu")
MULTIPLES = (0.5, 1.0, 2.0)  # of the default rate
RULES = ("batch_topk", "topk", "jumprelu")


@dataclass(frozen=True)
class Budget:
    """What is trained. ``layers``: the first ones of the model; ``longer``: times as many steps in the second budget."""

    features: int
    active: float
    batch: int
    steps: int
    layers: int
    longer: int = 4


BUDGETS = {"demo": Budget(192, 2.0, 256, 200, 4), "smollm2": Budget(512, 8.0, 1024, 200, 10)}


def measured(rows: Rows, budget: Budget, rule: str, longer: int, seeds: Sequence[int]) -> dict[str, Any]:
    """All rates of one rule on one budget."""
    steps = budget.steps * longer
    space, held_out = space_of(rows, budget.layers), _first(rows.group("test"), budget.layers)
    tried: list[dict[str, Any]] = []
    for multiple in MULTIPLES:
        runs = []
        for seed in seeds:
            config = configuration(rows, budget, rule, steps, seed)
            rate = multiple * schedules.ruled_rate(config, budget.layers, rows.about["width"])
            stream = Repeated(Shuffled(rows, budget, steps, seed), CPU)
            runs.append(asdict(trial(config, rate, space, stream, held_out, CPU, FeatureRanks())))
        tried.append({"multiple": multiple, "rate": rate, "runs": runs, **_over_seeds(runs)})
    errors = {one["multiple"]: one["error"] for one in tried}
    best = min(errors, key=lambda multiple: errors[multiple])
    found = {
        "rule": rule,
        "steps": steps,
        "seeds": list(seeds),
        "tried": tried,
        "above_best": errors[1.0] / errors[best] - 1,
        "best_multiple": best,
    }
    show(found)
    return found


def configuration(rows: Rows, budget: Budget, rule: str, steps: int, seed: int) -> TrainingConfig:
    """Defaults, but for the sizes and when a feature is dead."""
    tokens = steps * budget.batch
    return TrainingConfig.model_validate(
        {
            "model": {"name": rows.about["model"]},
            "data": {"path": "activations"},
            "dictionary": {"features": budget.features},
            "sparsity": {"activation": rule, "active": budget.active, "dead_after_tokens": max(1, tokens // 8)},
            "run": {"out": "unused", "tokens": tokens, "batch": budget.batch, "seed": seed, "log_every": steps,
                    "checkpoint_every_steps": steps + 1},
        }
    )  # fmt: skip


@dataclass(frozen=True)
class Shuffled:
    """Batches of rows in an order that follows from the seed, as many as a run needs."""

    rows: Rows
    budget: Budget
    steps: int
    seed: int

    def __iter__(self) -> Iterator[ActivationBatch]:
        generator, order, size = torch.Generator().manual_seed(self.seed), self.rows.order(), self.budget.batch
        left = self.steps
        while left:
            order = order[torch.randperm(len(order), generator=generator).numpy()]
            for start in range(0, min(left, len(order) // size) * size, size):
                yield _first(self.rows.chosen(order[start : start + size]), self.budget.layers)
                left -= 1


def _first(sides: tuple[torch.Tensor, torch.Tensor], layers: int) -> ActivationBatch:
    x_NSD, y_NSD = sides
    return ActivationBatch(x_NSD[:, :layers].contiguous(), y_NSD[:, :layers].contiguous())


def _over_seeds(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    errors = [run["error"] for run in runs]
    several = len(errors) > 1 and all(map(math.isfinite, errors))  # a run that broke has no error
    half = student(len(errors) - 1) * statistics.stdev(errors) / math.sqrt(len(errors)) if several else math.nan
    means = {name: statistics.mean(run[name] for run in runs) for name in ("active", "never_active", "emptiest")}
    return {"error": statistics.mean(errors), "half_interval": half, **means}


def show(found: dict[str, Any]) -> None:
    """One block of lines."""
    for one in found["tried"]:
        print(
            f"  {found['rule']:12}{found['steps']:6} steps  {one['multiple']:4.1f} x  {one['rate']:8.1e}  "
            f"NMSE {one['error']:.4f} ± {one['half_interval']:.4f}  active {one['active']:5.2f}  "
            f"never {one['never_active']:6.1%}  in the emptiest layer {one['emptiest']:6.1%}",
            flush=True,
        )


def activations(name: str, args: argparse.Namespace) -> Rows:
    """The rows of one model, written unless they are there."""
    rows = Rows(args.work / name / "rows")
    if not (rows.folder / "about.json").exists():
        tokens = args.tokens
        if name == "demo":
            write_demo(rows.folder, demo_subject(), tokens)
        else:
            write_smollm2(rows.folder, smollm2_subject(args.model, args.corpus), args.model, args.corpus, tokens)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for activations")
    parser.add_argument("--data", nargs="+", choices=list(BUDGETS), default=list(BUDGETS))
    parser.add_argument("--model", type=Path, help="SmolLM2 as a Hugging Face folder (inputs.prepare_models)")
    parser.add_argument("--corpus", type=Path, help="JSONL file with a field text (recipes/smollm2/corpus.sh)")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--longer", type=int, nargs="+", default=[1, 4], help="budgets, in times the steps of the first"
    )
    parser.add_argument("--longer-seeds", type=int, nargs="+", help="of the longer budget (default: the same)")
    parser.add_argument("--tokens", type=int, default=65536, help="rows written, which longer runs read again")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS / "training_rates.json")
    args = parser.parse_args()
    if "smollm2" in args.data and not (args.model and args.corpus):
        parser.error("smollm2 needs --model and --corpus")
    torch.set_num_threads(args.threads)
    before = json.loads(args.results.read_text())["data"] if args.results.exists() else {}
    data: dict[str, Any] = {}
    for name in args.data:
        rows, budget, start = activations(name, args), BUDGETS[name], time.perf_counter()
        print(f"{name}: {budget}", flush=True)
        seeds = {1: args.seeds, budget.longer: args.longer_seeds or args.seeds}
        seeds = {longer: some for longer, some in seeds.items() if longer in args.longer}
        cases = [measured(rows, budget, rule, longer, some) for longer, some in seeds.items() for rule in args.rules]
        seconds = time.perf_counter() - start
        known = before.get(name, {})
        if known.get("budget") == asdict(budget):  # other rules and lengths, measured before
            done = {(case["rule"], case["steps"]) for case in cases}
            cases = [case for case in known["cases"] if (case["rule"], case["steps"]) not in done] + cases
        data[name] = {"budget": asdict(budget), "seconds": seconds, "cases": cases}
    results = describe(versions={"ours": versions()}) | {"data": before | data}
    write_results(args.results, json.loads(json.dumps(results).replace("NaN", "null").replace("Infinity", "null")))


if __name__ == "__main__":
    main()
