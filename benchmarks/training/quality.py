"""Quality at equal budget against decode-clt 0.0.1: same activations in the same order, same steps, same features, same L0.

    python -m benchmarks.training.quality --peer DECODE_VENV --work WORK --data demo          # about 10 minutes
    python -m benchmarks.training.quality --peer DECODE_VENV --work WORK --data smollm2 \
        --model MODELS/smollm2-hf --corpus CORPUS/corpus.jsonl                                # an hour, nearly all the peer's

Activations are written once (activations.py) and read by both. Each engine trains with its own recipe at its own learning
rate, then at each of the same --rates, decode-clt in each of --spaces (../peer/decode_clt_train.py says what they are).
Of each engine two dictionaries are measured on tokens that neither saw: "recipe", and "best", which has the lowest error on the
rows of calibration. Dictionaries are JumpReLUs by then, thresholds calibrated on the same rows to the same number of active
features, and both are measured by this package from files in circuit-tracer's layout. The conversion of decode-clt's is held to
its own code first: no result unless both agree on its error. What is in WORK already is used again: delete it to train anew.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from benchmarks.common.harness import versions
from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import RESULTS
from benchmarks.common.processes import peer_command
from benchmarks.training.activations import Subject, demo_subject, smollm2_subject, write_demo, write_smollm2
from benchmarks.training.ours import Recipe, train
from benchmarks.training.rows import Rows
from circuit_tracer.training.evaluation import EvaluationSettings, GivenActivations, evaluate
from circuit_tracer.training.evaluation.reconstruction import Meter, Spread
from circuit_tracer.transcoders.loading import load_transcoder_from_hub

# Relative difference of an error by decode-clt's code and by ours. Not less: an entry that rounding lifts over its threshold
# changes an error over some hundred tokens by a thousandth.
CONVERSION_LIMIT = 5e-3
REPLACEMENT_TOKENS = 4096


@dataclass(frozen=True)
class Budget:
    """What both engines get."""

    tokens: int
    features: int
    active: int
    batch: int
    rates: tuple[float, ...]  # tried by both besides their own
    spaces: tuple[str, ...]  # in which decode-clt tries them


# On the embedded world "scaled" serves decode-clt better at its best rate, so half an hour on each rate goes there.
BUDGETS = {
    "demo": Budget(400 * 1024, 192, 2, 1024, rates=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2), spaces=("own", "scaled")),
    "smollm2": Budget(400 * 256, 512, 8, 256, rates=(3e-3,), spaces=("scaled",)),
}


@dataclass(frozen=True)
class Attempt:
    """One dictionary to train. ``rate`` None: the recipe's own. ``space``: decode-clt's, see there."""

    engine: str
    rate: float | None
    space: str = "own"

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.engine}-{self.space}-{'recipe' if self.rate is None else f'{self.rate:g}'}"


def attempts(budget: Budget) -> list[Attempt]:
    """All that are trained on one set of activations."""
    ours = [Attempt("ours", rate) for rate in (None, *budget.rates)]
    peers = [Attempt("decode-clt", rate, space) for space in budget.spaces for rate in budget.rates]
    return [*ours, Attempt("decode-clt", None), *peers]


def trained(attempt: Attempt, rows: Rows, budget: Budget, args: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """The dictionary's folder and what is known of its training; trained unless it is there."""
    folder = rows.folder.parent / attempt.name
    record, settings = folder / "run.json", asdict(budget) | rows.about
    for tried in ("rates", "spaces"):
        del settings[tried]
    if record.exists():
        found: dict[str, Any] = json.loads(record.read_text())
        if found["settings"] != settings:
            raise SystemExit(f"{folder} was trained with other settings: delete it, or choose another --work")
        return folder, found
    print(f"  training {attempt.name}", flush=True)
    if attempt.engine == "ours":
        found = train(rows, Recipe(budget.features, budget.active, budget.batch, attempt.rate), folder)
    else:
        found = run_peer(attempt, rows, budget, folder, args)
    found["calibration_nmse"] = reconstruction(folder, rows, "calibration")["nmse"]
    found["settings"] = settings
    record.write_text(json.dumps(found) + "\n")
    return folder, found


