"""Training of the demo's cross-layer transcoder: the package's trainer on batches of contexts, a few minutes on one core.

Letters: L layers, N contexts, B contexts of a batch, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.demo.contexts import Contexts
from circuit_tracer.demo.planting import plant_
from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.data.batch import ActivationBatch
from circuit_tracer.training.export.calibration import level_scores
from circuit_tracer.training.export.export import export
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.run import checkpoint
from circuit_tracer.training.run.events import NullListener, StepReport
from circuit_tracer.training.run.loop import Loop, normalised
from circuit_tracer.training.run.state import TrainingState
from circuit_tracer.training.step.dictionary import Kind
from circuit_tracer.training.step.normalisation import Normalisation
from circuit_tracer.transcoders.config import CONFIG_NAME, read_config, write_config

CALIBRATION_BATCHES = 8

Report = Callable[[str], None]


@dataclass(frozen=True)
class TranscoderRecipe:
    """Sizes and training constants of the transcoder.

    What they are for: features of one kind need as many as there are things to tell apart, each planted on a context of its
    own (planting.py), and a small ``active`` from the first step on; few dead ones that, and an AuxK of very few features a
    layer (each then takes on a whole residual, and so gets past the cut of the others); features of the words that every
    question holds need ``balance``; answers about cities never seen need ``jitter``.
    """

    n_features: int = 448  # a layer
    active: float = 5.0  # features a context and layer, as contexts are drawn (see ``balance``)
    steps: int = 2500
    batch: int = 512  # contexts
    learning_rate: float = 3e-3
    warmup_steps: int = 50
    decay: float = 0.3  # share of the steps, at the end, over which the learning rate falls to zero
    aux_active: int = 2  # dead features a context and layer that learn from what is missing
    aux_weight: float = 0.25
    pre_activation: float = 3e-3  # weight of the loss that lifts pre-activations of dead features
    dead_after: int = 20_000  # contexts
    balance: float = 0.5  # a context seen n times is drawn with weight n ** balance
    jitter: float = 0.5  # how far embeddings are moved, in lengths of an embedding row
    copies: int = 7  # of every context with its embeddings moved, beside itself
    planted: bool = True  # whether features start as contexts; else as the trainer starts them


class Draws:
    """An endless stream of batches (`loop.Stream`): contexts drawn at random by their weight, with replacement."""

    def __init__(self, contexts: Contexts, recipe: TranscoderRecipe, seed: int) -> None:
        self.x_NLD, self.y_NLD = contexts.x_LND.transpose(0, 1), contexts.y_LND.transpose(0, 1)
        self.weight_N, self.batch = _weights(contexts, recipe), recipe.batch
        self.chance = torch.Generator().manual_seed(seed)

    def next(self) -> ActivationBatch:
        """The next batch."""
        chosen_B = torch.multinomial(self.weight_N, self.batch, replacement=True, generator=self.chance)
        return ActivationBatch(self.x_NLD[chosen_B], self.y_NLD[chosen_B])

    def state(self) -> dict[str, Any]:
        """The state of the random numbers."""
        return {"chance": self.chance.get_state().tolist()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from there."""
        self.chance.set_state(torch.tensor(state["chance"], dtype=torch.uint8))


def train_transcoder(
    contexts: Contexts,
    recipe: TranscoderRecipe,
    seed: int,
    folder: Path,
    checkpoints: Path,
    model_name: str,
    report: Report = lambda line: None,
    kind: Kind = "clt",
) -> None:
    """Train on ``contexts`` and write the dictionary into ``folder``, checkpoints into ``checkpoints``.

    Deterministic for a seed on one machine with one thread.
    """
    config = configuration(recipe, seed, checkpoints, kind)
    state, draws = initial_state(contexts, config, recipe), Draws(contexts, recipe, seed)
    loop = Loop(config, state, draws, FeatureRanks(), _Lines(report), checkpoints, {})
    loop.run()
    publish(config, state, draws, folder, checkpoints, model_name)


