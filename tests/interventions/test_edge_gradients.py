"""Edges estimated by gradients: exact where the network is linear, complete along the way, and derivatives where it is not."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

from circuit_tracer import Graph, ReplacementModel, attribute
from circuit_tracer.errors import CompatibilityError, InputError
from circuit_tracer.interventions import Semantics, apply_edits, approximate_edges, nodes_of, scale
from circuit_tracer.interventions.validation.bench import Bench, Condition, Sources
from circuit_tracer.interventions.validation.target_reads import measurable_targets
from tests.support.tiny import ARCHITECTURES, tiny_model, tiny_transcoder

IDS = torch.tensor([1, 17, 4, 33, 17, 9])
LIVE = Semantics("direct", freeze_attention=False)


def traced(architecture: str = "llama", **transcoder: Any) -> tuple[ReplacementModel, Graph]:
    model = ReplacementModel.from_model(tiny_model(architecture), tiny_transcoder(**transcoder), None, architecture)
    return model, attribute(IDS, model, max_n_logits=3, desired_logit_prob=1.0)


@pytest.mark.few
@pytest.mark.parametrize(("architecture", "kind"), list(product(ARCHITECTURES, ("clt", "plt"))))
def test_with_everything_frozen_the_derivative_is_the_edge(architecture: str, kind: str) -> None:
    skip = kind == "plt"
    model, graph = traced(architecture, kind=kind, skip=skip)
    for steps in (1, 3):
        found = approximate_edges(model, graph, steps=steps, semantics="constrained")
        assert len(found.weight) > 0
        torch.testing.assert_close(found.estimate, found.weight, rtol=1e-9, atol=1e-9)
        assert found.agreement.slope == pytest.approx(1)


@pytest.mark.few
@pytest.mark.parametrize("input_hook", ["hook_resid_mid", "ln2.hook_normalized", "mlp.hook_in"])
@pytest.mark.parametrize("output_hook", ["hook_mlp_out", "mlp.hook_out"])
def test_at_every_hook(input_hook: str, output_hook: str) -> None:
    model, graph = traced("gemma2", skip=True, input_hook=input_hook, output_hook=output_hook)
    found = approximate_edges(model, graph, semantics="constrained")
    torch.testing.assert_close(found.estimate, found.weight, rtol=1e-9, atol=1e-9)


@pytest.mark.few
@pytest.mark.parametrize(
    ("architecture", "semantics"),
    list(
        product(
            ("llama", "gemma3", "gpt_neox", "gpt_oss"),
            (LIVE, Semantics("constrained", range(1, 3), freeze_attention=False)),
        )
    ),
    ids=str,
)
def test_one_step_is_the_derivative_of_the_intervention(architecture: str, semantics: Semantics) -> None:
    model, graph = traced(architecture, kind="plt")
    found = approximate_edges(model, graph, semantics=semantics, node_threshold=0.95)
    step = 1e-3  # not less: transformers rounds head norms and rotary angles to float32
    wanted = [
        (source, target, estimate)
        for source, target, estimate in zip(
            *map(torch.Tensor.tolist, (found.source, found.target, found.estimate)), strict=True
        )
        if semantics.kind == "direct" or int(graph.nodes.layer[source]) in (1, 2)
    ][:5]
    for source, target, estimate in wanted:
        up, down = (
            apply_edits(model, graph, scale(nodes_of(graph, [source]), 1 + sign * step), semantics) for sign in (1, -1)
        )
        if target < graph.nodes.layout.n_features:
            place = nodes_of(graph, [target])[0]
            values = [float(each.features.pre_after[each.features.of(*place)]) for each in (up, down)]  # type: ignore[union-attr]
            change = values[0] - values[1]
        else:
            token = int(graph.logit_token_ids[target - graph.nodes.layout.target_start])
            moved = up.logit_change(softcap=False) - down.logit_change(softcap=False)
            change = float(moved[token] - moved.mean())
        assert change / (2 * step) == pytest.approx(estimate, rel=1e-3, abs=1e-5)


@pytest.mark.slow("takes 1.6 s")
def test_integrated_gradients_add_up_to_taking_everything_out() -> None:
    model, graph = traced("llama")
    everything = {"node_threshold": 1.0, "edge_threshold": 1.0}
    kept = torch.unique(approximate_edges(model, graph, **everything).source)
    found = approximate_edges(model, graph, steps=64, **everything)
    target = graph.nodes.layout.target_start
    total = float(found.estimate[found.target == target].sum())
    bench = Bench(model, graph, torch.arange(0), measurable_targets(graph), 4)
    out = bench.run([Sources.of_nodes(graph, kept)], Condition("live", "none", False, False))
    assert total == pytest.approx(-float(out.targets[0, 0]), rel=1e-3)


def test_bad_input() -> None:
    model, graph = traced()
    with pytest.raises(InputError, match="steps is 0"):
        approximate_edges(model, graph, steps=0)
    with pytest.raises(InputError, match="iterative"):
        approximate_edges(model, graph, semantics="iterative")
    other = ReplacementModel.from_model(tiny_model("llama"), tiny_transcoder(seed=5), None, "llama")
    with pytest.raises(CompatibilityError, match="other transcoders"):
        approximate_edges(other, graph)
