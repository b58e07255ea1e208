"""What was trained is what files compute, of every kind and rule: error, active features, divergence of the replaced model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from circuit_tracer.errors import NumericalError
from circuit_tracer.models.model_pass import ModelPass
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.data.batch import ActivationBatch
from circuit_tracer.training.data.points import points_of
from circuit_tracer.training.evaluation.replacement import compare
from circuit_tracer.training.evaluation.sequences import Sequences
from circuit_tracer.training.evaluation.stand_ins import Reconstructions
from circuit_tracer.training.export.calibration import level_scores
from circuit_tracer.training.export.export import export
from circuit_tracer.training.export.kept import Kept, Side, Subject, exported_side, trained_side
from circuit_tracer.training.export.published import _read_back
from circuit_tracer.training.export.trained import Trained
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.run import checkpoint, publishing, trainer
from circuit_tracer.training.run.loop import normalised
from circuit_tracer.training.run.state import TrainingState
from circuit_tracer.training.sparsity import rule_of
from circuit_tracer.training.step.normalisation import Normalisation
from circuit_tracer.transcoders import load_transcoder_from_hub
from tests.support.evaluation_cases import parts_of, sequences
from tests.support.export_cases import dense, exported
from tests.support.loop_cases import ACTIVATIONS, LAYERS, SERVED, Run
from tests.support.train_cases import quick, settings

FEW: dict[str, Any] = {"evaluation__replacement_tokens": 0}


@pytest.fixture(scope="module")
def parts() -> ModelParts:
    return parts_of("llama", torch.float32)


def batches_of(run: Run, first: int, count: int) -> list[Any]:
    """Batches that were not trained on."""
    return [run.stream().batch(number) for number in range(first, first + count)]


@pytest.mark.few
@pytest.mark.parametrize("run", [Run(*each, batch=100) for each in reversed(SERVED)], ids=str)
def test_files_keep_error_and_active_features(run: Run, parts: ModelParts, tmp_path: Path) -> None:
    loop = run.loop(tmp_path / "checkpoints", **FEW)
    loop.run()
    config, state = loop.config, loop.state
    rule, ranks = rule_of(config.sparsity), FeatureRanks()
    levels = None
    if rule.needs_level:
        x_SBDs = [normalised(batch, state.normalisation).x_SBD for batch in batches_of(run, 100, 20)]
        levels = level_scores(state.dictionary, x_SBDs, config.sparsity, None, ranks)
    layers = list(range(LAYERS))
    export(checkpoint.read(loop.save(levels=levels)), config, levels, tmp_path / "files", "org/model", layers)
    trained = Trained(state.dictionary, state.normalisation, config.sparsity, state.running_cut, ranks)
    compared = [(batch.x_BSD, batch.y_BSD) for batch in batches_of(run, 200, 20)]
    before = trained_side(trained, compared, Subject(config, parts, None, layers, []))
    after = exported_side(_read_back(config, parts, tmp_path / "files", layers), compared, None)
    assert before.l0 > 0
    assert before.kl is None
    assert after.nmse == pytest.approx(before.nmse, rel=0.01)
    # thresholds leave the number of features of other tokens to chance: here of 2,000 tokens with 3 features each
    assert after.l0 == pytest.approx(before.l0, rel=0.1 if rule.needs_level else 0.002)


@pytest.mark.few
@pytest.mark.parametrize(
    ("kind", "activation"), [("sae" if name == "switch" else "skip", name) for name in ACTIVATIONS]
)
def test_the_trained_side_is_the_formulas(kind: str, activation: str, parts: ModelParts, tmp_path: Path) -> None:
    """Against a dense computation in float64."""
    made = exported(Run(kind, activation), tmp_path, **FEW)
    x_BSD, y_BSD = made.inputs()
    activations, outputs_BSD = dense(made)
    state = made.state
    trained = Trained(state.dictionary, state.normalisation, made.config.sparsity, None, FeatureRanks())
    found = trained_side(trained, [(x_BSD, y_BSD)], Subject(made.config, parts, None, range(LAYERS), []))
    error_S = (outputs_BSD - y_BSD).square().sum((0, 2)) / (y_BSD - y_BSD.mean(0)).double().square().sum((0, 2))
    assert found.nmse == pytest.approx(float(error_S.mean()), rel=1e-5)
    assert found.l0 == sum(int((one > 0).sum()) for one in activations) / len(x_BSD)


@pytest.fixture(scope="module")
def held_out() -> list[torch.Tensor]:
    return sequences(40, 41)


@pytest.mark.few
@pytest.mark.parametrize(("kind", "activation"), [pair for pair in SERVED if pair[0] != "sae"])
def test_files_keep_the_divergence_of_the_replaced_model(
    kind: str, activation: str, parts: ModelParts, held_out: list[torch.Tensor], tmp_path: Path
) -> None:
    """The dictionary in training in place of the MLPs, and its files through the reader, over the same predictions."""
    config = Run(kind, activation).config(tmp_path, run__export_dtype="float32", evaluation__tokens=2000)
    points, ranks = points_of(config.dictionary, parts), FeatureRanks()
    x_BSD, y_BSD = activations_of(parts, config, held_out)
    space = Normalisation.from_moments(*(each for side in (x_BSD, y_BSD) for each in moments(side)))
    state = TrainingState.initial(config, space, None, torch.device("cpu"), ranks)
    if state.dictionary.W_skip is not None:
        state.dictionary.W_skip.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    batches = list(zip(x_BSD.split(260), y_BSD.split(260), strict=True))
    levels = None
    if rule_of(config.sparsity).needs_level:
        x_SBDs = [normalised(ActivationBatch(*batch), space).x_SBD for batch in batches[:3]]
        levels = level_scores(state.dictionary, x_SBDs, config.sparsity, None, ranks)
    saved = checkpoint.read(checkpoint.save(state, tmp_path / "checkpoints", {}, ranks))
    export(saved, config, levels, tmp_path / "files", "org/model", points.layers)
    trained = Trained(state.dictionary, space, config.sparsity, None, ranks)
    before = trained_side(trained, batches[3:], Subject(config, parts, None, points.layers, held_out))
    loaded = load_transcoder_from_hub(tmp_path / "files")[0]
    whole = Sequences.of(held_out, parts, None, 2000)
    found = compare(parts, {"files": (points, Reconstructions(loaded))}, whole, 2048).results("files")["files"].kl
    assert before.kl is not None
    assert before.kl > 1e-3
    assert found == pytest.approx(before.kl, rel=0.02 if activation == "batch_topk" else 1e-4)


def activations_of(
    parts: ModelParts, config: TrainingConfig, held_out: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and outputs (B, S, D) from position 1 on."""
    found = []
    for ids in held_out:
        sides = ModelPass(parts, points_of(config.dictionary, parts), len(ids)).run(ids[None])
        found.append([torch.stack(side, dim=1)[1:] for side in sides])
    return tuple(torch.cat(side) for side in zip(*found, strict=True))  # type: ignore[return-value]


