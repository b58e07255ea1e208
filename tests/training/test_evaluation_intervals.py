"""Intervals: the jackknife against plain statements, a naive bootstrap, and coverage."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from circuit_tracer.training.evaluation import evaluate
from circuit_tracer.training.evaluation.intervals import Estimate, by_unit, estimates, mean_estimate, student, unit_rows
from circuit_tracer.training.evaluation.results import DICTIONARY, PER_LAYER
from tests.support.evaluation_cases import ALL_TOKENS, numbers_of, parts_of, sequences
from tests.support.tiny import tiny_transcoder


def test_student_has_the_quantiles_of_the_tables() -> None:
    known = {1: 12.706, 2: 4.303, 3: 3.182, 5: 2.571, 10: 2.228, 30: 2.042, 127: 1.979}
    assert {freedom: student(freedom) for freedom in known} == pytest.approx(known, rel=2e-3)


def test_of_a_mean_it_is_the_interval_of_textbooks() -> None:
    values = torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low, high = mean_estimate(values.tolist()).interval
    reach = student(11) * float(values.std()) / math.sqrt(12)
    assert (low, high) == pytest.approx((float(values.mean()) - reach, float(values.mean()) + reach))
    assert mean_estimate([3.0]).value == 3.0
    assert all(map(math.isnan, mean_estimate([3.0]).interval))
    assert all(map(math.isnan, Estimate(1.0, (1.0, math.nan, 2.0)).interval))


def test_of_a_ratio_of_sums_it_is_a_bootstrap_over_units_and_wider_than_one_over_tokens() -> None:
    generator = torch.Generator().manual_seed(1)
    own = torch.randn(60, generator=generator, dtype=torch.float64)  # what tokens of a sequence have in common
    counts = torch.randint(5, 15, (60,), generator=generator)
    unit = torch.arange(60).repeat_interleave(counts)
    values = own[unit] + torch.randn(len(unit), generator=generator, dtype=torch.float64)
    sums = torch.stack([by_unit(values, unit), by_unit(torch.ones(len(unit)), unit)], dim=1)
    (found,) = estimates(sums, lambda s: s[..., :1] / s[..., 1:])
    assert found.value == pytest.approx(float(values.mean()))
    drawn = torch.randint(60, (4000, 60), generator=generator)
    means = (sums[drawn, 0].sum(1) / sums[drawn, 1].sum(1)).sort().values
    low, high = found.interval
    assert (low, high) == pytest.approx((float(means[100]), float(means[3899])), abs=0.06 * (high - low))
    over_tokens = 2 * 1.96 * float(values.std()) / math.sqrt(len(values))
    assert high - low > 1.8 * over_tokens


def test_rows_know_their_unit_and_many_sequences_share_units() -> None:
    assert unit_rows(torch.zeros(2, 3), 126).tolist() == [126, 126, 126, 127, 127, 127]
    assert unit_rows(torch.zeros(2, 1), 127).tolist() == [127, 0]


def test_every_number_of_an_evaluation_without_a_sequence_is_that_of_the_others() -> None:
    """Numbers of estimates are those reported; leaving one out is an evaluation without it."""
    parts, transcoders, tokens = parts_of(), tiny_transcoder("clt"), sequences(3)
    whole = evaluate(parts, None, transcoders, tokens, ALL_TOKENS)
    result = whole.results[DICTIONARY]
    assert result.replacement is not None
    assert {name: one.value for name, one in result.replacement.estimates.items()} == pytest.approx(
        numbers_of(result.replacement), nan_ok=True
    )
    found, shares = result.reconstruction, []
    assert found.estimates["mean_nmse"].value == pytest.approx(found.mean_nmse)
    assert found.estimates["total_l0"].value == pytest.approx(sum(found.l0))
    names = ("kl", "top1", "cross_entropy", "ce_recovered", "mean_nmse", "total_l0")
    for left_out in range(len(tokens)):
        others = [ids for number, ids in enumerate(tokens) if number != left_out]
        one = evaluate(parts, None, transcoders, others, ALL_TOKENS).results[DICTIONARY].estimates
        shares.append([one[name].value for name in names])
    expected = sorted(shares)
    without = sorted(list(row) for row in zip(*(result.estimates[name].without for name in names), strict=True))
    for ours, theirs in zip(without, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)


@pytest.mark.slow("takes 1.2 s")
def test_differences_are_paired() -> None:
    parts, clt = parts_of(), tiny_transcoder("clt")
    tokens, settings = sequences(6), replace(ALL_TOKENS, prompts=([3, 4, 5, 6], [8, 9, 10], [7, 7, 9]))  # type: ignore[arg-type]
    itself = evaluate(parts, None, clt, tokens, settings, per_layer=clt).differences[PER_LAYER]
    assert {"mean_nmse", "kl", "top1", "replacement", "completeness", "edges_live"} <= set(itself)
    for name, one in itself.items():
        if math.isfinite(one.value):
            assert (one.value, *one.interval) == (0, 0, 0), name
    other = evaluate(parts, None, clt, tokens, settings, per_layer=tiny_transcoder("plt"))
    found, apart = other.differences[PER_LAYER]["kl"], [other.results[name].estimates["kl"] for name in other.results]
    assert found.value == pytest.approx(apart[0].value - apart[1].value)
    pairs = [one - two for one, two in zip(apart[0].without, apart[1].without, strict=True)]
    assert found.without == pytest.approx(pairs)
    plain = other.to_json()["differences"][PER_LAYER]["kl"]
    assert plain["low"] < plain["value"] < plain["high"]
