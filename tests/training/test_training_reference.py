"""The dense loss is the one of training/README.md: its formulas written out again as loops, finite differences, and laws."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from circuit_tracer.errors import InputError
from circuit_tracer.training.reference import Weights, aux, decode, jacobian, targets
from circuit_tracer.training.reference import loss as reference_loss
from circuit_tracer.training.reference import pre_activation as pre_activation_loss
from tests.support.reference_cases import (
    ACTIVATIONS,
    SERVED,
    Case,
    Example,
    activations_of,
    cases,
    close,
    decoder_norms,
    each_case,
    each_kind,
    each_served,
    make,
    parameters,
    pre_activations,
)

any_case = settings(max_examples=60, deadline=None, derandomize=True)


# Forward pass and reconstruction (§1, §3, §5)


@each_kind
def test_prediction_is_the_sum_over_the_sources_that_write_to_a_layer(kind: str) -> None:
    example = make(Case(kind, "relu"))
    weights, x_BSD, (n_layers, width) = example.weights, example.x_BSD, example.weights.b_dec.shape
    expected = 0.0
    for b in range(len(x_BSD)):
        for t in range(n_layers):
            y_D = weights.b_dec[t].clone()
            if kind == "skip":
                assert weights.W_skip is not None
                y_D += weights.W_skip[t] @ x_BSD[b, t]
            for s in range(t + 1) if kind == "clt" else [t]:
                for f in range(len(weights.W_enc[s])):
                    a = float((weights.W_enc[s][f] @ x_BSD[b, s] + weights.b_enc[s][f]).detach().clamp_min(0))
                    y_D += a * weights.W_dec[s][f, (t - s) * width : (t - s + 1) * width]
            expected += float((y_D - example.y_BSD[b, t]).detach().square().mean()) / (n_layers * len(x_BSD))
    close(example.loss()[1]["reconstruction"], expected)


@each_kind
def test_a_decoder_slice_reaches_its_own_target_only(kind: str) -> None:
    example = make(Case(kind, "relu"))
    n_layers, width = example.weights.b_dec.shape
    for s, W_dec in enumerate(example.weights.W_dec):
        written = list(targets(kind, s, n_layers))
        assert written == (list(range(s, n_layers)) if kind == "clt" else [s])
        assert W_dec.shape[1] == len(written) * width
        for offset, t in enumerate(written):
            only = Weights([], [], [torch.zeros_like(W) for W in example.weights.W_dec], torch.zeros(n_layers, width))
            only.W_dec[s][:, offset * width : (offset + 1) * width] = 1
            values = [torch.ones(2, len(W)) for W in only.W_dec]
            reached = decode(replace(only, W_dec=[W.float() for W in only.W_dec]), kind, values).abs().sum((0, 2)) > 0
            assert reached.nonzero().flatten().tolist() == [t]


@each_kind
def test_zero_weights_lose_one(kind: str) -> None:
    """E|y'|^2 = D, so nothing predicted is an error of one, at every width, depth and batch size."""
    for case in (Case(kind, "topk"), Case(kind, "topk", n_layers=1, n_tokens=63, width=60)):
        example = make(case)
        y_BSD = example.y_BSD * (case.width / example.y_BSD.square().sum(2).mean(0))[:, None].sqrt()
        weights = Weights(**{k: _zeros(v) for k, v in vars(example.weights).items()})
        x_BSD = y_BSD if kind == "sae" else example.x_BSD
        _, terms = reference_loss(weights, kind, example.settings, x_BSD, y_BSD, **example.options)
        close(terms["reconstruction"], 1.0)


def _zeros(value: Tensor | list[Tensor] | None) -> Tensor | list[Tensor] | None:
    if isinstance(value, list):
        return [torch.zeros_like(v) for v in value]
    return value if value is None else torch.zeros_like(value)


