"""Law: interventions set what the same sequence of indexed assignments would set."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuit_tracer.interventions.features.settings import open_ended, resolve
from tests.support.tiny import tiny_transcoder

N_POS, N_FEATURES = 6, 20
TRANSCODER = tiny_transcoder()

positions = st.one_of(
    st.integers(-N_POS, N_POS - 1),
    st.integers(0, N_POS - 1).map(torch.tensor),
    st.slices(N_POS),
)
places = st.tuples(
    st.integers(0, 2),
    positions,
    st.one_of(
        st.integers(0, N_FEATURES - 1),
        st.lists(st.integers(0, N_FEATURES - 1), min_size=1, max_size=3).map(torch.tensor),
    ),
    st.floats(-10, 10).map(lambda value: value or 1.0),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(places, max_size=5))
def test_settings_are_indexed_assignments(interventions: list[Any]) -> None:
    expected = torch.full((3, N_POS, N_FEATURES), float("nan"), dtype=torch.float64)
    for layer, position, index, value in interventions:
        if isinstance(position, slice):
            for place in range(*position.indices(N_POS)):
                expected[layer, place, index] = value
        else:
            expected[layer][position, index] = value
    found = torch.full_like(expected, float("nan"))
    for layer, wanted in resolve(interventions, TRANSCODER, N_POS, torch.device("cpu"), torch.float64).items():
        assert found[layer, wanted.position, wanted.index].isnan().all()
        found[layer, wanted.position, wanted.index] = wanted.value
        assert len({*zip(wanted.position.tolist(), wanted.index.tolist(), strict=True)}) == len(wanted.value)
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_only_open_slices_go_on() -> None:
    here = [(0, slice(2, None), 1, 1.0), (0, slice(2, 4), 2, 1.0), (1, 3, 3, 1.0), (2, slice(None), 4, 2.0)]
    assert open_ended(here) == [(0, 0, 1, 1.0), (2, 0, 4, 2.0)]
