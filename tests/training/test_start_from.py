"""A run starts from a checkpoint or a published dictionary: what is taken over is what was there, in a space of its own."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from circuit_tracer.errors import CompatibilityError, InputError, NumericalError
from circuit_tracer.training.data.batch import ActivationBatch
from circuit_tracer.training.export.export import folded
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.run import checkpoint
from circuit_tracer.training.run.changes import settings_of
from circuit_tracer.training.run.loop import Loop
from circuit_tracer.training.run.origin import Origin, open_origin, take_over_
from circuit_tracer.training.run.state import TrainingState
from circuit_tracer.training.step.normalisation import Normalisation
from tests.support.export_cases import Exported, dense, exported, relative
from tests.support.loop_cases import KINDS, LAYERS, MemoryStream, Recorder, Run, differences
from tests.support.train_cases import settings, whole

CPU = torch.device("cpu")


def opened(place: Path) -> Origin:
    return open_origin(str(place), lambda transcoders: transcoders)


def elsewhere(run: Run) -> Normalisation:
    """Means and scales that are not those of the run: of another model."""
    space = run.space()
    draw = torch.Generator().manual_seed(3)
    mean_x_SD, mean_y_SD = (
        mean + torch.randn(mean.shape, generator=draw) for mean in (space.mean_x_SD, space.mean_y_SD)
    )
    if run.kind == "sae":
        mean_y_SD = mean_x_SD
    return Normalisation(
        mean_x_SD, 1.7 * space.scale_x_S, mean_y_SD, (1.7 if run.kind == "sae" else 0.6) * space.scale_y_S
    )


def taken(run: Run, origin: Origin, ranks: FeatureRanks | None = None) -> TrainingState:
    """A new state of ``run`` in another space, started from ``origin``."""
    state = TrainingState.initial(run.config(), elsewhere(run), None, CPU, ranks or FeatureRanks())
    take_over_(state, origin, range(LAYERS))
    return state


def with_config(made: Exported) -> Path:
    """The checkpoint's folder, which knows its configuration as those of the trainer do."""
    checkpoint.add_facts(made.checkpoint.folder, {"config": settings_of(made.config)}, FeatureRanks())
    return made.checkpoint.folder


STARTS = [
    (Run(kind, activation), source)
    for kind, activation in [*((kind, "jumprelu") for kind in KINDS), ("clt", "batch_topk"), ("clt", "gated")]
    for source in ("files", "checkpoint")
]


@pytest.mark.few
@pytest.mark.parametrize(("run", "source"), STARTS, ids=[f"{run}-{source}" for run, source in STARTS])
def test_what_was_taken_over_is_exported_again(run: Run, source: str, tmp_path: Path) -> None:
    made = exported(run, tmp_path, run__export_dtype="float32")
    origin = opened(made.folder if source == "files" else with_config(made))
    origin.require_fits(made.config, range(LAYERS), run.width)
    state = taken(run, origin)
    norms = [rows.norm(dim=1) for rows in state.dictionary.W_dec]
    assert all(torch.allclose(*pair) for pair in zip(state.dictionary.norms, norms, strict=True))
    again = checkpoint.read(checkpoint.save(state, tmp_path / "again", {}, FeatureRanks()))
    for layer in range(LAYERS):
        expected = vars(folded(made.checkpoint, made.config, made.levels, layer))
        for name, tensor in vars(folded(again, made.config, made.levels, layer)).items():
            if tensor is not None and (name != "threshold_F" or run.activation in ("jumprelu", "gated")):
                assert relative(tensor, expected[name]) < 1e-5, name


def test_per_layer_transcoders_become_a_cross_layer_one_that_does_the_same(tmp_path: Path) -> None:
    made = exported(Run("plt", "jumprelu"), tmp_path, run__export_dtype="float32")
    wanted, outputs = dense(made)
    run = Run("clt", "jumprelu")
    state = taken(run, opened(made.folder))
    found, written = dense(replace(made, run=run, config=run.config(), state=state))
    assert all(relative(*pair) < 1e-5 for pair in zip(found, wanted, strict=True))
    assert relative(written, outputs) < 1e-5
    assert float(state.dictionary.W_dec[0][:, run.width :].abs().max()) == 0


