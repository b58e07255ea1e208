"""Hypothesis draws the model, the transcoder, the prompt and the targets: the laws hold for all of them."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.attribution.reference import reference_graph
from circuit_tracer.attribution.reference_dense import keep_features, select_features
from circuit_tracer.attribution.targets import CustomTarget, FeatureTarget, LogitDifference
from circuit_tracer.errors import InputError
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.influence import node_influence
from circuit_tracer.graph.scores import graph_scores
from circuit_tracer.replacement_model import ReplacementModel
from tests.support.tiny import ARCHITECTURES, tiny_model, tiny_transcoder
from tests.support.tracing_cases import ACTIVATIONS, INPUT_HOOKS, OUTPUT_HOOKS, assert_same_graph

VOCABULARY = 47
few = settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@st.composite
def models(draw: st.DrawFn, dtype: torch.dtype = torch.float64) -> ReplacementModel:
    """A model of any architecture and small size with any transcoder that fits it."""
    architecture = draw(st.sampled_from(ARCHITECTURES))
    input_hook = draw(st.sampled_from(INPUT_HOOKS))
    assume(not (architecture == "olmo2" and input_hook == "ln2.hook_normalized"))
    seed, n_layers = draw(st.integers(0, 99)), draw(st.integers(1, 4))
    heads, per_head = draw(st.sampled_from([(1, 1), (2, 1), (4, 2), (3, 3), (4, 1)])), draw(st.sampled_from([2, 4, 6]))
    width = heads[0] * per_head
    assume(architecture != "gpt_oss" or width % 4 == 0 or dtype is torch.float64)  # torch's grouped products want it
    overrides: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": n_layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": per_head,
    }
    if architecture == "gpt2":
        del overrides["head_dim"]
    transcoders = tiny_transcoder(
        draw(st.sampled_from(["clt", "plt"])),
        dtype,
        seed,
        n_layers,
        width,
        draw(st.sampled_from([1, 2, 5, 12])),
        draw(st.sampled_from(ACTIVATIONS)),
        draw(st.booleans()),
        input_hook,
        draw(st.sampled_from(OUTPUT_HOOKS)),
    )
    return ReplacementModel.from_model(
        tiny_model(architecture, dtype, seed, **overrides), transcoders, None, architecture
    )


prompts = st.lists(st.integers(0, VOCABULARY - 1), min_size=2, max_size=9).map(torch.tensor)
weights = st.floats(-2, 2).filter(lambda weight: abs(weight) > 1e-3)


@st.composite
def target_lists(draw: st.DrawFn, model: ReplacementModel, n_pos: int) -> list[Any]:
    """One to four targets of any kind and sign."""
    token = st.integers(0, VOCABULARY - 1)

    def direction(seed: int) -> torch.Tensor:
        return torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    kinds = st.one_of(
        token,
        st.builds(LogitDifference, token, token, weights).filter(lambda target: target.token != target.other),
        st.builds(CustomTarget, st.just("direction"), weights, st.integers(0, 99).map(direction)),
        st.builds(
            FeatureTarget,
            st.integers(0, model.cfg.n_layers - 1),
            st.integers(0, n_pos - 1),
            st.integers(0, model.transcoders.d_transcoder - 1),
            weights,
        ),
    )
    return draw(st.lists(kinds, min_size=1, max_size=4))


def trace(model: ReplacementModel, ids: torch.Tensor, **options: Any) -> Graph:
    """The graph, or another example when no feature is active."""
    try:
        return attribute(ids, model, **options)
    except InputError as error:
        assume("no transcoder feature is active" not in str(error))
        raise


@few
@given(st.data())
def test_engine_equals_reference(data: st.DataObject) -> None:
    model, ids = data.draw(models()), data.draw(prompts)
    left_out = data.draw(st.sets(st.integers(0, len(ids) - 1), max_size=len(ids) - 1).map(sorted), label="left out")
    position = data.draw(st.integers(-len(ids), len(ids) - 1), label="position")
    targets = data.draw(st.none() | target_lists(model, len(ids)), label="targets")
    batch_size = data.draw(st.integers(1, 40), label="batch size")
    found = trace(
        model,
        ids,
        attribution_targets=targets,
        zero_positions=left_out,
        position=position,
        batch_size=batch_size,
        max_n_logits=4,
    )
    assert_same_graph(found, reference_graph(model, ids, targets, left_out=left_out, position=position, max_n_logits=4))


@few
@given(st.data())
def test_selection_equals_its_definition(data: st.DataObject) -> None:
    model, ids = data.draw(models()), data.draw(prompts)
    whole = reference_graph(model, ids, max_n_logits=3)
    assume(len(whole.active) > 0)
    budget = data.draw(st.integers(1, len(whole.active) + 2), label="budget")
    found = trace(model, ids, max_n_logits=3, max_feature_nodes=budget)
    assert_same_graph(found, keep_features(whole, select_features(whole, budget)))


@few
@given(st.data())
def test_sum_rule_influence_and_scores_make_sense_for_any_targets(data: st.DataObject) -> None:
    model, ids = data.draw(models()), data.draw(prompts)
    targets = data.draw(target_lists(model, len(ids)), label="targets")
    graph = trace(model, ids, attribution_targets=targets, zero_positions=[])
    assert graph.residual is not None
    assert graph.residual <= 1e-10
    influence, layout = node_influence(graph.edges, graph.blocks, graph.target_weights), graph.nodes.layout
    assert torch.isfinite(influence).all()
    assert (influence >= 0).all()
    # all that enters at the targets ends in tokens and errors, if every row on the way has sources
    rows = torch.cat([torch.arange(layout.n_features), torch.arange(layout.target_start, layout.n_nodes)])
    if bool((graph.edges.row_ptr.diff()[rows] > 0).all()):
        arrived = influence[layout.tokens].sum() + influence[layout.errors].sum()
        torch.testing.assert_close(arrived, graph.target_weights.sum(), rtol=1e-9, atol=0)
    scores = graph_scores(graph)
    assert 0 <= scores.replacement <= 1
    assert 0 <= scores.strict_completeness <= scores.completeness <= 1


@few
@given(st.data())
def test_float32_keeps_the_sum_rule(data: st.DataObject) -> None:
    model, ids = data.draw(models(torch.float32)), data.draw(prompts)
    graph = trace(model, ids, max_n_logits=3)
    assert graph.residual is not None
    assert graph.residual <= 1e-5
