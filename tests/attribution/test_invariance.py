"""How a trace is cut into pieces never changes its result, beyond rounding."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

from circuit_tracer.attribution import prompt, row_blocks, selection
from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.attribution.row_blocks import split_rows
from circuit_tracer.graph.graph import Graph
from circuit_tracer.progress import silent
from circuit_tracer.replacement_model import ReplacementModel
from circuit_tracer.transcoders import encoding
from tests.support.tracing_cases import IDS, Case, assert_equal, build

CASES = [
    Case("gemma2", "clt", True, "mlp.hook_in", "mlp.hook_out"),
    Case("gpt_neox", "plt", True, "ln2.hook_normalized", "hook_mlp_out", "jump_relu"),
    Case("gpt2", "clt", False, "hook_resid_mid", "hook_mlp_out", "topk"),
]
BUDGETS = [40, 13, 1, None]
each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_budget = pytest.mark.parametrize("budget", BUDGETS, ids=lambda budget: f"budget={budget}")


def assert_same(found: Graph, expected: Graph, tolerance: float = 1e-12) -> None:
    assert torch.equal(found.active_features, expected.active_features)
    assert torch.equal(found.selected_features, expected.selected_features)
    assert torch.equal(found.input_tokens, expected.input_tokens)
    assert_equal(found.activation_values, expected.activation_values, tolerance)
    assert_equal(found.adjacency_matrix, expected.adjacency_matrix, tolerance)
    assert found.balance is not None
    assert expected.balance is not None
    for name in ("bias", "unselected", "unselected_mass", "pre_activation"):
        assert_equal(getattr(found.balance, name), getattr(expected.balance, name), tolerance)


@pytest.mark.few
@pytest.mark.parametrize(("case", "budget", "batch_size"), list(product(CASES, BUDGETS, (1, 2, 7, 10_000))), ids=str)
def test_batch_size_does_not_matter(case: Case, budget: int | None, batch_size: int) -> None:
    model, options = build(case), {"max_n_logits": 5, "max_feature_nodes": budget}
    found = attribute(IDS, model, batch_size=batch_size, **options)
    assert_same(found, attribute(IDS, model, **options))


@pytest.mark.few
@each_case
@pytest.mark.parametrize("offload", ["cpu", "disk"])
def test_reading_decoder_rows_again_does_not_matter(case: Case, offload: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(case)
    kept: list[bool] = []
    read = prompt.read_decoder_rows
    monkeypatch.setattr(prompt, "read_decoder_rows", lambda *args, **how: kept.append(args[3]) or read(*args, **how))
    expected = attribute(IDS, model, max_feature_nodes=20)
    assert_same(attribute(IDS, model, max_feature_nodes=20, offload=offload, batch_size=5), expected)
    assert kept == [True, False]


@each_case
def test_number_of_blocks_a_sweep_does_not_matter(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(case)
    expected = attribute(IDS, model)
    for cost in (0, 1, 1000):
        monkeypatch.setattr(row_blocks, "ROWS_A_LAYER_COSTS", cost)
        assert_same(attribute(IDS, model), expected)


@pytest.mark.few
@pytest.mark.parametrize(("case", "budget"), list(product(CASES, BUDGETS)), ids=str)
def test_rounds_of_the_selection_do_not_matter(case: Case, budget: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(case)
    expected = attribute(IDS, model, max_feature_nodes=budget)
    for share, smallest, held_back in ((0.01, 1, 0), (0.3, 3, 2), (0.3, 3, 1000), (1.0, 1000, 0)):
        monkeypatch.setattr(selection, "ROWS_A_ROUND_COSTS", held_back)
        monkeypatch.setattr(selection, "SHARE_A_ROUND", share)
        monkeypatch.setattr(selection, "SMALLEST_ROUND", smallest)
        assert_same(attribute(IDS, model, max_feature_nodes=budget), expected)


@each_case
def test_update_interval_and_progress_do_not_matter(case: Case) -> None:
    model = build(case)
    expected = attribute(IDS, model, max_feature_nodes=11)
    assert_same(attribute(IDS, model, max_feature_nodes=11, update_interval=1, progress=silent), expected, 0)


@each_case
def test_the_same_call_gives_the_same_bits(case: Case) -> None:
    model = build(case)
    assert_same(attribute(IDS, model, max_feature_nodes=30), attribute(IDS, model, max_feature_nodes=30), 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@each_case
@each_budget
def test_device_does_not_matter(case: Case, budget: int | None) -> None:
    elsewhere = build.__wrapped__(case)
    model = ReplacementModel.from_model(
        elsewhere.hf_model.to("cuda"), elsewhere.transcoders.to("cuda"), None, case.architecture
    )
    expected = attribute(IDS, build(case), max_feature_nodes=budget)
    found = attribute(IDS, model, max_feature_nodes=budget)
    assert_same(found.to("cpu"), expected, 1e-9)


@each_case
def test_blocks_of_the_encoder_do_not_matter(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(case)
    expected = attribute(IDS, model)
    monkeypatch.setattr(encoding, "BLOCK_BYTES", 3 * 16 * 8)
    assert_same(attribute(IDS, model), expected)


@each_case
def test_order_of_targets_does_not_matter(case: Case) -> None:
    model = build(case)
    one = attribute(IDS, model, attribution_targets=[4, 40, 12], max_feature_nodes=15)
    two = attribute(IDS, model, attribution_targets=[12, 4, 40], max_feature_nodes=15)
    assert torch.equal(one.selected_features, two.selected_features)
    order = torch.arange(one.n_nodes)
    order[one.nodes.layout.targets] = order[one.nodes.layout.targets][[2, 0, 1]]
    assert_equal(one.adjacency_matrix[order], two.adjacency_matrix, 1e-12)


@each_case
def test_a_target_has_the_same_row_alone_and_among_others(case: Case) -> None:
    model = build(case)
    among, alone = (attribute(IDS, model, attribution_targets=t) for t in ([4, 40, 12], [40]))
    assert_equal(among.adjacency_matrix[-2, :-3], alone.adjacency_matrix[-1, :-1], 1e-12)


def test_tokens_to_the_right_of_the_target_do_not_matter() -> None:
    model = build(CASES[0])
    whole = attribute(IDS, model, attribution_targets=[4], position=3)
    prefix = attribute(IDS[:4], model, attribution_targets=[4])
    inside = whole.active_features[:, 1] <= 3
    assert torch.equal(whole.active_features[inside], prefix.active_features)
    n, n_prefix = len(whole.selected_features), len(prefix.selected_features)
    assert_equal(whole.adjacency_matrix[-1, :n][inside], prefix.adjacency_matrix[-1, :n_prefix], 1e-12)
    assert not whole.adjacency_matrix[-1, :n][~inside].any()


@pytest.mark.parametrize("block_rows", [1, 3, 64, 1000])
@pytest.mark.parametrize("count", [0, 1, 5, 700])
def test_rows_are_split_into_blocks_that_hold_each_once(count: int, block_rows: int) -> None:
    generator = torch.Generator().manual_seed(count)
    layer = torch.randint(5, (count,), generator=generator)
    position = torch.randint(9, (count,), generator=generator)
    blocks = list(split_rows(layer, position, block_rows))
    assert sorted(torch.cat(blocks).tolist() if blocks else []) == list(range(count))
    for block in blocks:
        assert 0 < len(block) <= block_rows
        assert (layer[block].diff() <= 0).all()
