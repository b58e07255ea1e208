"""Thresholds calibrated on held-out batches keep, source by source, as many entries as the training rule keeps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from circuit_tracer.kernels.encode import encode
from circuit_tracer.training.config.schema import SparsitySection
from circuit_tracer.training.export.calibration import level_scores
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.run.loop import normalised
from circuit_tracer.training.sparsity import RULES, rule_of
from circuit_tracer.training.sparsity.base import Now
from circuit_tracer.training.step.dictionary import Dictionary
from tests.support.loop_cases import FEATURES, LAYERS, Run

Batches = Sequence[Sequence[Tensor]]


def kept_by_rule(model: Dictionary, batches: Batches, settings: SparsitySection) -> list[set[tuple[int, int, int]]]:
    """(batch, token, feature) of every source's entries."""
    found: list[set[tuple[int, int, int]]] = [set() for _ in model.W_enc]
    for number, x_SBD in enumerate(batches):
        chosen = rule_of(settings).select(model, x_SBD, Now(settings.active), FeatureRanks())
        for source, entries in enumerate(chosen.entries):
            pairs = zip(entries.row.tolist(), entries.feature.tolist(), strict=True)
            found[source] |= {(number, row, feature) for row, feature in pairs}
    return found


def kept_by_threshold(
    model: Dictionary, batches: Batches, settings: SparsitySection, levels: Sequence[float]
) -> list[set[tuple[int, int, int]]]:
    found: list[set[tuple[int, int, int]]] = [set() for _ in model.W_enc]
    for source, level in enumerate(levels):
        threshold_F = rule_of(settings).export_thresholds(model.norms[source], model.reach(source), {}, level)
        assert threshold_F is not None
        assert threshold_F.dtype is torch.float32
        assert threshold_F.isfinite().all()
        assert (threshold_F > 0).all()
        for number, x_SBD in enumerate(batches):
            entries = encode(x_SBD[source], model.W_enc[source], model.b_enc[source], threshold_F)
            pairs = zip(entries.row.tolist(), entries.feature.tolist(), strict=True)
            found[source] |= {(number, row, feature) for row, feature in pairs}
    return found


def scores_of(model: Dictionary, batches: Batches, settings: SparsitySection, source: int) -> Tensor:
    """All positive scores of a source, the largest first."""
    pre_BF = torch.cat([x_SBD[source] for x_SBD in batches]) @ model.W_enc[source].to(model.b_enc[0]).T
    scores = ((pre_BF + model.b_enc[source]) * model.norms[source]).flatten()
    return scores[scores > 0].sort(descending=True).values


def check(model: Dictionary, batches: Batches, settings: SparsitySection) -> list[float]:
    """As many entries of every source, whatever the cut of training was."""
    levels = level_scores(model, batches, settings, None, FeatureRanks())
    wanted, found = kept_by_rule(model, batches, settings), kept_by_threshold(model, batches, settings, levels)
    for source in range(len(levels)):
        count, scores = len(wanted[source]), scores_of(model, batches, settings, source)
        if 0 < count < len(scores) and scores[count - 1] == scores[count]:
            # the rule parts equals by their token or batch, which no threshold can
            count = int((scores > scores[count]).sum())
        assert len(found[source]) == count
    for running_cut in (1e-6, 0.5, 1e6):
        again = level_scores(model, batches, settings, running_cut, FeatureRanks())
        assert again == pytest.approx(levels, rel=1e-6)
    return levels


