"""The whole loss of training, once, densely: plain torch and autograd, no kernel, no hand-written backward pass.

This file is the documentation of what a training step computes, and what the sparse step is tested against. It reads from
top to bottom in the order of README.md: pre-activations and decoders (§3), activations (§4, each defined by its rule in
`sparsity/`), the five terms of the loss (§5); their gradients (§6) are autograd's. What §4 and §5 call a constant is detached
here, and nothing else is.

Every array is dense, (B, F) a source, and everything runs in the dtype of the weights (float64 in the tests). Inputs and
outputs are in normalised space (§2).

Letters: S source layers (and as many targets), T_s layers that source s writes to, B tokens, F features of a layer, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
) -> tuple[Tensor, dict[str, Tensor]]:
    """L = L_rec + L_sparse + L_aux + L_pre + L_jac (README.md §5), and its terms by name.

    kind: clt, plt, skip or sae (§1). x_BSD, y_BSD: inputs and outputs in normalised space. active: k now, features a token
    and layer. penalty: lambda now. dead: (F,) bool a source, the mask from before the step (§7). running_cut: the mean tau
    of earlier batches (batch_topk). direction_BSD, derivative_BSD, derivative_scale_S: v', u' and U of Jacobian matching.
    band: (B, F) a source, the weights (0, or 1/p) of near misses in the subsampled band of the JumpReLU; None: 1 for all.
    """
    pre = [x_BSD[:, s] @ W.T + b for s, (W, b) in enumerate(zip(weights.W_enc, weights.b_enc, strict=True))]
    norms = [torch.linalg.vector_norm(W, dim=1) for W in weights.W_dec]
    reach = [len(targets(kind, source, len(pre))) for source in range(len(pre))]
    activations = activate(weights, settings, pre, norms, reach, active, band)
    prediction_BSD = weights.b_dec + skip(weights, x_BSD) + decode(weights, kind, activations)

    terms = {
        "reconstruction": squared_error(prediction_BSD, y_BSD),
        "sparsity": sparsity(settings, activations, norms, penalty),
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


def activate(
    weights: Weights,
    settings: SparsitySection,
    pre: Sequence[Tensor],
    norms: Sequence[Tensor],
    n_targets: Sequence[int],
    active: float,
    band: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """a = activation(pre), (B, F) a source, as the rule defines it. Norms only rank; no gradient reaches them."""
    return rule_of(settings).activate(Dense(pre, norms, n_targets, thresholds(weights, settings), active, band))


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


def sparsity(settings: SparsitySection, activations: list[Tensor], norms: list[Tensor], penalty: float) -> Tensor:
    """lambda / (B S) sum tanh(c n_f a), through a and through n_f, for the activations that have no k."""
    if not rule_of(settings).has_penalty:
        return activations[0].new_zeros(())
    counts = [torch.tanh(settings.penalty_scale * n * a).sum() for a, n in zip(activations, norms, strict=True)]
    return penalty * torch.stack(counts).sum() / (activations[0].shape[0] * len(activations))


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
