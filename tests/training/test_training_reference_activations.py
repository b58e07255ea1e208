"""Activations and their gradients are those of training/README.md §4: straight-through at thresholds, ties kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from circuit_tracer.training.config.schema import SparsitySection
from circuit_tracer.training.reference import Weights, activate, decode
from circuit_tracer.training.sparsity.jumprelu import Jump
from circuit_tracer.training.sparsity.ranking import keep_largest
from tests.support.reference_cases import (
    Case,
    activations_of,
    cases,
    close,
    decoder_norms,
    make,
    pre_activations,
)

any_case = settings(max_examples=60, deadline=None, derandomize=True)


def straight_through(
    pre: list[float], theta: float, width: float, near_miss: float = 1.0, grad: list[float] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Values, gradients of the pre-activations, and of theta, for one feature and a token each."""
    pre_B1 = torch.tensor(pre, dtype=torch.float64)[:, None].requires_grad_()
    theta_1 = torch.tensor([theta], dtype=torch.float64, requires_grad=True)
    out = Jump.apply(pre_B1, theta_1, torch.full_like(pre_B1, near_miss), width)
    out.backward(torch.ones_like(out) if grad is None else torch.tensor(grad, dtype=torch.float64)[:, None])
    return out.detach()[:, 0], pre_B1.grad[:, 0], theta_1.grad[0]


# theta = 1, w = 1/2: the band is 3/4 .. 5/4 of theta, both ends included
@pytest.mark.parametrize(
    ("pre", "active", "in_band"),
    [
        (-1.0, False, False),
        (0.0, False, False),
        (0.7499, False, False),
        (0.75, False, True),
        (0.9999, False, True),
        (1.0, False, True),  # strict: at the threshold a feature is silent
        (1.0001, True, True),
        (1.25, True, True),
        (1.2501, True, False),
        (9.0, True, False),
    ],
)
def test_jumprelu_on_both_sides_of_its_threshold(pre: float, active: bool, in_band: bool) -> None:
    value, d_pre, d_theta = straight_through([pre], theta=1.0, width=0.5)
    assert value.item() == (pre if active else 0.0)
    assert d_pre.item() == float(active)
    assert d_theta.item() == (-1.0 / 0.5 if in_band else 0.0)


def test_jumprelu_sums_over_tokens_in_a_band_that_grows_with_its_threshold() -> None:
    for scale in (1.0, 4.0):
        pre = [0.25 * scale, 0.55 * scale, 3.0 * scale]
        _, d_pre, d_theta = straight_through(pre, theta=0.5 * scale, width=1.0, grad=[2.0, -3.0, 5.0])
        assert d_pre.tolist() == [0.0, -3.0, 5.0]
        assert d_theta.item() == -(1 / 1.0) * (2.0 - 3.0)


def test_jumprelu_estimates_the_derivative_of_a_mean() -> None:
    """Uniform pre-activations of density 1/2 on [0, 2]: d/dtheta E[a] = -theta/2, what the estimate says at any bandwidth."""
    pre = ((torch.arange(20000, dtype=torch.float64) + 0.5) / 10000).tolist()
    for theta, width in ((1.0, 0.5), (0.7, 1.0), (1.4, 0.02)):
        assert straight_through(pre, theta, width)[2].item() / len(pre) == pytest.approx(-theta / 2, rel=1e-2)


def test_gradient_of_log_theta_carries_one_more_theta() -> None:
    example = make(Case("plt", "jumprelu"))
    log_theta = example.weights.log_threshold
    assert log_theta is not None
    ŷ_BSD = example.weights.b_dec + decode(example.weights, "plt", activations_of(example))
    G = (2 * (ŷ_BSD - example.y_BSD) / example.y_BSD.numel()).detach()
    found = example.gradients("reconstruction")
    near_misses = 0
    for s, pre_BF in enumerate(pre_activations(example)):
        theta = log_theta[s].exp().detach()
        in_band = (pre_BF - theta).abs() <= example.settings.bandwidth / 2 * theta
        near_misses += int((in_band & (pre_BF <= theta)).sum())
        da_BF = G[:, s] @ example.weights.W_dec[s].T
        close(found[f"log_threshold.{s}"], -theta / example.settings.bandwidth * (da_BF * in_band).sum(0))
    assert near_misses > 5


@pytest.mark.slow("takes 1.8 s")
@any_case
@given(cases(activations=("jumprelu",)))
def test_subsampled_band_changes_no_value_and_is_unbiased(case: Case) -> None:
    """Of a mask and its complement at p = 1/2 the mean gradient is that of the whole band, exactly: it is linear in it."""
    example = make(replace(case, band_probability=0.5))
    mask = example.options["band"]
    halves = [
        replace(example, options=example.options | {"band": band}) for band in (mask, [2 - m for m in mask], None)
    ]
    for half in halves:
        close(half.loss()[0], halves[-1].loss()[0])
    first, second, whole = (half.gradients() for half in halves)
    for name, gradient in whole.items():
        close((first[name] + second[name]) / 2, gradient)
        if not name.startswith("log_threshold"):
            close(first[name], gradient)


def test_near_misses_that_are_not_seen_count_nothing_but_entries_above_always_count() -> None:
    assert straight_through([0.8, 0.9, 1.0], theta=1.0, width=0.5, near_miss=0.0)[2] == 0.0
    assert straight_through([0.8, 0.9, 1.0], theta=1.0, width=0.5, near_miss=4.0)[2] == -(1 / 0.5) * 12
    for weight in (0.0, 4.0):
        assert straight_through([1.1, 1.2], theta=1.0, width=0.5, near_miss=weight)[2] == -(1 / 0.5) * 2


