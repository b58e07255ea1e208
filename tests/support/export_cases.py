"""Trained dictionaries written to files, and what they must compute, densely and in float64.

Letters: S source layers, T layers a source writes to, B tokens, F features, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.export.calibration import level_scores
from circuit_tracer.training.export.export import export
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.run import checkpoint
from circuit_tracer.training.run.checkpoint import Checkpoint
from circuit_tracer.training.run.loop import normalised
from circuit_tracer.training.run.state import TrainingState
from circuit_tracer.training.sparsity import rule_of
from circuit_tracer.training.sparsity.base import Now
from circuit_tracer.training.sparsity.selection import Selection
from circuit_tracer.training.step.dictionary import Dictionary
from circuit_tracer.transcoders import load_transcoder_from_hub
from circuit_tracer.transcoders.base import Transcoders
from tests.support.loop_cases import LAYERS, WIDTH, Run


@dataclass(frozen=True)
class Exported:
    """A trained state, the checkpoint it was exported from, and where to."""

    run: Run
    config: TrainingConfig
    state: TrainingState
    checkpoint: Checkpoint
    levels: list[float] | None
    folder: Path

    def inputs(self) -> tuple[Tensor, Tensor]:
        """Tokens that were not trained on: x and y (B, S, D), the model's own space; calibrated on them."""
        batch = self.run.stream().batch(100)
        return batch.x_BSD, batch.y_BSD

    def selection(self) -> Selection:
        """What the training rule keeps of them."""
        x_SBD = normalised(self.run.stream().batch(100), self.state.normalisation).x_SBD
        sparsity = self.config.sparsity
        return rule_of(sparsity).select(self.state.dictionary, x_SBD, Now(sparsity.active), FeatureRanks())

    def loaded(self) -> Transcoders:
        """The files, read back by the package's loader."""
        return load_transcoder_from_hub(self.folder, dtype=torch.float32)[0]


def exported(run: Run, folder: Path, layers: list[int] | None = None, **changes: Any) -> Exported:
    """Train, calibrate on one batch, save, export."""
    loop = run.loop(folder / "checkpoints", **changes)
    loop.run()
    levels = None
    if rule_of(loop.config.sparsity).needs_level:
        x_SBD = normalised(run.stream().batch(100), loop.state.normalisation).x_SBD
        levels = level_scores(
            loop.state.dictionary, [x_SBD], loop.config.sparsity, loop.state.running_cut, FeatureRanks()
        )
    made = checkpoint.read(loop.save(levels=levels))
    out = export(made, loop.config, levels, folder / "transcoder", "org/model", layers or list(range(LAYERS)))
    return Exported(run, loop.config, loop.state, made, levels, out)


def dense(made: Exported) -> tuple[list[Tensor], Tensor]:
    """Activations (B, F) of every source and outputs (B, S, D) in the model's own space, in float64.

    Written from the method's formulas (training/README.md §§2-4): nothing is shared with the step or the export. Active is
    what the training rule keeps.
    """
    x_BSD, _ = made.inputs()
    space, model = made.state.normalisation, made.state.dictionary
    selection = made.selection()
    normal_BSD = (x_BSD.double() - space.mean_x_SD.double()) * space.scale_x_S.double()[:, None]
    out_BSD = model.b_dec.double().expand(len(x_BSD), LAYERS, -1).clone()
    activations = []
    for source in range(LAYERS):
        pre_BF = normal_BSD[:, source] @ model.W_enc[source].double().T + model.b_enc[source].double()
        mask_BF = torch.zeros_like(pre_BF, dtype=torch.bool)
        entries = selection.entries[source].keep(selection.active[source])
        mask_BF[entries.row, entries.feature] = True
        activations.append(_values(model, source, pre_BF, normal_BSD[:, source]) * mask_BF)
        written_FTD = model.W_dec[source].double().view(len(model.W_dec[source]), -1, x_BSD.shape[2])
        for slot in range(written_FTD.shape[1]):
            out_BSD[:, source + slot] += activations[source] @ written_FTD[:, slot]
        if model.W_skip is not None:
            out_BSD[:, source] += normal_BSD[:, source] @ model.W_skip[source].double().T
    return activations, out_BSD / space.scale_y_S.double()[:, None] + space.mean_y_SD.double()


def _values(model: Dictionary, source: int, pre_BF: Tensor, normal_BD: Tensor) -> Tensor:
    """What is active has these activations (B, F): magnitudes of a gated dictionary, pre-activations times the probability of
    a switch's expert, and otherwise pre-activations.
    """
    own = {name: tensor.double() for name, tensor in model.own(source).items()}
    if "b_mag" in own:
        return own["log_scale"].exp() * (pre_BF - own["b_enc"]) + own["b_mag"]
    if model.W_router is None or model.b_router is None:
        return pre_BF
    logit_BN = normal_BD @ model.W_router[source].double().T + model.b_router[source].double()
    return pre_BF * torch.softmax(logit_BN, 1).amax(1, keepdim=True)


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference, of the spread of what is expected."""
    expected = expected.double()
    return float((found.double() - expected).abs().max() / expected.std())


def random_inputs(width: int = WIDTH) -> Tensor:
    """(S, P, D) for peers."""
    return 3 * torch.randn(LAYERS, 7, width, generator=torch.Generator().manual_seed(11))