@pytest.mark.few
@pytest.mark.parametrize("kind", ["clt", "plt", "skip", "sae"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_layer_keeps_as_many_as_the_training_rule(kind: str, dtype: str) -> None:
    run = Run(kind, "batch_topk", dtype)
    loop = run.loop(Path("unused"))
    loop.run()
    space, settings = loop.state.normalisation, loop.config.sparsity
    batches = [normalised(run.stream().batch(100 + number), space).x_SBD for number in range(3)]
    check(loop.state.dictionary, batches, settings)


def example(seed: int, n_tokens: int = 30, grid: bool = False) -> tuple[Dictionary, list[list[Tensor]]]:
    """Two batches; on a grid, scores tie everywhere."""
    draw = torch.Generator().manual_seed(seed)
    model = Dictionary.initial("clt", LAYERS, FEATURES, 4, dtype=torch.float64, seed=seed)
    batches = [
        [torch.randn(n, 4, generator=draw, dtype=torch.float64) for _ in range(LAYERS)]
        for n in (n_tokens, n_tokens // 3)
    ]
    if grid:
        for source in range(LAYERS):
            model.W_enc[source].copy_((model.W_enc[source] * 2).round())
            model.W_dec[source].zero_()[:, 0] = 1.0
            model.norms[source].fill_(1.0)
        batches = [[(x_BD * 2).round() / 2 for x_BD in x_SBD] for x_SBD in batches]
    return model, batches


def settings_for(active: float) -> SparsitySection:
    return SparsitySection(activation="batch_topk", active=active)


@pytest.mark.slow("takes 1.8 s")
@hypothesis_settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 99),
    st.sampled_from([1.0, 3.0, 8.0, 16.0]),
    st.booleans(),
)
def test_any_dictionary_with_and_without_ties(seed: int, active: float, grid: bool) -> None:
    model, batches = example(seed, grid=grid)
    check(model, batches, settings_for(active))


def test_one_batch_keeps_the_same_entries_not_only_as_many() -> None:
    """With one batch the cut of batch_topk is one number, so thresholds decide as the rule does."""
    model, batches = example(3)
    settings = settings_for(2.0)
    levels = check(model, batches[:1], settings)
    assert kept_by_threshold(model, batches[:1], settings, levels) == kept_by_rule(model, batches[:1], settings)


def test_a_level_lies_half_way_between_the_last_kept_and_the_next() -> None:
    model, batches = example(5)
    settings = settings_for(2.0)
    levels = level_scores(model, batches[:1], settings, None, FeatureRanks())
    kept = kept_by_rule(model, batches[:1], settings)
    for source, level in enumerate(levels):
        count, scores = len(kept[source]), scores_of(model, batches[:1], settings, source)
        assert level == pytest.approx(float(scores[count - 1] + scores[count]) / 2, rel=1e-9)


def test_a_source_of_which_nothing_is_kept_stays_silent() -> None:
    model, batches = example(1)
    model.b_enc[1].fill_(-100.0)  # nothing positive
    settings = settings_for(2.0)
    levels = check(model, batches, settings)
    assert kept_by_threshold(model, batches, settings, levels)[1] == set()
    model.b_enc[1].zero_()
    model.norms[1].mul_(1e-3)  # positive, but all other sources score higher
    levels = check(model, batches, settings)
    assert kept_by_rule(model, batches, settings)[1] == set()
    assert kept_by_threshold(model, batches, settings, levels)[1] == set()


def test_all_that_is_positive_is_kept_when_the_rule_keeps_all() -> None:
    model, batches = example(2)
    settings = settings_for(float(FEATURES))
    levels = check(model, batches, settings)
    for source, found in enumerate(kept_by_threshold(model, batches, settings, levels)):
        assert len(found) == len(scores_of(model, batches, settings, source))


def test_features_that_write_nothing_or_next_to_nothing_get_a_finite_threshold() -> None:
    norms = torch.tensor([0.0, 1e-45, 1e-38, 2.0])
    found = rule_of(settings_for(2.0)).export_thresholds(norms, 1, {}, 5.0)
    assert found is not None
    largest = torch.finfo(torch.float32).max
    assert found.tolist() == [largest, largest, largest, 2.5]


def test_other_activations_need_no_level() -> None:
    assert [name for name in RULES if rule_of(SparsitySection(activation=name)).needs_level] == ["batch_topk"]
    norms, log_threshold = torch.ones(3), torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    topk = rule_of(SparsitySection(activation="topk", active=5.0))
    assert (topk.export_k, topk.export_thresholds(norms, 1, {}, None)) == (5, None)
    assert rule_of(SparsitySection(activation="relu", penalty=1.0)).export_thresholds(norms, 1, {}, None) is None
    jumprelu = rule_of(SparsitySection(activation="jumprelu", penalty=1.0))
    found = jumprelu.export_thresholds(norms, 1, {"log_threshold": log_threshold}, None)
    assert found is not None
    assert found.dtype is torch.float32
    assert torch.equal(found, log_threshold.float().exp())
