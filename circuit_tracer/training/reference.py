"""The whole loss of training, once, densely: plain torch and autograd, no kernel, no hand-written backward pass.

This file is the documentation of what a training step computes, and what the sparse step is tested against. It reads from
top to bottom in the order of README.md: pre-activations and decoders (§3), activations (§4, each defined by its rule in
`sparsity/`), the terms of the loss (§5); their gradients (§6) are autograd's. What §4 and §5 call a constant is detached
here, and nothing else is.

Every array is dense, (B, F) a source, and everything runs in the dtype of the weights (float64 in the tests). Inputs and
outputs are in normalised space (§2).

Letters: S source layers (and as many targets), T_s layers that source s writes to, B tokens, F features of a layer, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from circuit_tracer.errors import InputError
from circuit_tracer.training.config.schema import SparsitySection
from circuit_tracer.training.sparsity import rule_of
from circuit_tracer.training.sparsity.base import Dense
from circuit_tracer.training.sparsity.ranking import keep_largest


@dataclass
class Weights:
    """The parameters of a dictionary, by source layer. Whether they need gradients is the caller's choice."""

    W_enc: list[Tensor]  # (F, D)
    b_enc: list[Tensor]  # (F,)
    W_dec: list[Tensor]  # (F, T_s * D): what a feature writes to each of its targets, side by side
    b_dec: Tensor  # (S, D)
    W_skip: Tensor | None = None  # (S, D, D): y_t += W_skip[t] x_t
    log_threshold: list[Tensor] | None = None  # (F,) natural logarithms of the JumpReLU thresholds
    log_scale: list[Tensor] | None = None  # (F,) of a gated dictionary: logarithms of magnitude over gate weights
    b_mag: list[Tensor] | None = None  # (F,) and biases of magnitudes
    W_router: Tensor | None = None  # (S, N, D) of a switch's N experts
    b_router: Tensor | None = None  # (S, N)


# The loss


def loss(
    weights: Weights,
    kind: str,
    settings: SparsitySection,
    x_BSD: Tensor,
    y_BSD: Tensor,
    *,
    active: float,
    penalty: float,
    dead: Sequence[Tensor],
    running_cut: float,
    direction_BSD: Tensor | None = None,
    derivative_BSD: Tensor | None = None,
    derivative_scale_S: Tensor | None = None,
    band: Sequence[Tensor] | None = None,
    prefixes: Sequence[int] = (),
) -> tuple[Tensor, dict[str, Tensor]]:
    """L = L_rec + L_sparse + L_gate + L_balance + L_aux + L_pre + L_jac (README.md §5), and its terms by name.

    kind: clt, plt, skip or sae (§1). x_BSD, y_BSD: inputs and outputs in normalised space. active: k now, features a token
    and layer. penalty: lambda now. dead: (F,) bool a source, the mask from before the step (§7). running_cut: the mean tau
    of earlier batches (batch_topk). direction_BSD, derivative_BSD, derivative_scale_S: v', u' and U of Jacobian matching.
    band: (B, F) a source, the weights (0, or 1/p) of near misses in the subsampled band of the JumpReLU; None: 1 for all.
    prefixes: of Matryoshka at this step, besides the whole dictionary.
    """
    pre = [x_BSD[:, s] @ W.T + b for s, (W, b) in enumerate(zip(weights.W_enc, weights.b_enc, strict=True))]
    norms = [torch.linalg.vector_norm(W, dim=1) for W in weights.W_dec]
    reach = [len(targets(kind, source, len(pre))) for source in range(len(pre))]
    routed = router(weights, x_BSD)
    activations = activate(weights, settings, pre, norms, reach, active, band, routed)
    constant_BSD = weights.b_dec + skip(weights, x_BSD)
    prediction_BSD = constant_BSD + decode(weights, kind, activations)

    terms = {
        "reconstruction": reconstruction(weights, kind, activations, constant_BSD, y_BSD, prefixes),
        "sparsity": sparsity(settings, activations, pre, norms, penalty),
        "gate": gate(weights, kind, settings, pre, constant_BSD, y_BSD),
        "balance": balance(settings, routed),
        "aux": aux(weights, kind, settings, pre, dead, residual_BSD=(y_BSD - prediction_BSD).detach()),
        "pre_activation": pre_activation(weights, settings, pre, norms, reach, dead, running_cut),
        "jacobian": jacobian(weights, settings, activations, direction_BSD, derivative_BSD, derivative_scale_S),
    }
    return torch.stack(list(terms.values())).sum(), terms


