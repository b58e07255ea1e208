"""What heads do to the loss on a text that repeats itself: the loss on the second copy with them, and without.

Without: what the head gives (`attn.hook_z`, before the output projection) is zero at all positions, or its mean over all
positions of the sequences. All the rest of the model reacts.

Letters: N sequences, T tokens of a sequence, n tokens of a block, C groups of heads in a pass, H heads, d d_head, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from circuit_tracer.attention.pattern_scores import rows_at_once
from circuit_tracer.attention.sequences import Repeated
from circuit_tracer.errors import InputError, NumericalError, shortened
from circuit_tracer.models.capture import logits_at
from circuit_tracer.models.indices import Head, require_head
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.models.run import ModelRun, Place, Visit
from circuit_tracer.progress import Progress, silent

How = Literal["zero", "mean"]
LOGITS_AT_ONCE = 2**26  # numbers


@dataclass(frozen=True)
class Losses:
    """Next-token losses in nats, means over sequences and positions.

    Attributes:
        first: Of the whole model on the first copy.
        second: Of the whole model on the second copy.
        without: On the second, one for each group of heads that was taken away.
        first_without: On the first, where nothing can be copied, so that what changes there too is more than a loss of
            copying.
    """

    first: float
    second: float
    without: Tensor  # (number of groups,) float64
    first_without: Tensor

    @property
    def change(self) -> Tensor:
        """What each group's absence adds to the loss on the second copy."""
        return self.without - self.second

    @property
    def first_change(self) -> Tensor:
        """The same on the first copy."""
        return self.first_without - self.first


def repeated_losses(
    parts: ModelParts,
    drawn: Repeated,
    groups: Sequence[Iterable[Head]],
    how: How = "zero",
    batch_tokens: int = 2048,
    progress: Progress = silent,
) -> Losses:
    """Losses on sequences that end in a block of n tokens said twice.

    A copy's loss is that of its tokens but the first, which nothing foretells. groups: heads that are taken away together, one
    pass over the sequences for each; as many groups share a pass as batch_tokens hold, which does not change the result.
    Raises InputError for a head that does not exist and NumericalError where a loss is not finite.
    """
    ids_NT, block = drawn.ids_NT, drawn.block
    chosen = [checked_heads(parts, group) for group in groups]
    rows = rows_at_once(parts, ids_NT.shape[1], batch_tokens)
    chunks = ids_NT.split(rows)
    given = _means(parts, chunks, sorted({head for group in chosen for head in group}), how)
    found = [_copy_losses(parts, chunks, block, [[]], given)]
    at_once = max(1, rows // len(ids_NT))
    for start in range(0, len(chosen), at_once):
        found.append(_copy_losses(parts, chunks, block, chosen[start : start + at_once], given))
        progress("ablating heads", min(start + at_once, len(chosen)), len(chosen))
    losses = torch.cat(found)
    if not bool(losses.isfinite().all()):
        raise NumericalError(
            "losses are not finite. Check the model's weights, or load it in float32 instead of float16."
        )
    return Losses(float(losses[0, 0]), float(losses[0, 1]), losses[1:, 1], losses[1:, 0])


def checked_heads(parts: ModelParts, group: Iterable[Head]) -> list[Head]:
    """(layer, head) pairs in order, each once. Raises InputError for what is none, or does not exist."""
    n_layers, n_heads = len(parts.layers), parts.config.n_heads
    try:
        return sorted({require_head(layer, head, n_layers, n_heads) for layer, head in group})
    except (TypeError, ValueError) as error:
        raise (
            error
            if isinstance(error, InputError)
            else InputError(f"heads are {shortened(group)}; expected (layer, head) pairs, such as [(5, 1), (7, 10)]")
        ) from error


def _means(parts: ModelParts, chunks: Sequence[Tensor], heads: list[Head], how: How) -> dict[Head, Tensor]:
    """What stands in for the outputs (d,) of heads that are taken away."""
    n_heads, sums = parts.config.n_heads, dict[int, Tensor]()
    if how == "zero":
        zero = torch.zeros(parts.config.d_head, device=parts.device)
        return dict.fromkeys(heads, zero)

    def visit(layer: int, z_NTZ: Tensor) -> None:
        sums[layer] = sums.get(layer, 0) + z_NTZ.to(parts.compute_dtype).sum((0, 1))

    visits: dict[Place, Visit] = {("attn.hook_z", layer): visit for layer, _ in heads}
    for ids in chunks:
        ModelRun(parts, visits)(ids)
    n_tokens = sum(ids.numel() for ids in chunks)
    return {(layer, head): sums[layer].unflatten(0, (n_heads, -1))[head] / n_tokens for layer, head in heads}


def _copy_losses(
    parts: ModelParts, chunks: Sequence[Tensor], block: int, groups: list[list[Head]], given: dict[Head, Tensor]
) -> Tensor:
    """(C, 2) float64: the losses on the two copies without each group."""
    n_heads, n_groups = parts.config.n_heads, len(groups)
    of_layer: dict[int, list[tuple[int, int]]] = {}  # group, head
    for number, group in enumerate(groups):
        for layer, head in group:
            of_layer.setdefault(layer, []).append((number, head))

    def visit(layer: int, z_BTZ: Tensor) -> Tensor:
        z: Tensor = z_BTZ.clone().unflatten(0, (n_groups, -1)).unflatten(-1, (n_heads, -1))  # (C, N, T, H, d)
        for number, head in of_layer[layer]:
            z[number, :, :, head] = given[layer, head].to(z.dtype)
        return z.flatten(-2).flatten(0, 1)

    run = ModelRun(parts, {("attn.hook_z", layer): visit for layer in of_layer})
    found: list[Tensor] = []
    for ids_NT in chunks:
        ids_BT = ids_NT.repeat(n_groups, 1).to(parts.device)
        final_BTD, second = run(ids_BT).final, ids_NT.shape[1] - block
        losses = [_losses(parts, final_BTD, ids_BT, start, block) for start in (second - block, second)]
        found.append(torch.stack(losses, dim=1).unflatten(0, (n_groups, -1)))  # (C, N, 2)
    return torch.cat(found, dim=1).mean(1)


def _losses(parts: ModelParts, final_BTD: Tensor, ids_BT: Tensor, start: int, block: int) -> Tensor:
    """Mean loss (B,) float64 of the block that begins at `start`, of all its tokens but the first."""
    final_nD = final_BTD[:, start : start + block - 1].flatten(0, 1)
    target_n = ids_BT[:, start + 1 : start + block].flatten()
    rows = max(1, LOGITS_AT_ONCE // parts.config.d_vocab)
    losses = [
        torch.nn.functional.cross_entropy(logits_at(parts, final), target, reduction="none")
        for final, target in zip(final_nD.split(rows), target_n.split(rows), strict=True)
    ]
    of_all: Tensor = torch.cat(losses).double().cpu().unflatten(0, (len(ids_BT), -1))
    return of_all.mean(1)