def moments(side_BSD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and spread of every layer."""
    mean_SD = side_BSD.mean(0)
    return mean_SD, (side_BSD - mean_SD).square().sum(2).mean(0)


def test_what_was_kept_is_said_and_too_great_a_loss_is_an_error() -> None:
    config = Run("clt", "batch_topk").config("runs/one", run__export_dtype="bfloat16")
    kept = Kept(100, Side(0.5, 80.0, 1.02), Side(0.52, 79.5, 1.04))
    assert str(kept) == "NMSE 0.5000 -> 0.5200, L0 80.0 -> 79.5, KL 1.020 -> 1.040"
    assert str(replace(kept, exported=Side(0.52, 79.5))) == "NMSE 0.5000 -> 0.5200, L0 80.0 -> 79.5"
    kept.require(config)
    ruined = replace(kept, exported=Side(0.6, 90.0))
    with pytest.raises(
        NumericalError, match=r"20\.0% more error where run.export_loss allows 5\.0%.*export_dtype float32"
    ):
        ruined.require(config)
    with pytest.raises(NumericalError, match="activation topk, which is exported as it is"):
        ruined.require(Run("clt", "batch_topk").config("runs/one"))  # in the number format of its weights


@pytest.mark.slow("takes 1.5 s")
def test_a_run_ends_in_an_error_when_its_files_are_not_what_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the dictionary in training were twice as good; everything is written, and --resume takes it."""
    measured = trained_side

    def better(*given: Any) -> Side:
        side = measured(*given)
        return replace(side, nmse=side.nmse / 2)

    monkeypatch.setattr(publishing, "trained_side", better)
    with quick(), pytest.raises(NumericalError, match="not the dictionary that was trained"):
        trainer.train(settings(tmp_path, "run"))
    written = json.loads((tmp_path / "run" / "transcoder" / "evaluation.json").read_text())["conditions"]["export"]
    assert written["loss"] == pytest.approx(written["exported"]["nmse"] / written["trained"]["nmse"] - 1, rel=1e-4)
    assert written["loss"] > 0.5
    assert written["summary"] in (tmp_path / "run" / "transcoder" / "README.md").read_text()
    with quick():
        again = trainer.train(settings(tmp_path, "run", run__export_loss=3.0), resume=True)
    assert again.evaluation["conditions"]["export"]["summary"] == written["summary"]
