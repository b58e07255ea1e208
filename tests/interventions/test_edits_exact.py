"""Constrained over all layers moves every feature and logit by exactly what the graph's edges say; batches share passes."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

from circuit_tracer import Graph, ReplacementModel, attribute
from circuit_tracer.interventions import CleanRun, Outcome, Semantics, apply_each, apply_edits, nodes_of, scale
from tests.support.tiny import ARCHITECTURES, tiny_model, tiny_transcoder

IDS = torch.tensor([1, 17, 4, 33, 17, 9])
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


def traced(architecture: str, dtype: torch.dtype, **transcoder: Any) -> tuple[ReplacementModel, Graph]:
    parts = tiny_model(architecture, dtype), tiny_transcoder(dtype=dtype, **transcoder)
    model = ReplacementModel.from_model(*parts, None, architecture)
    return model, attribute(IDS, model, max_n_logits=5, desired_logit_prob=1.0)


def check(graph: Graph, node: int, factor: float, outcome: Outcome, tolerance: float) -> None:
    column = graph.adjacency_matrix[:, node] * (factor - 1)
    features, layout = outcome.features, graph.nodes.layout
    assert features is not None
    rows = graph.active_features[graph.selected_features].tolist()
    where = [features.of(*row) for row in rows]
    limits = {"rtol": tolerance, "atol": tolerance * max(1.0, float(column.abs().max()))}
    torch.testing.assert_close((features.pre_after - features.pre_before)[where], column[layout.features], **limits)
    change = outcome.logit_change(softcap=False)
    torch.testing.assert_close((change - change.mean())[graph.logit_token_ids], column[layout.targets], **limits)


def some(graph: Graph, count: int = 5) -> list[int]:
    return torch.linspace(0, len(graph.selected_features) - 1, count).long().unique().tolist()


@pytest.mark.few
@pytest.mark.parametrize(
    ("architecture", "kind", "skip", "dtype"),
    # any two of these values meet
    list(product(ARCHITECTURES, ("clt", "plt"), (False, True), (torch.float64, torch.float32)))[::3],
    ids=str,
)
def test_edges_are_what_interventions_do(architecture: str, kind: str, skip: bool, dtype: torch.dtype) -> None:
    model, graph = traced(architecture, dtype, kind=kind, skip=skip)
    nodes = some(graph)
    experiments = [[scale(nodes_of(graph, [node]), -1.0)] for node in nodes]
    outcomes = apply_each(model, graph, experiments, "constrained", batch_size=3)
    for node, outcome in zip(nodes, outcomes, strict=True):
        check(graph, node, -1.0, outcome, TOLERANCE[dtype])


@pytest.mark.few
@pytest.mark.parametrize("output_hook", ["hook_mlp_out", "mlp.hook_out"])
@pytest.mark.parametrize("input_hook", ["hook_resid_mid", "ln2.hook_normalized", "mlp.hook_in"])
def test_at_every_hook(input_hook: str, output_hook: str) -> None:
    for activation in ("jump_relu", "topk"):
        hooks = {"input_hook": input_hook, "output_hook": output_hook}
        model, graph = traced("gemma2", torch.float64, skip=True, activation=activation, **hooks)
        for node in some(graph, 3):
            check(graph, node, 2.0, apply_edits(model, graph, scale(nodes_of(graph, [node]), 2), "constrained"), 1e-9)


SEMANTICS = [
    Semantics("constrained"),
    Semantics("constrained", range(1, 3), freeze_attention=False),
    Semantics("constrained", range(2), freeze_norms=True),
    Semantics("iterative"),
    Semantics("iterative", range(1, 2), freeze_attention=False),
    Semantics("direct"),
    Semantics("direct", freeze_attention=False),
    Semantics("direct", freeze_norms=True),
]


@pytest.mark.few
@pytest.mark.parametrize(
    ("architecture", "semantics"), list(product(("llama", "gemma3", "gpt_neox", "gpt_oss"), SEMANTICS)), ids=str
)
def test_a_batch_does_what_single_passes_do(architecture: str, semantics: Semantics) -> None:
    model, graph = traced(architecture, torch.float64, skip=True)
    experiments = [[scale(nodes_of(graph, nodes), 3.0)] for nodes in ([1], [40, 60], [80])]
    clean = CleanRun(model, IDS)
    together = apply_each(model, clean, experiments, semantics)
    for experiment, outcome in zip(experiments, together, strict=True):
        alone = apply_edits(model, clean, experiment, semantics)
        torch.testing.assert_close(outcome.logits, alone.logits)
        assert outcome.features is not None
        assert alone.features is not None
        for name in ("layer", "position", "feature_idx", "before", "after", "pre_after"):
            torch.testing.assert_close(getattr(outcome.features, name), getattr(alone.features, name))