def test_thresholds_of_a_batch_rule_become_those_of_a_jumprelu(tmp_path: Path) -> None:
    made = exported(Run("clt", "batch_topk"), tmp_path, run__export_dtype="float32")
    for place in (made.folder, with_config(made)):
        state = taken(Run("clt", "jumprelu"), opened(place))
        assert state.dictionary.log_threshold is not None
        for layer, log_threshold_F in enumerate(state.dictionary.log_threshold):
            expected = folded(made.checkpoint, made.config, made.levels, layer).threshold_F
            assert expected is not None
            torch.testing.assert_close(log_threshold_F.exp(), expected, rtol=1e-4, atol=0)


def test_a_jumprelu_is_taken_over_by_gates(tmp_path: Path) -> None:
    made = exported(Run("clt", "jumprelu"), tmp_path, run__export_dtype="float32")
    wanted, outputs = dense(made)
    run = Run("clt", "gated")
    found, written = dense(replace(made, run=run, config=run.config(), state=taken(run, opened(made.folder))))
    assert all(relative(*pair) < 1e-5 for pair in zip(found, wanted, strict=True))
    assert relative(written, outputs) < 1e-5


def test_nothing_starts_from_a_switch(tmp_path: Path) -> None:
    made = exported(Run("sae", "switch"), tmp_path)
    for place in (made.folder, with_config(made)):
        with pytest.raises(CompatibilityError, match="it is a switch, whose router would be lost"):
            opened(place).require_fits(Run("sae").config(), range(LAYERS), made.run.width)


def test_a_rank_takes_its_own_rows(tmp_path: Path) -> None:
    made = exported(Run("skip", "jumprelu"), tmp_path)
    alone = taken(made.run, opened(made.folder))
    for rank, rows in enumerate((slice(0, 8), slice(8, 16))):
        mine = taken(made.run, opened(made.folder), FeatureRanks(rank, 2))
        for layer in range(LAYERS):
            cut = {name: tensor[rows] for name, tensor in alone.layer_tensors(layer).items()}
            assert differences(mine.layer_tensors(layer), cut) == []
        assert differences(mine.shared_tensors(), alone.shared_tensors()) == []