@each_case
def test_the_loss_is_the_sum_of_finite_terms(case: Case) -> None:
    example = make(case)
    total, terms = example.loss()
    assert list(terms) == ["reconstruction", "sparsity", "gate", "balance", "aux", "pre_activation", "jacobian"]
    close(total, sum(float(term.detach()) for term in terms.values()))
    assert all(torch.isfinite(term) and term.detach() >= 0 for term in terms.values())
    for name, gradient in example.gradients().items():
        assert torch.isfinite(gradient).all(), name


@pytest.mark.slow("takes 2.2 s")
@any_case
@given(cases())
def test_a_batch_twice_is_the_same_loss(case: Case) -> None:
    """Every term is a mean over tokens, and what is kept is a share of them (where the share is a whole number)."""
    once = make(replace(case, active=1.0))
    twice = replace(once, x_BSD=torch.cat([once.x_BSD] * 2), y_BSD=torch.cat([once.y_BSD] * 2))
    twice.options = once.options | {
        key: torch.cat([value] * 2) for key, value in once.options.items() if key in ("direction_BSD", "derivative_BSD")
    }
    if "band" in once.options:
        twice.options["band"] = [torch.cat([band] * 2) for band in once.options["band"]]
    for name, term in once.loss()[1].items():
        close(twice.loss()[1][name], term)
    for name, gradient in once.gradients().items():
        close(twice.gradients()[name], gradient)


# Gradients (§6)


@pytest.mark.few
@each_served
def test_gradients_are_those_of_finite_differences(kind: str, activation: str) -> None:
    """Where nothing is held constant: the reconstruction, the penalty, the balance of experts, and the Jacobian away from
    thresholds.
    """
    prefixes = () if activation == "switch" else (1,)
    case = Case(kind, activation, n_layers=2, n_tokens=3, n_features=4, width=3, prefixes=prefixes, seed=1)
    example = make(case).with_settings(aux_active=0, pre_activation_weight=0.0, bandwidth=1e-6)
    named = parameters(example.weights)

    def total(*tensors: Tensor) -> Tensor:
        given = dict(zip(named, tensors, strict=True))
        loss, terms = replace(example, weights=weights_of(given)).loss()
        return loss - terms["gate"]

    assert torch.autograd.gradcheck(total, tuple(named.values()))


def weights_of(given: dict[str, Tensor]) -> Weights:
    """Of two layers, from `parameters`."""
    lists = {name.partition(".")[0] for name in given if "." in name}
    return Weights(
        **{name: [given[f"{name}.{s}"] for s in range(2)] for name in lists},  # type: ignore[arg-type]
        **{name: tensor for name, tensor in given.items() if "." not in name},
    )


@pytest.mark.few
@each_kind
def test_gates_learn_to_reconstruct_through_decoders_that_do_not(kind: str) -> None:
    example = make(Case(kind, "gated", n_layers=2, n_tokens=3, n_features=4, width=3, seed=1))
    named = parameters(example.weights)
    moving = [name for name in named if name.startswith(("W_enc", "b_enc"))]

    def gate(*tensors: Tensor) -> Tensor:
        return replace(example, weights=weights_of(named | dict(zip(moving, tensors, strict=True)))).loss()[1]["gate"]

    assert torch.autograd.gradcheck(gate, tuple(named[name] for name in moving))
    found = example.gradients("gate")
    assert [name for name, gradient in found.items() if gradient.any()] == moving
    pre, x_BSD = pre_activations(example), example.x_BSD
    written = decode(example.weights, kind, [p.clamp_min(0) for p in pre]) + example.weights.b_dec
    if example.weights.W_skip is not None:
        written = written + torch.einsum("sij,bsj->bsi", example.weights.W_skip, x_BSD)
    close(example.loss()[1]["gate"], (written - example.y_BSD).square().mean())


def test_a_prefix_is_the_dictionary_of_its_features() -> None:
    """Its error is that of a dictionary that has no others, with the features that the whole one keeps."""
    example = make(Case("clt", "relu", n_tokens=63))
    errors = []
    for end in (2, 5, 7):
        weights = example.weights
        rows = {name: [tensor[:end] for tensor in getattr(weights, name)] for name in ("W_enc", "b_enc", "W_dec")}
        dead = {"dead": [mask[:end] for mask in example.options["dead"]]}
        alone = replace(example, weights=replace(weights, **rows), options=example.options | dead)
        errors.append(alone.loss()[1]["reconstruction"])
    nested = replace(example, options=example.options | {"prefixes": (2, 5)})
    close(nested.loss()[1]["reconstruction"], sum(errors) / 3)


