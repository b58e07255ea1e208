"""Families that are a row of the table away from those of the identities' tests: each traces exactly, in float64."""

from __future__ import annotations

from itertools import cycle, product
from typing import Any

import pytest
import torch
import transformers

from circuit_tracer.attention import diagnose_heads, explain_edges
from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.attribution.reference import reference_graph
from circuit_tracer.attribution.stream_targets import DIRECTION_SITES, DirectionTarget
from circuit_tracer.attribution.together import attribute_together
from circuit_tracer.errors import UnsupportedModelError
from circuit_tracer.interventions.features.intervene import feature_intervention
from circuit_tracer.models.architectures import ARCHITECTURES
from circuit_tracer.models.parts import bind
from circuit_tracer.models.run import read
from circuit_tracer.replacement_model import ReplacementModel
from tests.support.tiny import CONFIGS, FAMILIES, tiny_model, tiny_transcoder
from tests.support.tracing_cases import assert_equal, assert_same_graph

IDS = torch.tensor([3, 17, 5, 17, 40, 8])
each_family = pytest.mark.parametrize("name", FAMILIES)
# those whose rows say something that no other's do
OF_A_KIND = (
    "afmoe", "bloom", "codegen", "deepseek_v3", "deepseek_v32", "falcon-groups", "gemma4_text-keys-as-values", "gptj", "lfm2",
    "mimo_v2_flash", "mpt", "olmo", "opt", "persimmon", "qwen2_vl_text", "qwen3_5_text", "qwen3_next", "stablelm-parallel",
)  # fmt: skip
LIKE_OTHERS = [name for name in FAMILIES if name not in OF_A_KIND]
HOOKS = [("hook_resid_mid", "hook_mlp_out"), ("mlp.hook_in", "mlp.hook_out")]


def model_of(name: str, input_hook: str, output_hook: str, **overrides: Any) -> ReplacementModel:
    transcoders = tiny_transcoder(n_features=10, input_hook=input_hook, output_hook=output_hook)
    return ReplacementModel.from_model(tiny_model(name, **overrides), transcoders, None, name)


@pytest.mark.few
@pytest.mark.parametrize("name", [*OF_A_KIND, *LIKE_OTHERS])
def test_a_family_traces_exactly(name: str) -> None:
    graph = attribute(IDS, model_of(name, "hook_resid_mid", "hook_mlp_out"))
    assert graph.residual is not None
    assert graph.residual <= 1e-10


@pytest.mark.slow("the autograd reference on every family")
@pytest.mark.parametrize(("name", "hooks"), [*product(OF_A_KIND, HOOKS), *zip(LIKE_OTHERS, cycle(HOOKS))], ids=str)
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


@pytest.mark.few
@pytest.mark.parametrize("name", ["deepseek_v3", "gemma4_text-keys-as-values", "lfm2", "gptj", "qwen3_next", "opt"])
def test_prompts_of_a_family_are_traced_together(name: str) -> None:
    model = model_of(name, "hook_resid_mid", "hook_mlp_out")
    prompts = [IDS, IDS[:4], IDS.flip(0)]
    for prompt, found in zip(prompts, attribute_together(prompts, model), strict=True):
        expected = attribute(prompt, model)
        assert torch.equal(found.active_features, expected.active_features)
        # the code of some rounds to float32 on its way, and a batch and a prompt to different sides
        assert_equal(found.adjacency_matrix, expected.adjacency_matrix, 1e-7)


@pytest.mark.few
@pytest.mark.parametrize("name", ["bloom", "gemma4_text", "deepseek_v3", "laguna", "qwen3_next", "opt"])
def test_directions_of_a_family_are_those_of_autograd(name: str) -> None:
    model = model_of(name, "hook_resid_mid", "hook_mlp_out")
    vector = torch.linspace(-1, 1, 16, dtype=torch.float64)
    targets = [DirectionTarget(vector, site, layer, 4) for site in DIRECTION_SITES for layer in (0, 2)]
    widths = [each.output_weight.shape[1] for each in model.parts.layers]
    targets += [DirectionTarget(torch.linspace(-1, 1, widths[2]).double(), "attn.hook_z", 2, 4)]
    reference = reference_graph(model, IDS, targets)
    assert_same_graph(attribute(IDS, model, attribution_targets=targets), reference)
    seen = read(model.parts, IDS, [("hook_mlp_out", 2)])["hook_mlp_out", 2][0, 4]
    at = [(target.site, target.layer) for target in targets].index(("hook_mlp_out", 2)) - len(targets)
    assert float(reference.value[at]) == pytest.approx(float(seen @ vector), rel=1e-5)  # its own code rounds


@pytest.mark.parametrize("name", ["gemma4_text", "qwen3_5_text", "lfm2"])
def test_edges_that_are_not_split_by_head_are_refused(name: str) -> None:
    model = model_of(name, "hook_resid_mid", "hook_mlp_out")
    graph = attribute(IDS, model)
    with pytest.raises(UnsupportedModelError, match="can be traced, but not be split by attention head"):
        explain_edges(graph, model, 1, graph.edges)


@pytest.mark.parametrize("name", ["qwen3_5_text", "lfm2"])
def test_layers_without_heads_have_no_table_of_them(name: str) -> None:
    with pytest.raises(
        UnsupportedModelError, match=f"heads of this {name} cannot be put in one table: some layers have none"
    ):
        diagnose_heads(model_of(name, "hook_resid_mid", "hook_mlp_out"), [IDS])


def test_every_row_of_the_table_has_a_tiny_model() -> None:
    built = {getattr(transformers, name).model_type for name, _ in CONFIGS.values()}
    assert built | {name.partition("-")[0] for name in FAMILIES} == set(ARCHITECTURES)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("olmo", {"clip_qkv": 1e6}, "clip_qkv=1000000.0"),
        ("olmoe", {"clip_qkv": 8.0}, "clip_qkv=8.0"),
        ("gpt_bigcode", {"multi_query": False}, "multi_query=False"),
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before=False"),
        ("mpt", {"attn_config": {"clip_qkv": 6.0}}, r"attn_config\.clip_qkv=6\.0"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "goes on beside attention and MLP"),
        ("gemma4_text", {"num_kv_shared_layers": 1}, "take the keys and values of an earlier one"),
        (
            "gemma4_text",
            {"hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": 47},
            "a product of the stream and an embedding of its own",
        ),
        (
            "gemma4_text",
            {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 12},
            "experts read the stream beside the MLP",
        ),
    ],
    ids=["olmo", "olmoe", "gpt_bigcode", "opt", "mpt", "bloom", "gemma4-shared", "gemma4-embedded", "gemma4-experts"],
)
def test_a_variant_that_a_row_does_not_describe_is_refused(name: str, change: dict[str, Any], says: str) -> None:
    with pytest.raises(UnsupportedModelError, match=says):
        bind(tiny_model(name, **change), name)