@pytest.mark.few
@pytest.mark.parametrize(
    ("run", "changes", "message"),
    [
        (Run(features=20), {}, "its layers have 16 features, dictionary.features is 20"),
        (Run("plt"), {}, "it is a clt, and dictionary.kind plt starts from plt"),
        (Run("sae"), {}, "it is a clt, and dictionary.kind sae starts from sae"),
        (
            Run(),
            {"dictionary__input_hook": "mlp.hook_in"},
            "it reads and writes at hook_resid_mid and hook_mlp_out, the run at mlp.hook_in and hook_mlp_out",
        ),
        (Run(activation="relu"), {}, "its activation is jumprelu, whose thresholds a relu would lose"),
    ],
    ids=["features", "per layer", "sae", "hooks", "relu"],
)
def test_what_does_not_fit_is_refused_with_both_sides(
    run: Run, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    origin = opened(exported(Run("clt", "jumprelu"), tmp_path).folder)
    with pytest.raises(CompatibilityError) as caught:
        origin.require_fits(run.config(**changes), range(LAYERS), run.width)
    assert f"run.start_from {tmp_path / 'transcoder'} does not fit" in str(caught.value)
    assert message in str(caught.value)
    if run == Run():
        with pytest.raises(CompatibilityError, match=r"width is 6, the model's 8; it has no layer 3, only 0, 1, 2"):
            origin.require_fits(run.config(), range(4), 8)


def test_a_place_without_a_dictionary_and_a_damaged_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing"):
        opened(tmp_path / "nothing")
    made = exported(Run("clt", "relu"), tmp_path)
    origin = opened(made.folder)
    broken = replace(origin, read=lambda layer, owned: _with_nan(origin, layer, owned))
    with pytest.raises(NumericalError, match=r"W_enc\.0, taken from run\.start_from .* is not finite"):
        taken(made.run, broken)


def _with_nan(origin: Origin, layer: int, owned: slice) -> Any:
    one = origin.read(layer, owned)
    return replace(one, encoder_FD=one.encoder_FD * torch.nan)


class Tuned(MemoryStream):
    """Batches of the model after fine-tuning: its MLPs write something else as well, and their inputs have moved."""

    def batch(self, number: int) -> ActivationBatch:
        plain = super().batch(number)
        shift_SD = 0.1 * torch.randn(plain.x_BSD.shape[1:], generator=torch.Generator().manual_seed(8))
        return ActivationBatch(plain.x_BSD + shift_SD, plain.y_BSD + 0.01 * plain.x_BSD.cos())


STILL = {"sparsity__active": 4.0, "sparsity__active_at_start": 4.0, "sparsity__pre_activation_weight": 0.0}


def trained(stream: MemoryStream, steps: int, folder: Path, origin: Origin | None = None) -> float:
    """NMSE on five further batches after so many steps; the last checkpoint is in ``folder``."""
    run = replace(stream.run, steps=steps)
    changes = STILL | {"optimizer__warmup_steps": 5, "sparsity__dead_after_tokens": 20 * run.batch}
    config = run.config(folder, optimizer__learning_rate=0.01, run__log_every=steps, **changes)
    state = TrainingState.initial(config, run.space(), None, CPU, FeatureRanks())
    if origin is not None:
        take_over_(state, origin, range(LAYERS))
    loop = Loop(config, state, stream, FeatureRanks(), Recorder(), folder, {"config": settings_of(config)})
    loop.run()
    loop.save()
    still = replace(run, steps=steps + 5).config(folder, optimizer__learning_rate=1e-9, run__log_every=5, **STILL)
    after = Loop(still, state, stream, FeatureRanks(), recorder := Recorder(), folder, {})
    after.run()
    return float(Tensor(recorder.reports[-1].nmse_S).mean())


@pytest.mark.slow("takes 5 s")
def test_a_warm_start_needs_a_third_of_the_tokens(tmp_path: Path) -> None:
    """A planted change of the model: the NMSE of a cold run of 120 steps is reached in 40."""
    run = Run(features=64, batch=64, width=4)
    trained(MemoryStream(run), 120, tmp_path / "base")
    cold = trained(Tuned(run), 120, tmp_path / "cold")
    warm = trained(Tuned(run), 40, tmp_path / "warm", opened(checkpoint.path_of(tmp_path / "base", 120)))
    short = trained(Tuned(run), 40, tmp_path / "short")
    assert warm <= cold < short


@pytest.mark.slow("takes 1.8 s")
def test_the_trainer_starts_from_a_run_and_says_so(tmp_path: Path) -> None:
    few = {"run__tokens": 32, "optimizer__warmup_steps": 1, "evaluation__tokens": 16, "sparsity__dead_after_tokens": 16}
    whole(tmp_path, "base", few)
    whole(tmp_path, "tuned", few | {"run__start_from": str(tmp_path / "base")})
    made = checkpoint.latest(tmp_path / "tuned" / "checkpoints")
    assert made is not None
    begun = made.fact("started_from")
    assert begun["place"] == "the run base, step 2"
    card = (tmp_path / "tuned" / "transcoder" / "README.md").read_text()
    assert f"- Started from {begun['place']}, fingerprint {begun['fingerprint']}." in card
    assert settings(tmp_path, "tuned", **few | {"run__start_from": "x"}).active_at_start == 2.0
    told = whole(tmp_path, "tuned", few | {"run__start_from": str(tmp_path / "base"), "run__tokens": 48}, resume=True)
    assert [report.step for report in told] == [3]
    again = checkpoint.latest(tmp_path / "tuned" / "checkpoints")
    assert again is not None
    assert again.fact("started_from") == begun
    shutil.rmtree(tmp_path / "base" / "checkpoints")  # to have room: what it wrote is still there
    assert opened(tmp_path / "base").place == "the dictionary base"