def mask(score: list[float], count: int) -> list[bool]:
    score_F = torch.tensor(score, dtype=torch.float64)
    return keep_largest(score_F, score_F > 0, count).tolist()


@pytest.mark.parametrize(
    ("score", "count", "kept"),
    [
        ([3, 1, 2], 0, [False, False, False]),
        ([3, 1, 2], 1, [True, False, False]),
        ([3, 1, 2], 2, [True, False, True]),
        ([3, 1, 2], 9, [True, True, True]),
        ([2, 1, 2, 2], 1, [True, False, True, True]),  # ties with the last one kept are kept
        ([3, 2, 2, 1], 2, [True, True, True, False]),
        ([1, 0, -1], 3, [True, False, False]),  # fewer positives than asked for
        ([0, 0, -1], 2, [False, False, False]),
    ],
    ids=str,
)
def test_keep_largest(score: list[float], count: int, kept: list[bool]) -> None:
    assert mask(score, count) == kept


def selection(
    activation: str, pre: list[Tensor], W_dec: list[Tensor], active: float, rank_by: str = "row"
) -> list[Tensor]:
    weights = Weights([], [], W_dec, torch.zeros(len(pre), 1, dtype=torch.float64))
    norms = [W.square().sum(1).sqrt() for W in W_dec]
    settings, reach = SparsitySection(activation=activation, rank_by=rank_by), [W.shape[1] for W in W_dec]
    return [a > 0 for a in activate(weights, settings, pre, norms, reach, active)]


@any_case
@given(cases(activations=("topk", "batch_topk")))
def test_what_is_kept_outranks_what_is_not(case: Case) -> None:
    example = make(case)
    pre, norms, active = pre_activations(example), decoder_norms(example), example.options["active"]
    kept = [a > 0 for a in activations_of(example)]
    n_layers, n_tokens = len(pre), len(pre[0])
    if case.activation == "topk":
        groups = [(p[b], keep[b]) for p, keep in zip(pre, kept, strict=True) for b in range(n_tokens)]
        count = round(active)
    else:
        score = torch.cat([(p * n).flatten() for p, n in zip(pre, norms, strict=True)])
        score[torch.cat([p.flatten() for p in pre]) <= 0] = -1
        groups = [(score, torch.cat([keep.flatten() for keep in kept]))]
        count = round(active * n_layers * n_tokens)
    for score, keep in groups:
        positive = score > 0 if case.activation == "topk" else score >= 0
        assert not (keep & ~positive).any()
        assert keep.sum() >= min(count, int(positive.sum()))
        if count > 0 and keep.any() and not keep.equal(positive):
            cut = score[keep].min()
            assert (score[positive & ~keep] < cut).all()
            assert (score > cut).sum() < count  # more than `count` only by ties


@any_case
@given(cases(activations=("topk", "batch_topk")))
def test_selection_does_not_depend_on_the_order_of_tokens_or_features(case: Case) -> None:
    example = make(case)
    tokens = torch.randperm(case.n_tokens, generator=torch.Generator().manual_seed(case.seed))
    features = torch.randperm(case.n_features, generator=torch.Generator().manual_seed(case.seed + 1))
    pre, active = pre_activations(example), example.options["active"]
    kept = selection(case.activation, pre, example.weights.W_dec, active)
    shuffled = [p[tokens][:, features] for p in pre]
    for before, after in zip(
        kept,
        selection(case.activation, shuffled, [W[features] for W in example.weights.W_dec], active),
        strict=True,
    ):
        assert torch.equal(before[tokens][:, features], after)


def test_batch_topk_ranks_by_decoder_norm_over_layers_and_topk_does_not() -> None:
    pre = [torch.tensor([[3.0, 2.0]], dtype=torch.float64), torch.tensor([[1.0, 0.5]], dtype=torch.float64)]
    W_dec = [torch.ones(2, 1, dtype=torch.float64), torch.tensor([[1.0], [10.0]], dtype=torch.float64)]
    assert [k.tolist() for k in selection("batch_topk", pre, W_dec, 1.0)] == [[[True, False]], [[False, True]]]
    assert [k.tolist() for k in selection("topk", pre, W_dec, 1.0)] == [[[True, False]], [[True, False]]]


@pytest.mark.parametrize(("rank_by", "kept"), [("row", [True, False]), ("target", [False, True])])
def test_rank_by_target_counts_what_a_row_writes_to_a_layer(rank_by: str, kept: list[bool]) -> None:
    pre = [torch.ones(1, 1, dtype=torch.float64)] * 2
    W_dec = [torch.ones(1, 4, dtype=torch.float64), torch.tensor([[1.5]], dtype=torch.float64)]  # norms 2 and 1.5
    assert [bool(k) for k in selection("batch_topk", pre, W_dec, 0.5, rank_by)] == kept


@pytest.mark.parametrize(("active", "expected"), [(0.5, 2), (1.0, 4), (1.2, 5), (4.0, 16), (9.0, 16)])
def test_batch_topk_keeps_k_a_layer_and_token_on_average(active: float, expected: int) -> None:
    pre = [1 + torch.rand(2, 4, dtype=torch.float64) for _ in range(2)]  # S = B = 2: k * 4
    kept = selection("batch_topk", pre, [torch.ones(4, 1, dtype=torch.float64)] * 2, active)
    assert sum(int(k.sum()) for k in kept) == expected
