"""Cases to trace: one tiny random model and transcoder of every kind, in float64 unless asked otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.graph.graph import Graph
from circuit_tracer.models.parts import ModelParts, bind
from circuit_tracer.models.verify import verify
from circuit_tracer.replacement_model import ReplacementModel
from tests.support.tiny import ARCHITECTURES, tiny_model, tiny_transcoder

INPUT_HOOKS = ("hook_resid_mid", "ln2.hook_normalized", "mlp.hook_in")
OUTPUT_HOOKS = ("hook_mlp_out", "mlp.hook_out")
ACTIVATIONS = ("relu", "jump_relu", "topk")
IDS = torch.tensor([3, 17, 5, 17, 40, 8])


@dataclass(frozen=True)
class Case:
    """What to build. `olmo2` has no norm before its MLP, so it has no `ln2.hook_normalized`."""

    architecture: str
    kind: str = "clt"
    skip: bool = False
    input_hook: str = "hook_resid_mid"
    output_hook: str = "hook_mlp_out"
    activation: str = "relu"

    def __str__(self) -> str:
        skip = "skip" if self.skip else "noskip"
        return "-".join((self.architecture, self.kind, skip, self.input_hook, self.output_hook, self.activation))

    @property
    def exists(self) -> bool:
        return not (self.architecture == "olmo2" and self.input_hook == "ln2.hook_normalized")


def rotation() -> list[Case]:
    """Every architecture with every pair of hooks; kind, skip and activation take turns so that all of them meet."""
    cases = []
    for a, architecture in enumerate(ARCHITECTURES):
        for i, input_hook in enumerate(INPUT_HOOKS):
            for o, output_hook in enumerate(OUTPUT_HOOKS):
                turn = a + 2 * i + o
                kind, activation = ("clt", "plt")[turn % 2], ACTIVATIONS[(a + i + o) % 3]
                cases.append(Case(architecture, kind, turn // 2 % 2 == 0, input_hook, output_hook, activation))
    return [case for case in cases if case.exists]


def one_each() -> list[Case]:
    """One case an architecture, all kinds and hooks among them."""
    return [[case for case in rotation() if case.architecture == name][a % 4] for a, name in enumerate(ARCHITECTURES)]


@cache
def _bound(architecture: str, dtype: torch.dtype, seed: int) -> ModelParts:
    """A model, verified once: most of what `ReplacementModel.from_model` takes, and the same for all transcoders."""
    parts = bind(tiny_model(architecture, dtype, seed), architecture)
    verify(parts)
    return parts


@lru_cache(maxsize=256)
def build(case: Case, dtype: torch.dtype = torch.float64, n_features: int = 10, seed: int = 0) -> ReplacementModel:
    """The case's model, which its other transcoders share, with its transcoders. For tests that change neither."""
    transcoders = tiny_transcoder(
        case.kind,
        dtype,
        seed,
        n_features=n_features,
        activation=case.activation,
        skip=case.skip,
        input_hook=case.input_hook,
        output_hook=case.output_hook,
    )
    return ReplacementModel(_bound(case.architecture, dtype, seed), transcoders, None)


def assert_equal(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    """Equal to `tolerance`, relative to each entry or to the largest one if that is above 1."""
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * scale)


def assert_same_graph(found: Graph, reference: Any, tolerance: float = 1e-9) -> None:
    """A graph of the engine equals a `ReferenceGraph`: nodes, edges, and everything its rows must add up to."""
    assert torch.equal(found.active_features, reference.active)
    assert torch.equal(found.selected_features, reference.selected)
    assert found.balance is not None
    assert_equal(found.activation_values, reference.activation, tolerance)
    assert_equal(found.adjacency_matrix, reference.adjacency, tolerance)
    assert_equal(found.balance.bias, reference.bias, tolerance)
    assert_equal(found.balance.pre_activation, reference.value, tolerance)
    assert_equal(found.balance.unselected, reference.unselected, tolerance)
    assert_equal(found.logit_probabilities, reference.weight, tolerance)