def test_a_switch_sends_a_token_to_one_expert() -> None:
    """Its activations are those of a TopK of that expert alone, times the router's probability; busy experts cost."""
    example = make(Case("sae", "switch", n_tokens=63, n_features=12, active=2.0))
    weights, size = example.weights, 12 // example.settings.experts
    assert weights.W_router is not None
    assert weights.b_router is not None
    balance = 0.0
    for s, found_BF in enumerate(activations_of(example)):
        loads, means = [0.0] * example.settings.experts, torch.zeros(example.settings.experts).double()
        for b, x_D in enumerate(example.x_BSD[:, s]):
            share_N = torch.softmax(weights.W_router[s] @ x_D + weights.b_router[s], 0).detach()
            chosen = int(share_N.argmax())
            pre_F = (weights.W_enc[s] @ x_D + weights.b_enc[s]).tolist()
            best = sorted(range(chosen * size, chosen * size + size), key=lambda f: -pre_F[f])[:2]
            expected = {f: float(share_N[chosen]) * pre_F[f] for f in best if pre_F[f] > 0}
            found = {f: float(found_BF[b, f].detach()) for f in found_BF[b].nonzero().flatten().tolist()}
            assert found == pytest.approx(expected)
            loads[chosen] += 1 / 63
            means += share_N / 63
        balance += float(len(loads) * (torch.tensor(loads, dtype=torch.float64) * means).sum()) / 3
    close(example.loss()[1]["balance"], example.settings.balance_weight * balance)


@each_kind
@pytest.mark.parametrize("activation", ["topk", "batch_topk"])
def test_gradients_are_the_sums_over_entries_that_the_sparse_step_makes(kind: str, activation: str) -> None:
    example = make(Case(kind, activation)).with_settings(aux_active=0, pre_activation_weight=0.0, jacobian_weight=0.0)
    weights, x_BSD = example.weights, example.x_BSD
    n_layers = len(weights.b_dec)
    activations = [a.detach() for a in activations_of(example)]
    ŷ_BSD = weights.b_dec + decode(weights, kind, activations)
    if weights.W_skip is not None:
        ŷ_BSD = ŷ_BSD + torch.stack([x_BSD[:, t] @ weights.W_skip[t].T for t in range(n_layers)], dim=1)
    G_BSD = (2 * (ŷ_BSD - example.y_BSD) / example.y_BSD.numel()).detach()
    found = example.gradients()

    close(found["b_dec"], G_BSD.sum(0))
    if weights.W_skip is not None:
        close(found["W_skip"], torch.einsum("bti,btj->tij", G_BSD, x_BSD))
    for s, a_BF in enumerate(activations):
        n_targets = len(targets(kind, s, n_layers))
        G_BC = G_BSD[:, s : s + n_targets].flatten(1)
        expected = {name: torch.zeros_like(getattr(weights, name)[s]) for name in ("W_enc", "b_enc", "W_dec")}
        for b, f in a_BF.nonzero().tolist():
            da = G_BC[b] @ weights.W_dec[s][f]
            expected["W_dec"][f] += a_BF[b, f] * G_BC[b]
            expected["W_enc"][f] += da * x_BSD[b, s]
            expected["b_enc"][f] += da
        for name, gradient in expected.items():
            close(found[f"{name}.{s}"], gradient)


# The terms of the loss (§5)


