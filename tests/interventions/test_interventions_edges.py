"""With everything frozen, an intervention moves pre-activations and logits exactly as the graph's edges say."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from circuit_tracer import Graph, ReplacementModel, attribute
from tests.support.tiny import ARCHITECTURES, tiny_model, tiny_transcoder

IDS = torch.tensor([1, 17, 4, 33, 17, 9])
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Case:
    """A traced prompt whose every active feature is a node."""

    model: ReplacementModel
    graph: Graph
    activations: Tensor
    logits: Tensor

    @classmethod
    def of(cls, architecture: str, **transcoder: Any) -> Case:
        model = ReplacementModel.from_model(tiny_model(architecture), tiny_transcoder(**transcoder), None, architecture)
        graph = attribute(IDS, model, max_n_logits=5, desired_logit_prob=1.0)
        with model.zero_softcap():
            logits, activations = model.get_activations(IDS, apply_activation_function=False)
        return cls(model, graph, activations, logits)

    def expected(self, node: int, factor: float) -> tuple[Tensor, Tensor]:
        """(change of each feature node's pre-activation, change of each target) when a feature is scaled."""
        column = self.graph.adjacency_matrix[:, node] * (factor - 1)
        layout = self.graph.nodes.layout
        return column[layout.features], column[layout.targets]

    def found(self, logits: Tensor, activations: Tensor) -> tuple[Tensor, Tensor]:
        layer, position, index = self.graph.active_features[self.graph.selected_features].T
        moved = (activations - self.activations)[layer, position, index]
        change = (logits - self.logits)[0, -1]
        return moved, (change - change.mean())[self.graph.logit_token_ids]

    def check(self, node: int, factor: float) -> None:
        layer, position, index = self.graph.active_features[self.graph.selected_features[node]].tolist()
        value = self.graph.activation_values[self.graph.selected_features[node]] * factor
        with self.model.zero_softcap():
            logits, activations = self.model.feature_intervention(
                IDS,
                [(layer, position, index, value)],
                constrained_layers=range(self.model.cfg.n_layers),
                apply_activation_function=False,
            )
        assert activations is not None
        for found, expected in zip(self.found(logits, activations), self.expected(node, factor), strict=True):
            torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


def _some_nodes(case: Case, count: int = 6) -> list[int]:
    n_nodes = len(case.graph.selected_features)
    return torch.linspace(0, n_nodes - 1, count).long().unique().tolist()


@pytest.mark.few
@pytest.mark.parametrize(("architecture", "kind"), list(product(ARCHITECTURES, ("clt", "plt"))))
def test_an_edge_is_the_intervention_it_describes(architecture: str, kind: str) -> None:
    case = Case.of(architecture, kind=kind)
    for node in _some_nodes(case):
        case.check(node, 3.0)


@pytest.mark.few
@pytest.mark.parametrize(
    ("architecture", "input_hook", "output_hook", "kind"),
    list(
        product(
            ("gemma2", "gpt2"),
            ("hook_resid_mid", "ln2.hook_normalized", "mlp.hook_in"),
            ("hook_mlp_out", "mlp.hook_out"),
            ("clt", "plt"),
        )
    ),
)
def test_at_every_hook_with_a_skip_connection(architecture: str, input_hook: str, output_hook: str, kind: str) -> None:
    case = Case.of(architecture, kind=kind, skip=True, input_hook=input_hook, output_hook=output_hook)
    for node in _some_nodes(case, 3):
        case.check(node, 0.0)


@pytest.mark.parametrize("activation", ["jump_relu", "topk"])
def test_other_activations(activation: str) -> None:
    case = Case.of("llama", activation=activation)
    for node in _some_nodes(case):
        case.check(node, -1.0)


def test_effects_of_several_features_add_up() -> None:
    case = Case.of("gemma3")
    nodes = _some_nodes(case, 4)
    rows = case.graph.active_features[case.graph.selected_features[nodes]].tolist()
    values = case.graph.activation_values[case.graph.selected_features[nodes]]
    with case.model.zero_softcap():
        logits, activations = case.model.feature_intervention(
            IDS,
            [(layer, position, index, 2 * value) for (layer, position, index), value in zip(rows, values, strict=True)],
            constrained_layers=range(3),
            apply_activation_function=False,
        )
    assert activations is not None
    expected = [case.expected(node, 2.0) for node in nodes]
    for which, found in enumerate(case.found(logits, activations)):
        torch.testing.assert_close(found, sum(each[which] for each in expected), rtol=TOLERANCE, atol=TOLERANCE)
