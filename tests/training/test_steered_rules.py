"""Rules that decide feature by feature begin at the L0 asked for and stay at it (training/README.md §8)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from circuit_tracer.training.config.schema import SparsitySection
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.run.loop import RARE
from circuit_tracer.training.sparsity import RULES, rule_of
from circuit_tracer.training.sparsity.base import Now
from circuit_tracer.training.sparsity.penalty import PenaltyRule, start_thresholds
from circuit_tracer.training.step.dictionary import UNSET, Dictionary
from tests.support.config_cases import small
from tests.support.loop_cases import Run, reports

WIDTH, FEATURES, TOKENS = 8, 40, 500
STEERED = [name for name in RULES if isinstance(rule_of(SparsitySection(activation=name)), PenaltyRule)]


def dictionary() -> Dictionary:
    made = Dictionary.initial("clt", 2, FEATURES, WIDTH, own={"log_threshold": UNSET, "log_scale": 0.0, "b_mag": 0.0})
    made.W_enc[1] *= 7  # pre-activations of any size
    return made


def inputs() -> list[torch.Tensor]:
    return list((1.3 * torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(2))).unbind())


@pytest.mark.parametrize("active", [0.01, 1.5, 12.0, 30.0], ids=lambda k: f"k{k:g}")
def test_start_thresholds_are_a_quantile_in_units_of_the_spread(active: float) -> None:
    model, x_SBD = dictionary(), inputs()
    for source in range(2):
        pre_BF = x_SBD[source] @ model.W_enc[source].T
        spread_F = pre_BF.square().mean(0).sqrt()
        ranked = (pre_BF / spread_F).flatten().sort(descending=True).values
        kept = round(active * TOKENS)
        expected_F = spread_F * ranked.clamp_min(0)[kept - 1 : kept + 1].mean().clamp_min(1e-3)
        found_F = start_thresholds(model, source, x_SBD[source], active, FeatureRanks())
        torch.testing.assert_close(found_F, expected_F)


@pytest.mark.parametrize("activation", STEERED)
def test_a_dictionary_starts_at_the_number_asked_for(activation: str) -> None:
    model, x_SBD, rule = dictionary(), inputs(), rule_of(SparsitySection(activation=activation))
    assert isinstance(rule, PenaltyRule)
    rule.start_(model, x_SBD, 2.0, FeatureRanks())
    before = [tensor.clone() for tensor in model.tensors().values()]
    selection = rule.select(model, x_SBD, Now(2.0), FeatureRanks())
    assert [int(active.sum()) / TOKENS for active in selection.active] == [2.0, 2.0]
    rule.start_(model, x_SBD, 5.0, FeatureRanks())  # what it came with stays
    assert all(torch.equal(*pair) for pair in zip(before, model.tensors().values(), strict=True))


@pytest.mark.parametrize("activation", STEERED)
def test_no_start_is_so_dense_that_thresholds_are_almost_zero(activation: str) -> None:
    """Near zero a threshold that rises by a factor a step hardly rises."""
    config = small(sparsity__activation=activation, sparsity__active=12.0, dictionary__features=FEATURES)
    model, x_SBD, rule = dictionary(), inputs(), rule_of(config.sparsity)
    assert isinstance(rule, PenaltyRule)
    for source in range(2):
        level_F = start_thresholds(model, source, x_SBD[source], config.active_at_start, FeatureRanks())
        assert float((level_F / (x_SBD[source] @ model.W_enc[source].T).square().mean(0).sqrt()).min()) > 0.3


def test_thresholds_of_rare_features_fall() -> None:
    model, rule = dictionary(), rule_of(SparsitySection(activation="jumprelu"))
    assert isinstance(rule, PenaltyRule)
    assert model.log_threshold is not None
    model.log_threshold[0].zero_()
    model.log_threshold[1].fill_(1.0)
    rare = [0.25 * (torch.arange(FEATURES) < 3), torch.zeros(FEATURES)]
    rule.steer_(model, torch.tensor(0.5), rare)
    assert torch.equal(model.log_threshold[1], torch.full((FEATURES,), 1.05))
    torch.testing.assert_close(model.log_threshold[0], 0.05 - rare[0])


def test_rare_features_are_brought_back_while_their_silence_doubles(tmp_path: Path) -> None:
    """Log theta falls by 1 in all, whatever the batch, and not again before the feature has fired."""
    run = Run("clt", "jumprelu", steps=40, features=60, width=WIDTH, batch=100)
    loop = run.loop(tmp_path, sparsity__penalty=None, sparsity__active=4.0, sparsity__active_at_start=4.0)
    window, fallen = RARE * 60 / 4, 0.0
    for silent in range(0, 5000, 100):
        loop.state.silence.tokens[1].fill_(silent)
        share = loop._rare(4.0)
        assert not share[0].any()
        assert bool(share[1].any()) == (window <= silent < 2 * window)
        fallen += float(share[1][0])
    assert fallen == pytest.approx(1.0)


def test_thresholds_of_one_are_thresholds() -> None:
    model, rule = dictionary(), rule_of(SparsitySection(activation="jumprelu"))
    assert isinstance(rule, PenaltyRule)
    assert model.log_threshold is not None
    model.log_threshold[0].zero_()
    rule.start_(model, inputs(), 2.0, FeatureRanks())
    assert torch.equal(model.thresholds(0), torch.ones(FEATURES))
    assert not torch.equal(model.thresholds(1), torch.ones(FEATURES))


@pytest.mark.parametrize("share", [1.0, 0.5], ids=lambda share: f"band{share:g}")
def test_the_plan_counts_near_misses(share: float) -> None:
    settings = SparsitySection(activation="jumprelu", band_probability=share)
    rule, n_features = rule_of(settings), 3000
    assert isinstance(rule, PenaltyRule)
    model = Dictionary.initial("plt", 1, n_features, 50, own={"log_threshold": UNSET})
    x_SBD = [torch.randn(300, 50, generator=torch.Generator().manual_seed(3))]
    rule.start_(model, x_SBD, 40.0, FeatureRanks())
    found = len(rule.select(model, x_SBD, Now(40.0), FeatureRanks()).entries[0].feature) / 300
    assert found > 50  # not those above the threshold alone
    assert rule.entries(40.0, n_features)[1] == pytest.approx(found, rel=0.05)


@pytest.mark.parametrize("activation", STEERED)
def test_training_keeps_the_number_asked_for(activation: str, tmp_path: Path) -> None:
    run = Run("clt", activation, steps=40, features=60, width=WIDTH, batch=100)
    asked = {"sparsity__penalty": None, "sparsity__active": 4.0, "sparsity__active_at_start": 10.0}
    loop = run.loop(tmp_path, optimizer__learning_rate=0.006, **asked)
    loop.run()
    found = reports(loop)
    assert sum(found[0]["l0_S"]) / 3 == pytest.approx(10.0, rel=0.02)
    assert sum(sum(report["l0_S"]) for report in found[-10:]) / 30 == pytest.approx(4.0, rel=0.1)
    assert all("sparsity" not in report["terms"] for report in found)