# §3: who writes where


def targets(kind: str, source: int, n_layers: int) -> range:
    """The layers that a source writes to."""
    return range(source, n_layers if kind == "clt" else source + 1)


def decode(weights: Weights, kind: str, values: Sequence[Tensor]) -> Tensor:
    """What features with these values, (B, F) a source, write to all layers: (B, S, D), without biases and skip."""
    n_layers, width = weights.b_dec.shape
    written = [values[0].new_zeros(values[0].shape[0], width) for _ in range(n_layers)]
    for source, value_BF in enumerate(values):
        for offset, target in enumerate(targets(kind, source, n_layers)):
            W_FD = weights.W_dec[source][:, offset * width : (offset + 1) * width]
            written[target] = written[target] + value_BF @ W_FD
    return torch.stack(written, dim=1)


def skip(weights: Weights, x_BSD: Tensor) -> Tensor:
    """W_skip[t] x_t of every token and layer: (B, S, D); nothing where there is no skip connection."""
    return torch.zeros_like(x_BSD) if weights.W_skip is None else torch.einsum("sij,bsj->bsi", weights.W_skip, x_BSD)


# §4: activations


def router(weights: Weights, x_BSD: Tensor) -> list[Tensor]:
    """Probabilities of a switch's experts, (B, N) a source; none of other rules."""
    if weights.W_router is None or weights.b_router is None:
        return []
    logit_BSN = torch.einsum("bsd,snd->bsn", x_BSD, weights.W_router) + weights.b_router
    return list(torch.softmax(logit_BSN, dim=2).unbind(1))


def activate(
    weights: Weights,
    settings: SparsitySection,
    pre: Sequence[Tensor],
    norms: Sequence[Tensor],
    n_targets: Sequence[int],
    active: float,
    band: Sequence[Tensor] | None = None,
    routed: Sequence[Tensor] = (),
) -> list[Tensor]:
    """a = activation(pre), (B, F) a source, as the rule defines it. Norms only rank; no gradient reaches them."""
    named = {name: getattr(weights, name) or [] for name in ("b_enc", "log_scale", "b_mag")}
    own = [{name: held[s] for name, held in named.items() if held} for s in range(len(pre))]
    theta = thresholds(weights, settings)
    return rule_of(settings).activate(Dense(pre, norms, n_targets, theta, active, band, own, routed))


def thresholds(weights: Weights, settings: SparsitySection) -> list[Tensor]:
    """theta = exp(log theta), (F,) a source; zeros for a rule that learns none."""
    if not rule_of(settings).learns_thresholds:
        return [torch.zeros_like(b) for b in weights.b_enc]
    if weights.log_threshold is None:
        raise InputError(
            f"{settings.activation} needs thresholds, but weights.log_threshold is None; set it to (F,) a source"
        )
    return [log_theta.exp() for log_theta in weights.log_threshold]


# §5: the terms of the loss


def squared_error(prediction_BSD: Tensor, y_BSD: Tensor) -> Tensor:
    """1/S sum_t 1/(B D) sum_b |prediction - y|^2: since E|y|^2 = D, a mean of normalised errors."""
    return (prediction_BSD - y_BSD).square().mean()


def reconstruction(
    weights: Weights,
    kind: str,
    activations: Sequence[Tensor],
    constant_BSD: Tensor,
    y_BSD: Tensor,
    prefixes: Sequence[int],
) -> Tensor:
    """The mean over prefixes (Matryoshka), of which the whole dictionary is the last, of their squared errors."""
    n_features = activations[0].shape[1]
    errors = []
    for end in [*prefixes, n_features]:
        first = torch.arange(n_features) < end
        written_BSD = decode(weights, kind, [a * first for a in activations])
        errors.append(squared_error(constant_BSD + written_BSD, y_BSD))
    return torch.stack(errors).mean()


def sparsity(
    settings: SparsitySection, activations: list[Tensor], pre: list[Tensor], norms: list[Tensor], penalty: float
) -> Tensor:
    """lambda / (B S) sum tanh(c n_f a), through a and through n_f, for rules that have no k; of gates n_f max(pre, 0)."""
    rule = rule_of(settings)
    if not rule.has_penalty:
        return activations[0].new_zeros(())
    if rule.gated:
        counts = [(n * torch.relu(p)).sum() for p, n in zip(pre, norms, strict=True)]
    else:
        counts = [torch.tanh(settings.penalty_scale * n * a).sum() for a, n in zip(activations, norms, strict=True)]
    return penalty * torch.stack(counts).sum() / (activations[0].shape[0] * len(activations))


