"""Kinds of sparse autoencoders on the same activations, tokens and active features: error, silent features, probing.

    recipes/smollm2/corpus.sh CORPUS 1200000
    python -m benchmarks.training.kinds --work WORK --model MODELS/smollm2-hf --corpus CORPUS       # about 8 minutes on a core

Autoencoders of the residual stream after layer 12 of SmolLM2-135M, each kind with its default settings but for the sizes; what
the kind itself asks for is in `KINDS`. All is measured on the files that were written, on documents that were not trained on,
and the error also on the dictionary in training (what files add). Beside them stand a dictionary that was not trained and the
stream's own dimensions. Reported: mean and interval of the mean over seeds (Student's t, 95 %). Activations are made once.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor

from benchmarks.common.harness import versions
from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import RESULTS
from benchmarks.training.labelled import HOOK, LAYER, Rows, rows_of
from benchmarks.training.probing import FEW, probed
from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.data.batch import ActivationBatch
from circuit_tracer.training.evaluation.intervals import student
from circuit_tracer.training.export.calibration import level_scores
from circuit_tracer.training.export.export import export
from circuit_tracer.training.export.trained import Trained
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.run import checkpoint
from circuit_tracer.training.run.events import NullListener
from circuit_tracer.training.run.loop import Loop, normalised
from circuit_tracer.training.run.state import TrainingState
from circuit_tracer.training.sparsity import rule_of
from circuit_tracer.training.step import schedules
from circuit_tracer.training.step.normalisation import Normalisation
from circuit_tracer.transcoders.autoencoders import load_autoencoders
from circuit_tracer.transcoders.base import Transcoders

CPU, WIDTH = torch.device("cpu"), 576
UNTRAINED, DIMENSIONS = "not trained", "the stream's dimensions"


@dataclass(frozen=True)
class Budget:
    """What every kind gets."""

    features: int = 1024
    active: float = 16.0
    batch: int = 512
    steps: int = 300


# What is given besides: prefixes in shares of the features, and times the default learning rate, where twice of it was better
# than once (one seed, half the steps: .443 to .426 for gated, .427 to .422 for relu; .393 to .481 for switch, which stays).
# Of "gated, penalised" gates are not steered: the weight gives about as many active features.
KINDS: dict[str, dict[str, Any]] = {
    "batch_topk": {"activation": "batch_topk"},
    "topk": {"activation": "topk"},
    "jumprelu": {"activation": "jumprelu"},
    "relu": {"activation": "relu", "rate": 2.0},
    "gated": {"activation": "gated", "rate": 2.0},
    "gated, penalised": {"activation": "gated", "rate": 2.0, "penalty": 0.025},
    "switch": {"activation": "switch", "experts": 4},
    "matryoshka": {"activation": "batch_topk", "prefixes": (1 / 16, 1 / 4)},
}


class Shuffled:
    """Batches of rows in an order that follows from the seed, again and again."""

    def __init__(self, x_ND: Tensor, batch: int, seed: int) -> None:
        self.batches = self._drawn(x_ND, batch, torch.Generator().manual_seed(seed))

    @staticmethod
    def _drawn(x_ND: Tensor, batch: int, generator: torch.Generator) -> Iterator[ActivationBatch]:
        while True:
            for rows in torch.randperm(len(x_ND), generator=generator)[: len(x_ND) // batch * batch].split(batch):
                yield ActivationBatch(x_ND[rows, None], x_ND[rows, None])

    def next(self) -> ActivationBatch | None:
        """The next batch."""
        return next(self.batches)

    def state(self) -> dict[str, Any]:
        """Nothing is resumed here."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing is resumed here."""


def configuration(kind: str, budget: Budget, seed: int, out: Path) -> TrainingConfig:
    """Defaults, but for the sizes, what the kind asks for, and when a feature is dead."""
    tokens, sparsity = budget.steps * budget.batch, dict(KINDS[kind])
    multiple = sparsity.pop("rate", 1.0)
    if prefixes := sparsity.pop("prefixes", None):
        sparsity["prefixes"] = [round(share * budget.features) for share in prefixes]
    config = TrainingConfig.model_validate(
        {
            "model": {"name": "SmolLM2-135M-Instruct"},
            "data": {"path": "activations"},
            "dictionary": {"kind": "sae", "features": budget.features, "layers": [LAYER], "point": HOOK},
            "sparsity": {"active": budget.active, "dead_after_tokens": tokens // 8, **sparsity},
            "run": {"out": out, "tokens": tokens, "batch": budget.batch, "seed": seed, "log_every": budget.steps,
                    "checkpoint_every_steps": budget.steps + 1, "export_dtype": "float32"},
        }
    )  # fmt: skip
    rate = multiple * schedules.ruled_rate(config, 1, WIDTH)
    return config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"learning_rate": rate})})


def space_of(x_ND: Tensor) -> Normalisation:
    """Mean and scale of the rows of train."""
    mean_1D = x_ND.double().mean(0, keepdim=True)
    variance_1 = (x_ND.double() - mean_1D).square().sum(1).mean()[None]
    return Normalisation.from_moments(mean_1D, variance_1, mean_1D, variance_1)


