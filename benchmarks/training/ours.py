"""One dictionary by this package's trainer from activations on disk (rows.py), as `circuit-tracer train` makes it."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.training.rows import Rows
from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.data.batch import ActivationBatch
from circuit_tracer.training.export.calibration import level_scores
from circuit_tracer.training.export.export import export
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.run import checkpoint
from circuit_tracer.training.run.events import NullListener, StepReport
from circuit_tracer.training.run.loop import Loop, normalised
from circuit_tracer.training.run.state import TrainingState
from circuit_tracer.training.step import schedules
from circuit_tracer.training.step.normalisation import Normalisation

DEAD_AFTER_STEPS = 200  # as in the other's recipe
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Recipe:
    """What is the same for both engines, and the learning rate (None: the rule of each engine's recipe)."""

    features: int
    active: int  # a layer and token
    batch: int
    rate: float | None


class Stream:
    """The batches on disk as the loop wants them."""

    def __init__(self, rows: Rows, batch: int) -> None:
        self.batches = rows.batches(batch)

    def next(self) -> ActivationBatch | None:
        """The next batch."""
        found = next(self.batches, None)
        return None if found is None else ActivationBatch(*found)

    def state(self) -> dict[str, Any]:
        """Nothing is resumed here."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing is resumed here."""


def configuration(rows: Rows, recipe: Recipe, out: Path) -> TrainingConfig:
    """The default recipe, its notion of dead shortened to the length of the run."""
    tokens = rows.about["tokens"]
    silence = min(DEAD_AFTER_STEPS * recipe.batch, tokens - 1)
    return TrainingConfig.model_validate(
        {
            "model": {"name": rows.about["model"]},
            "data": {"path": "activations"},
            "dictionary": {"features": recipe.features},
            "sparsity": {"active": float(recipe.active), "dead_after_tokens": silence},
            "optimizer": {"learning_rate": recipe.rate},
            "run": {"out": out, "tokens": tokens, "batch": recipe.batch, "export_dtype": "float32", "log_every": 50},
        }
    )


def train(rows: Rows, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Train, calibrate on the rows of calibration, write the dictionary to ``folder``. What was done, as plain values."""
    with tempfile.TemporaryDirectory() as scratch:
        checkpoints = Path(scratch)
        config = configuration(rows, recipe, checkpoints)
        state = TrainingState.initial(config, space_of(rows), None, CPU, FeatureRanks())
        start = time.perf_counter()
        Loop(config, state, Stream(rows, recipe.batch), FeatureRanks(), Progress(), checkpoints, {}).run()
        seconds = time.perf_counter() - start
        held_out = ActivationBatch(*rows.group("calibration"))
        x_SBD = normalised(held_out, state.normalisation).x_SBD
        batches = list(zip(*(x_BD.split(recipe.batch) for x_BD in x_SBD), strict=True))
        levels = level_scores(state.dictionary, batches, config.sparsity, state.running_cut, FeatureRanks())
        saved = checkpoint.read(checkpoint.save(state, checkpoints, {"levels": levels}, FeatureRanks()))
        export(saved, config, levels, folder, rows.about["model"], range(state.dictionary.n_layers))
    rate = schedules.settled(config, state.dictionary.n_layers, state.dictionary.d_model).optimizer.learning_rate
    return {"rate": rate, "seconds": seconds, "steps": config.steps}


class Progress(NullListener):
    """Lines on the screen."""

    def progress(self, report: StepReport) -> None:
        """One line."""
        nmse, l0 = (sum(values) / len(values) for values in (report.nmse_S, report.l0_S))
        print(f"    step {report.step}/{report.steps}: NMSE {nmse:.4f}, L0 a layer {l0:.1f}", flush=True)


def space_of(rows: Rows, layers: int | None = None) -> Normalisation:
    """The space of training of rows, or of their first layers."""
    moments = {name: tensor[:layers] for name, tensor in rows.moments.items()}
    variance = {side: moments[f"std_{side}"].double().square().sum(1) for side in "xy"}
    return Normalisation.from_moments(moments["mean_x"], variance["x"], moments["mean_y"], variance["y"])
