"""Autoencoders in the model: its stream replaced by their reconstruction, one layer at a time (README.md §6).

Letters: S layers of the dictionary, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from circuit_tracer.models.model_pass import Points
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.training.evaluation.passes import StandIn
from circuit_tracer.training.evaluation.replacement import MEAN, ZERO, compare
from circuit_tracer.training.evaluation.results import ModelItself, Replacement
from circuit_tracer.training.evaluation.sequences import Sequences
from circuit_tracer.training.evaluation.stand_ins import Constant, Splice
from circuit_tracer.transcoders.base import Transcoders

# Where what is written is the whole stream; at hook_resid_mid it is what the MLP reads, while the stream goes on.
WHOLE_STREAM = ("hook_resid_pre", "hook_resid_post")


@dataclass(frozen=True)
class Spliced:
    """By name of dictionary or ablation, one entry a layer; and the model itself."""

    model: ModelItself
    layers: dict[str, list[Replacement]] = field(default_factory=dict)


def splice(
    parts: ModelParts,
    dictionaries: Mapping[str, Transcoders],
    points: Points,
    mean_SD: Tensor,
    sequences: Sequences,
    batch_tokens: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Spliced:
    """Every autoencoder of each dictionary by itself, beside zero and mean ablation of the stream at the same place."""
    found: dict[str, list[Replacement]] = {name: [] for name in (*dictionaries, ZERO, MEAN)}
    for source, layer in enumerate(points.layers):
        stand_ins: dict[str, StandIn] = {name: Splice(one, source, layer) for name, one in dictionaries.items()}
        for name, vector_D in ((ZERO, torch.zeros_like(mean_SD[source])), (MEAN, mean_SD[source])):
            stand_ins[name] = Constant(vector_D.expand(layer + 1, -1), (layer,))
        there = {name: (points, one) for name, one in stand_ins.items()}
        comparison = compare(parts, there, sequences, batch_tokens)
        for name, one in comparison.results().items():
            found[name].append(one)
        progress(source + 1, len(points.layers))
    return Spliced(comparison.model(), found)
