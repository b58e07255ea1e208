"""What the transcoder is trained and measured on: the distinct contexts of some statements, with what the MLPs do there.

A context is a token with all before it. Letters: L layers, N contexts, S statements, B rows of a pass, P positions, D d_model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from circuit_tracer.demo.capture import mlp_activations

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

ROWS = 512  # statements of a pass


@dataclass(frozen=True)
class Contexts:
    """MLP inputs and outputs (L, N, D) of N contexts.

    ``tokens``: the ids up to and with the context's own; ``count_N``: how often each occurs in the statements.
    """

    x_LND: Tensor
    y_LND: Tensor
    count_N: Tensor
    tokens: list[tuple[int, ...]]


def collect(model: LlamaForCausalLM, ids_SP: Tensor, stop: set[int]) -> Contexts:
    """The contexts of ``ids_SP``, each once. Position 0 and the tokens in ``stop`` (end, padding) are left out."""
    first, count = _distinct(ids_SP, stop)
    x_LND, y_LND = _activations(model, ids_SP, first, lambda rows_BPD: rows_BPD)
    counts = torch.tensor([count[tokens] for tokens in first], dtype=torch.float32)
    return Contexts(x_LND, y_LND, counts, list(first))


def with_jittered(
    model: LlamaForCausalLM, ids_SP: Tensor, stop: set[int], jitter: float, copies: int, seed: int
) -> Contexts:
    """The contexts of ``ids_SP`` and ``copies`` of each in which every token's embedding is moved a little.

    A move is Gaussian, its expected length uniform between 0 and ``jitter`` times the length of an embedding row; the MLPs'
    inputs and outputs are the model's own for the moved embeddings. Words that the statements do not hold lie near those
    that they do, so that a transcoder trained on these contexts is right about more than the words it has seen.
    """
    plain = collect(model, ids_SP, stop)
    first, _ = _distinct(ids_SP, stop)
    chance = torch.Generator().manual_seed(seed)
    reach = jitter * float(model.model.embed_tokens.weight.detach().norm(dim=1).median())

    def moved(rows_BPD: Tensor) -> Tensor:
        length_BP1 = reach * torch.rand(*rows_BPD.shape[:2], 1, generator=chance)
        move_BPD: Tensor = length_BP1 * torch.randn(rows_BPD.shape, generator=chance) / rows_BPD.shape[2] ** 0.5
        return rows_BPD + move_BPD

    parts = [(plain.x_LND, plain.y_LND)]
    parts += [_activations(model, ids_SP, first, moved) for _ in range(copies)]
    x_LND, y_LND = (torch.cat(side, 1) for side in zip(*parts, strict=True))
    return Contexts(x_LND, y_LND, plain.count_N.repeat(copies + 1), plain.tokens * (copies + 1))


def _distinct(
    ids_SP: Tensor, stop: set[int]
) -> tuple[dict[tuple[int, ...], tuple[int, int]], Counter[tuple[int, ...]]]:
    """Where each context first stands (statement, position), and how often it occurs."""
    first: dict[tuple[int, ...], tuple[int, int]] = {}
    count: Counter[tuple[int, ...]] = Counter()
    for row, ids in enumerate(ids_SP.tolist()):
        for position in range(1, len(ids)):
            if ids[position] in stop:
                break
            context = tuple(ids[: position + 1])
            first.setdefault(context, (row, position))
            count[context] += 1
    return first, count


@torch.no_grad()
def _activations(
    model: LlamaForCausalLM,
    ids_SP: Tensor,
    first: dict[tuple[int, ...], tuple[int, int]],
    change: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """MLP inputs and outputs (L, N, D) at those places, with embedding rows (B, P, D) changed by ``change``."""
    rows_N, positions_N = torch.tensor(list(first.values())).T
    x_parts, y_parts = [], []
    for start in range(0, len(ids_SP), ROWS):
        inside_N = (rows_N >= start) & (rows_N < start + ROWS)
        embedded_BPD = change(model.model.embed_tokens(ids_SP[start : start + ROWS]))
        x_LBPD, y_LBPD = mlp_activations(model, embedded_BPD)
        row_n, position_n = rows_N[inside_N] - start, positions_N[inside_N]
        x_parts.append(x_LBPD[:, row_n, position_n])
        y_parts.append(y_LBPD[:, row_n, position_n])
    return torch.cat(x_parts, 1), torch.cat(y_parts, 1)