def configuration(recipe: TranscoderRecipe, seed: int, out: Path, kind: Kind = "clt") -> TrainingConfig:
    """The recipe as the trainer's configuration. The sections on model and data are not read: contexts are in memory."""
    return TrainingConfig.model_validate(
        {
            "model": {"name": "circuit-tracing-demo"},
            "data": {"kind": "tokens", "path": "contexts", "epochs": None},
            "dictionary": {"kind": kind, "features": recipe.n_features},
            "sparsity": {
                "active": recipe.active,
                "active_at_start": recipe.active,
                "aux_active": recipe.aux_active,
                "aux_weight": recipe.aux_weight,
                "pre_activation_weight": recipe.pre_activation,
                "dead_after_tokens": min(recipe.dead_after, recipe.steps * recipe.batch - 1),
            },
            "optimizer": {
                "learning_rate": recipe.learning_rate,
                "warmup_steps": recipe.warmup_steps,
                "decay": recipe.decay,
                "skip_above": 0.0,  # contexts are few and clean
            },
            "run": {
                "out": out,
                "tokens": recipe.steps * recipe.batch,
                "batch": recipe.batch,
                "seed": seed,
                "log_every": 500,
                "export_dtype": "bfloat16",
                "checkpoint_every_steps": recipe.steps,
            },
        }
    )


def initial_state(contexts: Contexts, config: TrainingConfig, recipe: TranscoderRecipe) -> TrainingState:
    """Weights at the first step, and the space of training as contexts are drawn."""
    weight_N1 = _weights(contexts, recipe)[:, None]
    moments = []
    for side_LND in (contexts.x_LND, contexts.y_LND):
        mean_LD = (weight_N1 * side_LND).sum(1)
        moments += [mean_LD, (weight_N1 * (side_LND - mean_LD[:, None]).square()).sum((1, 2))]
    space = Normalisation.from_moments(*moments)
    state = TrainingState.initial(config, space, None, torch.device("cpu"), FeatureRanks())
    if not recipe.planted:
        return state
    unmoved = slice(contexts.x_LND.shape[1] // (recipe.copies + 1))
    x_SND = torch.stack([space.x(layer, x_ND[unmoved]) for layer, x_ND in enumerate(contexts.x_LND)])
    y_SND = space.y(contexts.y_LND[:, unmoved].transpose(0, 1)).transpose(0, 1)
    plant_(state.dictionary, x_SND, y_SND, weight_N1[unmoved, 0], config.run.seed)
    return state


def publish(
    config: TrainingConfig, state: TrainingState, draws: Draws, folder: Path, checkpoints: Path, model_name: str
) -> None:
    """Write the dictionary of ``state`` into ``folder``, its thresholds calibrated on further draws."""
    batches = [normalised(draws.next(), state.normalisation).x_SBD for _ in range(CALIBRATION_BATCHES)]
    levels = level_scores(state.dictionary, batches, config.sparsity, state.running_cut, FeatureRanks())
    saved = checkpoint.save(state, checkpoints, {"levels": levels}, FeatureRanks())
    export(checkpoint.read(saved), config, levels, folder, model_name, range(state.dictionary.n_layers))
    write_config(read_config(folder / CONFIG_NAME) | {"scan": model_name}, folder)


def _weights(contexts: Contexts, recipe: TranscoderRecipe) -> Tensor:
    weight_N = contexts.count_N**recipe.balance
    return weight_N / weight_N.sum()


class _Lines(NullListener):
    """Reports as lines of text."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def progress(self, report: StepReport) -> None:
        """One line."""

        def each(values: Sequence[float]) -> str:
            return " ".join(f"{value:.3f}" for value in values)

        self.report(
            f"transcoder step {report.step}/{report.steps} by layer: NMSE {each(report.nmse_S)}, "
            f"L0 {each(report.l0_S)}, dead {each(report.dead_S)}"
        )
