"""Heads of a model, named and ranked."""

from __future__ import annotations

from torch import Tensor

from circuit_tracer.models.parts import ModelParts

Head = tuple[int, int]  # layer, head


def heads_of(parts: ModelParts) -> list[Head]:
    """All of a model."""
    return [(layer, head) for layer in range(parts.config.n_layers) for head in range(parts.config.n_heads)]


def head_name(head: Head) -> str:
    """Such as L5H3."""
    return "L{}H{}".format(*head)


def ranked(weight_LH: Tensor, count: int) -> list[Head]:
    """The heads of largest weight, largest first."""
    order = weight_LH.flatten().argsort(descending=True, stable=True)[:count].tolist()
    return [divmod(place, weight_LH.shape[1]) for place in order]