def gate(
    weights: Weights, kind: str, settings: SparsitySection, pre: Sequence[Tensor], constant_BSD: Tensor, y_BSD: Tensor
) -> Tensor:
    """|y^(gates) - y|^2: open gates reconstruct through decoders, biases and skip that are constants."""
    if not rule_of(settings).gated:
        return y_BSD.new_zeros(())
    frozen = replace(weights, W_dec=[W.detach() for W in weights.W_dec])
    return squared_error(constant_BSD.detach() + decode(frozen, kind, [torch.relu(p) for p in pre]), y_BSD)


def balance(settings: SparsitySection, routed: Sequence[Tensor]) -> Tensor:
    """w N / S sum over sources and experts of the share of tokens an expert gets and its mean probability."""
    losses = []
    for share_BN in routed:
        n_experts = share_BN.shape[1]
        load_N = torch.nn.functional.one_hot(share_BN.argmax(1), n_experts).to(share_BN).mean(0)
        losses.append(settings.balance_weight * n_experts * (load_N * share_BN.mean(0)).sum())
    return torch.stack(losses).mean() if losses else torch.zeros(())


def aux(
    weights: Weights,
    kind: str,
    settings: SparsitySection,
    pre: Sequence[Tensor],
    dead: Sequence[Tensor],
    residual_BSD: Tensor,
) -> Tensor:
    """alpha rho |r^ - r|^2: the best of the dead features learn what is missing. rho: fewer dead features count less."""
    if settings.aux_active == 0:
        return residual_BSD.new_zeros(())
    n_dead = sum(int(d.sum()) for d in dead)
    rho = min(1.0, n_dead / (len(dead) * settings.aux_active))
    kept = [keep_largest(p, (p > 0) & d, settings.aux_active) for p, d in zip(pre, dead, strict=True)]
    repaired = decode(weights, kind, [p * keep for p, keep in zip(pre, kept, strict=True)])
    return settings.aux_weight * rho * squared_error(repaired, residual_BSD)


def pre_activation(
    weights: Weights,
    settings: SparsitySection,
    pre: Sequence[Tensor],
    norms: Sequence[Tensor],
    n_targets: Sequence[int],
    dead: Sequence[Tensor],
    running_cut: float,
) -> Tensor:
    """epsilon / (B S) sum over dead features of max(0, theta_f - pre) n_f: pushes them up towards firing.

    Written with scores, max(0, theta_f n_f - pre n_f), because for batch_topk theta_f n_f is the running cut itself.
    """
    constant = [n.detach() for n in norms]
    theta = [each.detach() for each in thresholds(weights, settings)]
    rule = rule_of(settings)
    cut = [rule.level(n, t, r, running_cut) for n, t, r in zip(constant, theta, n_targets, strict=True)]
    short = [(torch.relu(c - p * n) * d).sum() for p, n, c, d in zip(pre, constant, cut, dead, strict=True)]
    return settings.pre_activation_weight * torch.stack(short).sum() / (pre[0].shape[0] * len(pre))


def jacobian(
    weights: Weights,
    settings: SparsitySection,
    activations: Sequence[Tensor],
    direction_BSD: Tensor | None,
    derivative_BSD: Tensor | None,
    scale_S: Tensor | None,
) -> Tensor:
    """beta/S sum_s 1/B sum_b |j^ - u'|^2 / U_s: the active features also answer a small step v' as the true MLP does."""
    if settings.jacobian_weight == 0:
        return activations[0].new_zeros(())
    if direction_BSD is None or derivative_BSD is None or scale_S is None:
        raise InputError(
            f"jacobian_weight is {settings.jacobian_weight} but there are no derivatives to match; pass direction_BSD, "
            "derivative_BSD and derivative_scale_S, or set it to 0"
        )
    width = weights.b_dec.shape[1]
    answers = [
        (direction_BSD[:, s] @ weights.W_enc[s].T * (a > 0)) @ weights.W_dec[s][:, :width]
        for s, a in enumerate(activations)
    ]
    answer_BSD = torch.stack(answers, dim=1) + skip(weights, direction_BSD)
    error_BS = (answer_BSD - derivative_BSD).square().sum(2)
    return settings.jacobian_weight * (error_BS / scale_S).mean()
