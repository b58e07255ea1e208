"""Rows without their smallest edges: bounded, accounted for, and otherwise those of the whole graph."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_invariance import CASES, assert_same

from circuit_tracer.attribution import finished_block
from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.attribution.finished_block import FinishedBlock, SparseEdges
from circuit_tracer.attribution.plan import kept_mass
from circuit_tracer.attribution.sweep import EdgeBlock
from circuit_tracer.errors import InputError
from tests.support.tracing_cases import IDS, Case, assert_equal, build

each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_share = pytest.mark.parametrize("share", [0.5, 0.9, 0.99, 1.0])


@pytest.mark.few
@each_case
@each_share
def test_what_is_dropped_is_little_and_counted(case: Case, share: float) -> None:
    model = build(case)
    whole, thin = attribute(IDS, model), attribute(IDS, model, keep_edge_mass=share)
    assert torch.equal(thin.selected_features, whole.selected_features)
    edges, kept = whole.adjacency_matrix, thin.adjacency_matrix
    dropped = torch.where(kept == 0, edges, torch.zeros_like(edges))
    assert_equal(kept + dropped, edges)
    mass = edges.abs().sum(1)
    assert (dropped.abs().sum(1) <= (1 - share) * mass + 1e-12).all()
    assert thin.balance is not None
    assert_equal(thin.balance.unselected, dropped.sum(1))
    assert_equal(thin.balance.unselected_mass, dropped.abs().sum(1))
    assert thin.residual is not None
    assert thin.residual <= 1e-10
    # what goes is smaller than what stays, row by row
    smallest = torch.where(kept != 0, kept.abs(), float("inf")).min(1).values
    assert (dropped.abs().max(1).values <= smallest).all()
    worst = float((dropped.abs().sum(1) / mass.clamp_min(1e-30)).max())
    assert thin.provenance["dropped_mass"] == pytest.approx(worst, abs=1e-9)


@pytest.mark.few
@pytest.mark.parametrize(("case", "budget", "batch_size"), list(product(CASES, (13, 40), (1, 7))), ids=str)
def test_chunks_do_not_matter_then_either(case: Case, budget: int, batch_size: int) -> None:
    model = build(case)
    expected = attribute(IDS, model, max_feature_nodes=budget, keep_edge_mass=0.8)
    assert_same(
        attribute(IDS, model, max_feature_nodes=budget, keep_edge_mass=0.8, batch_size=batch_size, offload="disk"),
        expected,
    )


@each_case
def test_sparse_storage_is_the_same_as_dense(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(case)
    found = attribute(IDS, model, max_feature_nodes=30, keep_edge_mass=0.3)  # most blocks are sparse
    monkeypatch.setattr(SparseEdges, "of", classmethod(lambda cls, dense, counts: dense))
    assert_same(found, attribute(IDS, model, max_feature_nodes=30, keep_edge_mass=0.3))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    n_rows=st.integers(1, 5),
    n_columns=st.integers(0, 30),
    n_pos=st.integers(1, 4),
    spread=st.sampled_from([0.0, 1.0, 6.0]),
    share=st.floats(0.01, 0.999),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 9999),
)
def test_blocks_keep_their_laws(
    n_rows: int, n_columns: int, n_pos: int, spread: float, share: float, dtype: torch.dtype, seed: int
) -> None:
    generator, n_layers = torch.Generator().manual_seed(seed), 2
    shape = n_rows, n_columns + (n_layers + 1) * n_pos
    edges = torch.randn(shape, generator=generator, dtype=torch.float64)
    edges = (edges * (spread * torch.randn(shape, generator=generator, dtype=torch.float64)).exp()).to(dtype)
    edges[torch.rand(shape, generator=generator) < 0.2] = 0
    layer = torch.arange(n_rows).flip(0) % 3
    layer = layer.sort(descending=True).values
    block = EdgeBlock(torch.arange(n_rows), layer, n_pos, n_columns, edges.clone())
    made = FinishedBlock.of(block, torch.arange(n_rows), n_layers, share)
    kept = made.dense(slice(0, n_rows))
    assert made.width == shape[1]
    assert ((kept == edges) | (kept == 0)).all()
    mass = edges.double().abs().sum(1)
    assert (kept.double().abs().sum(1) >= share * mass - 1e-9 * mass).all()
    assert_equal(made.mass, mass)
    assert_equal(made.total, edges.double().sum(1))
    assert torch.equal(made.dense(slice(n_rows - 1, n_rows)), kept[n_rows - 1 :])
    weight = torch.rand(n_rows, generator=generator, dtype=torch.float64)
    for depth in range(n_layers + 1):
        start, stop = made.step_ptr[depth + 1], made.step_ptr[depth]
        expected = weight[start:stop] @ kept[start:stop, :n_columns].double().abs()
        tolerance = 1e-5 if dtype is torch.float32 else 1e-12
        received = torch.zeros(n_columns, dtype=torch.float64)
        made.flow_(received, start, stop, weight[start:stop])
        torch.testing.assert_close(received, expected, rtol=tolerance, atol=tolerance)


def test_pieces_of_sums_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(CASES[0])
    expected = attribute(IDS, model, max_feature_nodes=20)
    monkeypatch.setattr(finished_block, "EDGES_A_PIECE", 100)
    assert_same(attribute(IDS, model, max_feature_nodes=20), expected)


def test_short_prompts_keep_all_and_long_ones_nearly_all() -> None:
    assert [kept_mass(None, 512), kept_mass(None, 513), kept_mass(0.5, 2), kept_mass(1.0, 9999)] == [
        1.0,
        0.98,
        0.5,
        1.0,
    ]


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan")])
def test_shares_that_make_no_sense_are_refused(share: float) -> None:
    with pytest.raises(InputError, match="keep_edge_mass"):
        attribute(IDS, build(CASES[0]), keep_edge_mass=share)