@each_kind
@pytest.mark.parametrize("activation", ["relu", "jumprelu"])
def test_penalty_is_a_mean_count_and_shrinks_decoder_rows(kind: str, activation: str) -> None:
    example = make(Case(kind, activation))
    λ, c = example.options["penalty"], example.settings.penalty_scale
    activations, norms = [a.detach() for a in activations_of(example)], decoder_norms(example)
    n_tokens, n_layers, _ = example.x_BSD.shape
    _, terms = example.loss()
    expected = sum(float(torch.tanh(c * n * a).sum().detach()) for a, n in zip(activations, norms, strict=True))
    close(terms["sparsity"], λ * expected / (n_tokens * n_layers))
    found = example.gradients("sparsity")
    for s, (a_BF, n_F) in enumerate(zip(activations, norms, strict=True)):
        sech2_BF = 1 - torch.tanh(c * n_F * a_BF).square()
        factor_F = (λ * c * a_BF * sech2_BF / (n_tokens * n_layers * n_F)).sum(0)
        close(found[f"W_dec.{s}"], factor_F[:, None] * example.weights.W_dec[s])
        close(found[f"b_enc.{s}"], (λ * c * n_F * sech2_BF / (n_tokens * n_layers) * (a_BF > 0)).sum(0))


def test_penalty_is_finite_for_features_that_write_nothing() -> None:
    example = make(Case("clt", "relu"))
    example.weights.W_dec = [torch.zeros_like(W).requires_grad_() for W in example.weights.W_dec]
    assert example.loss()[1]["sparsity"] == 0
    assert all(torch.isfinite(g).all() for g in example.gradients("sparsity").values())


@pytest.mark.parametrize("activation", ["topk", "batch_topk"])
def test_activations_with_a_budget_have_no_penalty(activation: str) -> None:
    assert make(Case("clt", activation)).loss()[1]["sparsity"] == 0


def with_dead(example: Example, count: int) -> Example:
    """The first `count` features of all layers together are dead."""
    sizes = [len(d) for d in example.options["dead"]]
    return replace(example, options=example.options | {"dead": list((torch.arange(sum(sizes)) < count).split(sizes))})


@each_served
def test_aux_counts_for_less_while_few_features_are_dead(kind: str, activation: str) -> None:
    """rho = dead / (S * aux_active) up to one; the rest is a normalised error of the residual."""
    example = make(Case(kind, activation))
    pre, n_layers = pre_activations(example), len(example.weights.b_dec)
    full = n_layers * example.settings.aux_active
    residual = None
    for count in (0, 1, full - 1, full, full + 1, 7 * n_layers):
        now = with_dead(example, count)
        if residual is None:
            ŷ = decode(now.weights, kind, activations_of(now)) + now.weights.b_dec
            if now.weights.W_skip is not None:
                ŷ = ŷ + torch.einsum("sij,bsj->bsi", now.weights.W_skip, now.x_BSD)
            residual = (now.y_BSD - ŷ).detach()
        kept = []
        for p, d in zip(pre, now.options["dead"], strict=True):
            alive = p.masked_fill(~d, 0).clamp_min(0)
            last = alive.sort(dim=1, descending=True).values[:, example.settings.aux_active - 1 :][:, :1]
            kept.append(alive * (alive >= last))
        error = (decode(now.weights, kind, kept) - residual).square().mean()
        close(now.loss()[1]["aux"], example.settings.aux_weight * min(1, count / full) * error)


@pytest.mark.parametrize("options", [{"dead": 0}, {"aux_active": 0}], ids=str)
def test_without_dead_features_or_without_aux_there_is_none(options: dict[str, int]) -> None:
    example = with_dead(make(Case("clt", "topk")), options.get("dead", 21))
    if "aux_active" in options:
        example = example.with_settings(aux_active=0)
    assert example.loss()[1]["aux"] == 0
    assert all(not g.any() for g in example.gradients("aux").values())


@each_kind
def test_aux_teaches_only_dead_features(kind: str) -> None:
    """The residual is a constant: no gradient reaches biases, the skip matrix, or live features that made it."""
    example = make(Case(kind, "batch_topk", n_tokens=63))
    found = example.gradients("aux")
    assert not found["b_dec"].any()
    assert "W_skip" not in found or not found["W_skip"].any()
    for s, dead in enumerate(example.options["dead"]):
        for name in ("W_enc", "b_enc", "W_dec"):
            gradient = found[f"{name}.{s}"].reshape(len(dead), -1)
            assert not gradient[~dead].any()
            assert gradient[dead].any(1).all() or name != "W_dec" or int(dead.sum()) > 2