def made(kind: str, budget: Budget, seed: int, rows: dict[str, Rows], steps: int | None = None) -> dict[str, Any]:
    """One dictionary, trained (``steps``: 0 for none), written, read and measured."""
    ranks = FeatureRanks()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        config = configuration(kind, budget, seed, folder)
        state = TrainingState.initial(config, space_of(rows["train"].x_ND), None, CPU, ranks)
        stream = Shuffled(rows["train"].x_ND, budget.batch, seed)
        begun = time.perf_counter()
        if steps != 0:
            Loop(config, state, stream, ranks, NullListener(), folder, {}).run()
        seconds = time.perf_counter() - begun
        levels = None
        if rule_of(config.sparsity).needs_level:
            held_out = [ActivationBatch(x[:, None], x[:, None]) for x in rows["calibration"].x_ND.split(budget.batch)]
            batches = [normalised(batch, state.normalisation).x_SBD for batch in held_out[:-1]]
            levels = level_scores(state.dictionary, batches, config.sparsity, state.running_cut, ranks)
        saved = checkpoint.read(checkpoint.save(state, folder, {"levels": levels}, ranks))
        export(saved, config, levels, folder / "files", config.model.name, [LAYER])
        dictionary = load_autoencoders(folder / "files").dictionary
    trained = Trained(state.dictionary, state.normalisation, config.sparsity, state.running_cut, ranks)
    return {"seconds": seconds, **measured(dictionary, trained, budget, rows)}


@torch.no_grad()
def measured(dictionary: Transcoders, trained: Trained, budget: Budget, rows: dict[str, Rows]) -> dict[str, Any]:
    """Error, active and silent features on the rows of test, and accuracies."""
    features = {group: dictionary.encode_layer(rows[group].x_ND, 0) for group in ("probe", "test")}
    x_ND, feature_NF = rows["test"].x_ND, features["test"]
    total, bias_D = (x_ND - x_ND.mean(0)).double().square().sum(), dictionary.decoder_bias(0)
    decoder_FD = dictionary.decoder_rows(0, torch.arange(budget.features), target_layer=0)

    def error(outputs_ND: Tensor) -> float:
        return float((outputs_ND - x_ND).double().square().sum() / total)

    in_training = torch.cat([trained.reconstruct(part[:, None])[0][:, 0] for part in x_ND.split(budget.batch)])
    first = budget.features // 16
    return {
        "nmse": error(feature_NF @ decoder_FD + bias_D),
        "nmse_in_training": error(in_training),
        "nmse_first": error(feature_NF[:, :first] @ decoder_FD[:first] + bias_D),
        "l0": float((feature_NF > 0).sum(1).double().mean()),
        "never_active": float((torch.cat(list(features.values())) > 0).sum(0).eq(0).double().mean()),
        "probing": probed(rows["probe"], rows["test"], features["probe"], features["test"]),
    }


def over_seeds(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and half of the interval of every number; of probing, of the mean over tasks."""
    found = {}
    values = {name: [run[name] for run in runs] for name in runs[0] if name != "probing"}
    for k in map(str, (*FEW, "all")):
        values[f"probing_{k}"] = [statistics.mean(task[k] for task in run["probing"].values()) for run in runs]
    for name, numbers in values.items():
        several = len(numbers) > 1
        half = student(len(numbers) - 1) * statistics.stdev(numbers) / math.sqrt(len(numbers)) if several else 0.0
        found[name] = {"mean": statistics.mean(numbers), "half_interval": half}
    return found


def show(kind: str, found: dict[str, dict[str, float]]) -> None:
    """One line."""
    numbers = "  ".join(f"{name} {one['mean']:.4f} ± {one['half_interval']:.4f}" for name, one in found.items())
    print(f"  {kind:24} {numbers}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for activations")
    parser.add_argument(
        "--model", type=Path, required=True, help="SmolLM2 as a Hugging Face folder (inputs.prepare_models)"
    )
    parser.add_argument("--corpus", type=Path, required=True, help="folder that recipes/smollm2/corpus.sh wrote")
    parser.add_argument("--tokens", type=int, default=32768, help="rows of train; of each other group a quarter")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=Budget.steps)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS / "training_kinds.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    budget, rows = Budget(steps=args.steps), rows_of(args.work, args.model, args.corpus, args.tokens)
    kinds: dict[str, Any] = {}
    for kind in args.kinds:
        runs = [made(kind, budget, seed, rows) for seed in args.seeds]
        kinds[kind] = {"mean": over_seeds(runs), "runs": runs}
        show(kind, kinds[kind]["mean"])
    baselines = {
        UNTRAINED: made("topk", budget, 0, rows, steps=0)["probing"],
        DIMENSIONS: probed(rows["probe"], rows["test"], rows["probe"].x_ND, rows["test"].x_ND),
    }
    about = {"given": KINDS, "tokens": args.tokens, "layer": LAYER, "hook": HOOK, "tasks": list(baselines[DIMENSIONS])}
    results = describe(versions={"ours": versions()}) | {"budget": asdict(budget), "about": about}
    write_results(args.results, results | {"seeds": args.seeds, "kinds": kinds, "baselines": baselines})


if __name__ == "__main__":
    main()
