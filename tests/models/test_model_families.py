"""Families that are a row of the table away from those of the identities' tests: each traces exactly, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.attribution.reference import reference_graph
from circuit_tracer.errors import UnsupportedModelError
from circuit_tracer.interventions.features.intervene import feature_intervention
from circuit_tracer.models.architectures import ARCHITECTURES
from circuit_tracer.models.parts import bind
from circuit_tracer.replacement_model import ReplacementModel
from tests.support.tiny import CONFIGS, FAMILIES, tiny_model, tiny_transcoder
from tests.support.tracing_cases import assert_same_graph

IDS = torch.tensor([3, 17, 5, 17, 40, 8])
each_family = pytest.mark.parametrize("name", FAMILIES)


def model_of(name: str, input_hook: str, output_hook: str, **overrides: Any) -> ReplacementModel:
    transcoders = tiny_transcoder(n_features=10, input_hook=input_hook, output_hook=output_hook)
    return ReplacementModel.from_model(tiny_model(name, **overrides), transcoders, None, name)


@each_family
def test_a_family_traces_exactly(name: str) -> None:
    graph = attribute(IDS, model_of(name, "hook_resid_mid", "hook_mlp_out"))
    assert graph.residual is not None
    assert graph.residual <= 1e-10


@pytest.mark.slow("the autograd reference on every family")
@each_family
@pytest.mark.parametrize("hooks", [("hook_resid_mid", "hook_mlp_out"), ("mlp.hook_in", "mlp.hook_out")], ids="-".join)
def test_a_familys_graph_is_that_of_autograd_on_its_own_code(name: str, hooks: tuple[str, str]) -> None:
    model = model_of(name, *hooks)
    targets = [3, 7]
    reference = reference_graph(model, IDS, targets)
    assert_same_graph(attribute(IDS, model, attribution_targets=targets), reference)


@pytest.mark.slow("interventions on every family")
@each_family
def test_an_edge_of_a_family_is_the_effect_of_an_intervention(name: str) -> None:
    model = model_of(name, "hook_resid_mid", "hook_mlp_out")
    graph = attribute(IDS, model, attribution_targets=[7])
    row = graph.adjacency_matrix[-1, : len(graph.active_features)]
    strongest = int(row.abs().argmax())
    layer, position, feature = graph.active_features[strongest].tolist()
    value = float(graph.activation_values[strongest])
    every = range(len(model.parts.layers))
    with model.zero_softcap():
        before, after = (
            feature_intervention(model, IDS, [(layer, position, feature, times * value)], every)[0][0, -1]
            for times in (1.0, 2.0)
        )
    change = (after - before) - (after - before).mean()
    assert float(change[7]) == pytest.approx(float(row[strongest]), rel=1e-6)


def test_every_row_of_the_table_has_a_tiny_model() -> None:
    built = {tiny_model(name).config.model_type for name in (*CONFIGS, *FAMILIES)}
    assert built == set(ARCHITECTURES)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("olmo", {"clip_qkv": 1e6}, "clip_qkv=1000000.0"),
        ("olmoe", {"clip_qkv": 8.0}, "clip_qkv=8.0"),
        ("gpt_bigcode", {"multi_query": False}, "multi_query=False"),
    ],
    ids=["olmo", "olmoe", "gpt_bigcode"],
)
def test_a_variant_that_a_row_does_not_describe_is_refused(name: str, change: dict[str, Any], says: str) -> None:
    with pytest.raises(UnsupportedModelError, match=says):
        bind(tiny_model(name, **change), name)