def test_aux_gradients_are_those_of_finite_differences() -> None:
    example = make(Case("clt", "batch_topk", n_layers=2, n_tokens=3, n_features=4, width=3, dead="all"))
    residual = torch.randn(3, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    leaves = [*example.weights.W_enc, *example.weights.b_enc, *example.weights.W_dec]

    def value(*tensors: Tensor) -> Tensor:
        weights = Weights(list(tensors[:2]), list(tensors[2:4]), list(tensors[4:]), example.weights.b_dec)
        pre = pre_activations(replace(example, weights=weights))
        return aux(weights, "clt", example.settings, pre, example.options["dead"], residual)

    assert torch.autograd.gradcheck(value, tuple(leaves))


CUTS: dict[str, Callable[[Example, int, float], Tensor]] = {
    "relu": lambda example, s, norm: torch.zeros(len(example.weights.W_enc[s])),
    "topk": lambda example, s, norm: torch.zeros(len(example.weights.W_enc[s])),
    "jumprelu": lambda example, s, norm: example.weights.log_threshold[s].exp(),  # type: ignore[index]
    "batch_topk": lambda example, s, norm: example.options["running_cut"] / norm,
    "gated": lambda example, s, norm: torch.zeros(len(example.weights.W_enc[s])),
    "switch": lambda example, s, norm: torch.zeros(len(example.weights.W_enc[s])),
}
MATCHED = [(kind, activation) for kind, activation in SERVED if kind != "sae" and activation != "gated"]


@each_served
def test_pre_activation_loss_measures_how_far_dead_features_are_from_firing(kind: str, activation: str) -> None:
    example = make(Case(kind, activation, n_tokens=63))
    pre, norms = pre_activations(example), decoder_norms(example)
    n_tokens, n_layers, _ = example.x_BSD.shape
    scale = example.settings.pre_activation_weight / (n_tokens * n_layers)
    found, expected = example.gradients("pre_activation"), 0.0
    for s, dead in enumerate(example.options["dead"]):
        short_BF = (CUTS[activation](example, s, norms[s]) - pre[s]).clamp_min(0) * dead
        expected += float((scale * short_BF * norms[s]).sum().detach())
        close(found[f"b_enc.{s}"], -scale * ((short_BF > 0) * norms[s]).sum(0))
        assert not found[f"W_dec.{s}"].any()  # norms are constants here
        assert "log_threshold.0" not in found or not found[f"log_threshold.{s}"].any()  # so are thresholds
    close(example.loss()[1]["pre_activation"], expected)


def test_pre_activation_gradients_are_those_of_finite_differences() -> None:
    example = make(Case("clt", "batch_topk", n_layers=2, n_tokens=3, n_features=4, width=3, dead="all", seed=1))
    norms = decoder_norms(example)

    def value(*tensors: Tensor) -> Tensor:
        weights = replace(example.weights, W_enc=list(tensors[:2]), b_enc=list(tensors[2:]))
        pre = pre_activations(replace(example, weights=weights))
        return pre_activation_loss(weights, example.settings, pre, norms, [2, 1], example.options["dead"], 0.3)

    assert torch.autograd.gradcheck(value, (*example.weights.W_enc, *example.weights.b_enc))


def test_a_feature_that_writes_nothing_is_as_far_from_firing_as_the_cut() -> None:
    """theta_f = cut / n_f grows without bound as n_f falls, but theta_f * n_f is the cut."""
    example = make(Case("plt", "batch_topk", dead="all"))
    example.weights.W_dec = [torch.zeros_like(W).requires_grad_() for W in example.weights.W_dec]
    expected = example.settings.pre_activation_weight * 7 * example.options["running_cut"]
    close(example.loss()[1]["pre_activation"], expected)
    assert all(not g.any() for g in example.gradients("pre_activation").values())


@pytest.mark.parametrize(("kind", "activation"), MATCHED, ids=["-".join(pair) for pair in MATCHED])
def test_jacobian_is_the_derivative_of_a_layers_own_prediction(kind: str, activation: str) -> None:
    """One layer, so that a small step of the input changes nothing but its own prediction; the active set does not change."""
    example = make(Case(kind, activation, n_layers=1))
    v, step = example.options["direction_BSD"], 1e-7

    def prediction(x_BSD: Tensor) -> Tensor:
        moved = replace(example, x_BSD=x_BSD)
        ŷ = decode(moved.weights, kind, activations_of(moved))
        return ŷ if moved.weights.W_skip is None else ŷ + torch.einsum("sij,bsj->bsi", moved.weights.W_skip, x_BSD)

    derivative = (prediction(example.x_BSD + step * v) - prediction(example.x_BSD - step * v)) / (2 * step)
    matched = replace(example, options=example.options | {"derivative_BSD": derivative.detach()})
    assert matched.loss()[1]["jacobian"].detach() < 1e-12
    assert example.loss()[1]["jacobian"].detach() > 1e-3


@pytest.mark.parametrize("kind", ["plt", "skip", "clt"])
def test_jacobian_formula(kind: str) -> None:
    """Own layer only, also for a clt; weighted by the scale of each layer."""
    example = make(Case(kind, "jumprelu"))
    weights, (n_layers, width) = example.weights, example.weights.b_dec.shape
    v, u = example.options["direction_BSD"], example.options["derivative_BSD"]
    expected, activations = 0.0, activations_of(example)
    for b in range(len(v)):
        for s in range(n_layers):
            j = torch.zeros(width, dtype=torch.float64)
            if weights.W_skip is not None:
                j += weights.W_skip[s] @ v[b, s]
            for f in activations[s][b].nonzero().flatten().tolist():
                j += (weights.W_enc[s][f] @ v[b, s]) * weights.W_dec[s][f, :width]
            scale = float(example.options["derivative_scale_S"][s])
            expected += float((j - u[b, s]).square().sum().detach()) / (scale * n_layers * len(v))
    close(example.loss()[1]["jacobian"], example.settings.jacobian_weight * expected)
    assert not any(g.any() for name, g in example.gradients("jacobian").items() if name.startswith("b_"))


def test_a_dictionary_without_features_misses_all_of_the_jacobian() -> None:
    """U is the mean square of u', so that predicting zero costs the weight of the term."""
    example = make(Case("plt", "topk", pattern="none"))
    u = example.options["derivative_BSD"]
    term = jacobian(
        example.weights,
        example.settings,
        activations_of(example),
        example.options["direction_BSD"],
        u,
        u.square().sum(2).mean(0),
    )
    close(term, example.settings.jacobian_weight)


# Contradictions


def test_jumprelu_without_thresholds_is_refused() -> None:
    example = make(Case("clt", "relu")).with_settings(activation="jumprelu")
    with pytest.raises(InputError, match="log_threshold is None"):
        example.loss()


def test_jacobian_matching_without_derivatives_is_refused() -> None:
    example = make(Case("clt", "relu"))
    example.options["derivative_BSD"] = None
    with pytest.raises(InputError, match=r"jacobian_weight is 0\.1"):
        example.loss()


def test_cases_hold_what_their_patterns_promise() -> None:
    for activation in ACTIVATIONS:
        none = activations_of(make(Case("sae", activation, pattern="none")))
        assert not any(a.any() for a in none)
        if activation == "switch":  # of a token, one expert's features at most
            continue
        every = activations_of(make(Case("clt", activation, pattern="all")))
        hot = activations_of(make(Case("clt", activation, n_tokens=63, pattern="hot")))
        assert all((a > 0).all() for a in every)
        assert all((a > 0).all(0).sum() == 1 for a in hot)
    assert math.prod(make(Case("clt", pattern="repeated", n_tokens=63)).x_BSD.unique(dim=0).shape) == 2 * 3 * 6
