"""The sparse trainer beside plain dense training on the embedded model: same contexts, steps, batch, features and L0.

    python -m benchmarks.training.demo_trainers [FOLDER]

trains three transcoders by the shipped recipe, but for fewer steps: the package's trainer; a dense one without what it adds
(AuxK); and a dense one that plants dead features, as the embedded transcoder used to be trained. Prints the table and
writes it into metrics.json and the card of FOLDER (the shipped one). Some five minutes on one core.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from circuit_tracer.demo import demo_folder
from circuit_tracer.demo.card import model_card
from circuit_tracer.demo.contexts import Contexts
from circuit_tracer.demo.dictionary import load_dictionary
from circuit_tracer.demo.evaluate import Metrics, evaluate
from circuit_tracer.demo.recipe import MODEL_NAME, TRANSCODER_SEED, load_model, training_contexts, write_json
from circuit_tracer.demo.train_transcoder import (
    Draws,
    TranscoderRecipe,
    configuration,
    initial_state,
    publish,
    train_transcoder,
)
from circuit_tracer.files import atomic_write
from circuit_tracer.training.data.batch import ActivationBatch
from circuit_tracer.training.run.loop import normalised
from circuit_tracer.training.step import schedules
from tests.support.dense_trainer import Batch, DenseTrainer, DenseTranscoder

STEPS = 1000
PLANTINGS = 5  # before the learning rate falls
POOL = 8192  # contexts that dead features are planted on


def train_sparsely(contexts: Contexts, recipe: TranscoderRecipe, place: Path) -> None:
    """Train by the recipe; the dictionary goes to ``place``/transcoder."""
    train_transcoder(contexts, recipe, TRANSCODER_SEED, place / "transcoder", place / "checkpoints", MODEL_NAME)


def train_densely(contexts: Contexts, recipe: TranscoderRecipe, place: Path, plantings: int = 0) -> None:
    """The same with the same initial weights and batches, densely and without AuxK."""
    config = configuration(recipe, TRANSCODER_SEED, place)
    state, draws = initial_state(contexts, config, recipe), Draws(contexts, recipe, TRANSCODER_SEED)
    trainer = DenseTrainer(DenseTranscoder(state.dictionary))

    def dense(activations: ActivationBatch) -> Batch:
        batch = normalised(activations, state.normalisation)
        return torch.stack(list(batch.x_SBD)), batch.y_BSD.transpose(0, 1)

    def run(steps: int) -> None:
        trainer.run(
            steps,
            lambda: dense(draws.next()),
            lambda step: schedules.active(config, step),
            lambda step: schedules.learning_rate(config, step),
        )

    chance = torch.Generator().manual_seed(TRANSCODER_SEED)
    for _ in range(plantings):
        run(round((1 - recipe.decay) * recipe.steps) // (plantings + 1))
        pool = torch.multinomial(draws.weight_N, POOL, generator=chance)
        trainer.plant(dense(ActivationBatch(draws.x_NLD[pool], draws.y_NLD[pool])), recipe.active, chance)
    run(recipe.steps - len(trainer.losses))
    trainer.transcoder.copy_to(state.dictionary)
    publish(config, state, draws, place / "transcoder", place / "checkpoints", MODEL_NAME)


def summary(metrics: Metrics, n_features: int) -> dict[str, Any]:
    """The row of one trainer."""
    measured = metrics["reconstruction"]["training_statements"]
    never = metrics["features_never_active_by_layer"]
    swaps = metrics["swap_reserved_cities"]
    return {
        "nmse": round(fmean(measured["nmse_by_layer_each_context_once"]), 5),
        "l0": round(sum(measured["l0_by_layer"]), 2),
        "kl": round(fmean(metrics["kl_with_all_mlps_replaced"].values()), 4),
        "answers_kept": round(fmean(metrics["answer_kept_with_all_mlps_replaced"].values()), 4),
        "never_active": round(sum(never) / (len(never) * n_features), 4),
        "swap_reserved_cities": {strength: shares["all"] for strength, shares in swaps.items()},
    }


def main(folder: Path) -> None:
    """Train, measure, print, write."""
    torch.set_num_threads(1)
    recipe = replace(TranscoderRecipe(), steps=STEPS)
    model, tokenizer = load_model(folder / "model")
    contexts = training_contexts(model, tokenizer, recipe, TRANSCODER_SEED)
    rows = {}
    for name, train in (
        ("sparse, with AuxK", train_sparsely),
        ("dense", train_densely),
        ("dense, with planting", lambda *arguments: train_densely(*arguments, plantings=PLANTINGS)),
    ):
        with tempfile.TemporaryDirectory() as place:
            train(contexts, recipe, Path(place))
            metrics = evaluate(model, tokenizer, load_dictionary(Path(place) / "transcoder"))
        rows[name] = summary(metrics, recipe.n_features)
        print(f"{name:22}", json.dumps(rows[name]), flush=True)
    published = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    published["trainers"] = {"steps": STEPS, "n_features": recipe.n_features, "batch": recipe.batch, "rows": rows}
    write_json(folder / "metrics.json", published)
    with atomic_write(folder / "README.md") as path:
        path.write_text(model_card(published), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else demo_folder())
