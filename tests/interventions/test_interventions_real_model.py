"""SmolLM2-135M-Instruct with small random transcoders (tests/support/real_models.py).

CIRCUIT_TRACER_TEST_MODELS=DIR pytest -m real_model tests/interventions
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.interventions import (
    Direction,
    Sampling,
    ablate,
    activation_patching,
    apply_each,
    attribution_patching,
    logit_difference,
    nodes_of,
    set_to,
    steer,
    validate,
)
from tests.support.real_models import real_model

pytestmark = [pytest.mark.real_model, pytest.mark.slow("passes of 30 layers in float64, many times over")]
PROMPT, OTHER = "The capital of France is", "The capital of Italy is"


def replacement(dtype: torch.dtype, **transcoder: Any) -> ReplacementModel:
    return real_model("smollm2", dtype, n_features=48, **transcoder)


@pytest.mark.parametrize("kind", ["clt", "plt"])
def test_edges_are_what_interventions_do(kind: str) -> None:
    model = replacement(torch.float64, kind=kind)
    graph = attribute(PROMPT, model, max_feature_nodes=60)
    layout, features = graph.nodes.layout, graph.active_features[graph.selected_features].tolist()
    nodes = torch.linspace(0, layout.n_features - 1, 5).long().tolist()
    watch = nodes_of(graph, range(layout.n_features))
    for node, outcome in zip(
        nodes,
        apply_each(model, graph, [[ablate(nodes_of(graph, [node]))] for node in nodes], "constrained", watch),
        strict=True,
    ):
        found, expected = outcome.features, -graph.adjacency_matrix[:, node]
        assert found is not None
        change = (found.pre_after - found.pre_before)[[found.of(*feature) for feature in features]]
        logits = outcome.logit_change(softcap=False)
        limits = {"rtol": 1e-8, "atol": 1e-8 * float(expected.abs().max())}
        torch.testing.assert_close(change, expected[layout.features], **limits)
        torch.testing.assert_close((logits - logits.mean())[graph.logit_token_ids], expected[layout.targets], **limits)


@pytest.mark.parametrize("kind", ["clt", "plt"])
def test_validation_in_float32(kind: str) -> None:
    model = replacement(torch.float32, kind=kind)
    graph = attribute(PROMPT, model, max_feature_nodes=10, max_n_logits=1)
    report = validate(graph, model, node_threshold=0.3, random_control=False)
    worst = report.graph.effects["constrained"].edges.worst
    assert worst is not None
    assert worst < 1e-4
    assert report.graph.circuit["live"].clean == pytest.approx(float(graph.logit_probabilities[0]), rel=1e-4)
    assert len(report.verdict) == 5


def test_steering_and_patching() -> None:
    model = replacement(torch.float32)
    generator = torch.Generator().manual_seed(0)
    changes = [Direction(10, torch.randn(576, generator=generator)), set_to((3, 5), 0.05, at="generated")]
    for sampling in (Sampling(6), Sampling(6, temperature=0.8, seed=2)):
        pieces: list[str] = []
        cached = steer(model, PROMPT, changes, sampling, on_text=pieces.append)
        plain = steer(model, PROMPT, changes, sampling, cache=False)
        assert cached.steered.text == plain.steered.text == "".join(pieces)
        assert cached.unsteered is not None
        assert plain.unsteered is not None
        assert cached.unsteered.text == plain.unsteered.text
    assert steer(model, PROMPT, [], Sampling(1)).steered.text == " Paris"
    metric = logit_difference(model, " Paris", " Rome")
    table = activation_patching(model, PROMPT, OTHER, metric, sites=["resid"], layers=[0, 15])
    country, last = 4, 5
    assert table.grid("resid")[0, country] == pytest.approx(1, abs=1e-3)
    assert table.grid("resid")[15, country] > 0.8
    assert abs(float(table.grid("resid")[0, last])) < 1e-3
    estimate = attribution_patching(model, PROMPT, OTHER, metric, sites=["resid"], layers=[15], steps=8)
    assert estimate.grid("resid")[15, country] > 0.3
