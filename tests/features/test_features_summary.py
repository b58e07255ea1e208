"""Summaries merge like sums do: in any order of brackets, to the same numbers."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from circuit_tracer.features.record import quantile_values
from circuit_tracer.features.segment import Segment, Window
from circuit_tracer.features.summary import BINS, Keep, LayerSummary, bin_of, exponents_of, merge

KEEP, WINDOW = Keep(3, 4), Window(2, 1)


@st.composite
def stretches(draw: st.DrawFn) -> list[tuple[list[np.ndarray], tuple[np.ndarray, ...]]]:
    """Stretches of sequences of few different tokens, with activations on some of them."""
    found = []
    for _ in range(draw(st.integers(1, 4))):
        lengths = draw(st.lists(st.integers(2, 7), min_size=1, max_size=3))
        chance = np.random.default_rng(draw(st.integers(0, 2**32)))
        sequences = [chance.integers(0, 3, length) for length in lengths]
        total = sum(lengths)
        active = np.flatnonzero(chance.random((total, 3)).ravel() < draw(st.sampled_from([0.0, 0.3, 0.9])))
        scale = draw(st.sampled_from([1e-6, 1.0, 1e6]))
        value = (chance.standard_normal(len(active)) * scale).astype(np.float32)
        found.append((sequences, (active // 3, active % 3, value)))
    return found


def summary(stretch: Any, first: int) -> LayerSummary:
    segment = Segment(1, first)
    segment.add(stretch[0], [stretch[1]])
    return segment.summaries(WINDOW, KEEP)[0]


def same(first: LayerSummary, second: LayerSummary) -> None:
    for field in fields(first):
        one, other = getattr(first, field.name), getattr(second, field.name)
        if isinstance(one, np.ndarray):
            np.testing.assert_array_equal(one, other)
        else:
            for column in fields(one):
                np.testing.assert_array_equal(getattr(one, column.name), getattr(other, column.name))


@given(stretches())
def test_merging_in_any_order_equals_one_stretch(parts: list[Any]) -> None:
    starts = np.cumsum([0, *(sum(map(len, sequences)) for sequences, _ in parts)])
    summaries = [summary(part, int(start)) for part, start in zip(parts, starts[:-1], strict=True)]
    left = summaries[0]
    for each in summaries[1:]:
        left = merge(left, each, KEEP)
    right = summaries[-1]
    for each in summaries[-2::-1]:
        right = merge(each, right, KEEP)
    at_once = Segment(1, 0)
    for sequences, active in parts:
        at_once.add(sequences, [active])
    same(left, right)
    same(left, at_once.summaries(WINDOW, KEEP)[0])


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False), min_size=1, max_size=30))
def test_every_activation_has_its_bin(values: list[float]) -> None:
    value = np.array(values, np.float32)
    exponent = exponents_of(np.full(len(value), value.max()))
    place = bin_of(value, exponent)
    assert place.min() >= 0
    assert place.max() < BINS
    width = np.ldexp(1.0, np.maximum(exponent, -900)) / BINS
    inside = value > 0
    assert np.all(place[inside] * width[inside] <= value[inside].astype(np.float64))
    assert np.all(value[inside].astype(np.float64) < (place[inside] + 1) * width[inside])


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=200))
def test_percentiles_rise_and_lie_within_a_bin_of_the_true_ones(values: list[float]) -> None:
    value = np.array(values, np.float32)
    exponent = exponents_of(np.full(len(value), value.max()))
    counts = np.bincount(bin_of(value, exponent), minlength=1)
    width = float(np.ldexp(1.0, int(exponent[0]))) / BINS
    found = np.array(quantile_values(counts, width, float(value.max())))
    assert len(found) == 100
    assert np.all(np.diff(found) >= 0)
    assert found[-1] == value.max()
    ranks = [(percent * len(value) + 99) // 100 for percent in range(1, 101)]  # in whole numbers: numpy's round
    true = np.sort(value)[np.array(ranks) - 1]
    assert np.abs(found - true).max() <= width * (1 + 1e-6)