def run_peer(attempt: Attempt, rows: Rows, budget: Budget, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """decode-clt in its own environment; its many lines go to a log file."""
    options = {"rows": rows.folder, "out": folder, "features": budget.features, "active": budget.active}
    options |= {"batch": budget.batch, "space": attempt.space, "threads": args.threads}
    options |= {} if attempt.rate is None else {"rate": attempt.rate}
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    command = [*peer_command(args.peer, "decode_clt_train.py"), *words]
    log = rows.folder.parent / f"{attempt.name}.log"
    with log.open("w") as errors:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    if done.returncode:
        raise SystemExit(f"decode-clt ended with status {done.returncode}; see {log}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    here = reconstruction(folder, rows, "test")["nmse"]
    if not math.isclose(here, found["nmse_test"], rel_tol=CONVERSION_LIMIT):
        raise SystemExit(
            f"no quality reported: decode-clt finds an error of {found['nmse_test']:.5f} where its converted files give "
            f"{here:.5f}: the conversion changes the dictionary"
        )
    return found


@torch.no_grad()
def reconstruction(folder: Path, rows: Rows, group: str) -> dict[str, float]:
    """Error and active features on one group of rows. ``pooled``: over all layers at once, large outputs weigh more."""
    transcoders, _ = load_transcoder_from_hub(str(folder), device=torch.device("cpu"), dtype=torch.float32)
    meter, spread = Meter(transcoders), Spread()
    for x_NSD, y_NSD, _ in GivenActivations(*rows.group(group)).batches():
        spread.add(y_NSD)
        meter.add(x_NSD, y_NSD)
    found = meter.result(spread)
    pooled = float(meter.errors_S.sum() / spread.squares_S.sum())
    return {
        "nmse": found.mean_nmse,
        "pooled_nmse": pooled,
        "l0": sum(found.l0),
        "never_active": found.dead_share,
    }


def measured(folder: Path, rows: Rows, subject: Subject) -> dict[str, Any]:
    """Everything about one dictionary on tokens that were not trained or calibrated on."""
    transcoders, _ = load_transcoder_from_hub(str(folder), device=torch.device("cpu"), dtype=torch.float32)
    settings = EvaluationSettings(
        replacement_tokens=REPLACEMENT_TOKENS, prompts=tuple(subject.prompts), random_baseline=False
    )
    evaluation = evaluate(
        subject.parts,
        subject.tokenizer,
        transcoders,
        subject.sequences,
        settings,
        activations=GivenActivations(*rows.group("test")),
    ).to_json()
    result = evaluation["results"]["dictionary"]
    return {
        **reconstruction(folder, rows, "test"),
        "nmse_by_layer": result["reconstruction"]["nmse"],
        "replacement": result["replacement"],
        "graphs": result["mean_graph_scores"],
    }


def compare(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train everything on one set of activations, measure what is to be shown, print it."""
    budget, work = budget_of(name, args), args.work / name
    print(f"\n{name}: {budget}")
    rows, subject = (
        Rows(work / "rows"),
        (demo_subject() if name == "demo" else smollm2_subject(args.model, args.corpus)),
    )
    if not (rows.folder / "about.json").exists():
        if name == "demo":
            write_demo(rows.folder, subject, budget.tokens)
        else:
            write_smollm2(rows.folder, subject, args.model, args.corpus, budget.tokens)
    runs = {attempt: trained(attempt, rows, budget, args) for attempt in attempts(budget)}
    print(
        f"  {'':24} {'rate':>8} {'L0':>7} {'NMSE':>8} {'pooled':>8} {'graph':>8} {'compl.':>8} {'top-1':>7} {'KL':>7}"
    )
    shown: dict[str, Any] = {}
    for engine in ("ours", "decode-clt"):
        mine = {attempt: run for attempt, run in runs.items() if attempt.engine == engine}
        best = min(mine, key=lambda attempt: mine[attempt][1]["calibration_nmse"])
        shown[engine] = {}
        for what, attempt in (("recipe", Attempt(engine, None)), ("best", best)):
            folder, run = mine[attempt]
            shown[engine][what] = asdict(attempt) | {"training": run} | measured(folder, rows, subject)
            show(f"{engine}, {what}", shown[engine][what])
    tried = {attempt.name: {**runs[attempt][1], "settings": None} for attempt in runs}
    return {"budget": asdict(budget), "about": rows.about, "shown": shown, "tried": tried}


def budget_of(name: str, args: argparse.Namespace) -> Budget:
    """The budget of a data set; options replace parts of it."""
    values = asdict(BUDGETS[name])
    values |= {key: found for key in values if (found := getattr(args, key)) is not None}
    return Budget(**{**values, "rates": tuple(values["rates"]), "spaces": tuple(values["spaces"])})


def show(what: str, found: dict[str, Any]) -> None:
    """One line of the table."""
    graphs, replacement = found["graphs"], found["replacement"]
    print(
        f"  {what:24} {found['training']['rate']:8.1e} {found['l0']:7.1f} {found['nmse']:8.4f} {found['pooled_nmse']:8.4f} "
        f"{graphs['replacement']:8.4f} {graphs['completeness']:8.4f} {replacement['top1']:7.3f} {replacement['kl']:7.3f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True, help="virtual environment of peer/setup_decode_clt.sh")
    parser.add_argument("--work", type=Path, required=True, help="folder for activations and dictionaries")
    parser.add_argument("--data", nargs="+", choices=list(BUDGETS), default=["demo"])
    parser.add_argument("--model", type=Path, help="SmolLM2 as a Hugging Face folder (inputs.prepare_models)")
    parser.add_argument("--corpus", type=Path, help="JSONL file with a field text (recipes/smollm2/corpus.sh)")
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--features", type=int)
    parser.add_argument("--active", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rates", type=float, nargs="*")
    parser.add_argument("--spaces", choices=["own", "scaled"], nargs="*")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS / "training_quality.json")
    args = parser.parse_args()
    if "smollm2" in args.data and not (args.model and args.corpus):
        parser.error("smollm2 needs --model and --corpus")
    torch.set_num_threads(args.threads)
    results = describe(versions={"ours": versions()})
    before = json.loads(args.results.read_text()) if args.results.exists() else {}
    results["data"] = before.get("data", {}) | {name: compare(name, args) | describe() for name in args.data}
    write_results(args.results, json.loads(json.dumps(results).replace("NaN", "null")))


if __name__ == "__main__":
    main()
