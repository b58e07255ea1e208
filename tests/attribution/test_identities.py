"""What a graph claims, measured: rows add up, and each edge is the effect of the intervention that it describes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle

import pytest
import torch
from torch import Tensor

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.attribution.prompt import LinearPrompt, encode_prompt, linearise
from circuit_tracer.attribution.reference import FrozenModel
from circuit_tracer.graph.graph import Graph
from circuit_tracer.replacement_model import ReplacementModel
from tests.support.tracing_cases import IDS, Case, assert_equal, build, one_each, rotation

# relative to the mass of the row; bfloat16 rounds the model's own activations to 8 bits (0.011 is the worst seen)
RESIDUAL = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2}
FEW = [
    Case("gemma3", "clt", True, "mlp.hook_in", "mlp.hook_out"),
    Case("gpt_oss", "plt", True, "ln2.hook_normalized"),
    Case("gpt2", "clt", False, "hook_resid_mid", "hook_mlp_out", "topk"),
]


def in_both_precisions() -> list[tuple[Case, torch.dtype]]:
    """Every case in float64, and in float32 or bfloat16 in turn."""
    lower = cycle((torch.float32, torch.bfloat16))
    return [(case, dtype) for case in rotation() for dtype in (torch.float64, next(lower))]


Run = Callable[[Tensor, Tensor], tuple[list[Tensor] | Tensor, Tensor]]  # (P, D), (L, P, D) -> inputs, final


@pytest.mark.few
@pytest.mark.parametrize(("case", "dtype"), in_both_precisions(), ids=str)
def test_every_row_sums_to_what_its_target_reads(case: Case, dtype: torch.dtype) -> None:
    model = build(case, dtype)
    for budget in (None, 7):
        graph = attribute(IDS, model, max_n_logits=3, max_feature_nodes=budget)
        assert graph.balance is not None
        residual = graph.balance.residual(graph.edges)
        assert torch.isfinite(residual).all()
        assert float(residual.max()) <= RESIDUAL[dtype]
        assert torch.isfinite(graph.edges.weight).all()


@pytest.mark.few
@pytest.mark.parametrize("case", one_each(), ids=str)
def test_values_that_rows_sum_to_are_the_true_ones(case: Case) -> None:
    model = build(case)
    graph = attribute(IDS, model, attribution_targets=[5, 9, 30])
    assert graph.balance is not None
    layout, final = graph.nodes.layout, model_run(model)[0]
    logits = model.parts.unembed(final[-1])
    assert_equal(graph.balance.pre_activation[layout.targets], logits[[5, 9, 30]] - logits.mean())
    layer, position, index = graph.active_features.T
    pre = torch.stack([model.transcoders.encode_layer(x, i, False) for i, x in enumerate(model_run(model)[1])])
    assert_equal(graph.balance.pre_activation[layout.features], pre[layer, position, index])
    assert_equal(graph.activation_values, pre[layer, position, index])


@pytest.mark.parametrize("case", FEW, ids=str)
def test_edges_run_from_lower_to_higher_layers_and_never_leftwards(case: Case) -> None:
    graph = attribute(IDS, build(case), max_n_logits=3)
    nodes, layout, target = graph.nodes, graph.nodes.layout, graph.edges.target
    assert (nodes.layer[graph.edges.source] < nodes.layer[target]).all()
    assert (nodes.position[graph.edges.source] <= nodes.position[target]).all()
    assert ((target < layout.error_start) | (target >= layout.target_start)).all()


@pytest.mark.few
@pytest.mark.parametrize("case", one_each(), ids=str)  # columns of the Jacobian below, for every case
def test_every_edge_is_the_effect_of_its_intervention_in_the_frozen_network(case: Case) -> None:
    model = build(case)
    graph = attribute(IDS, model, max_n_logits=3)
    prompt = linear_prompt(model)
    run = frozen_network(prompt)
    nothing = torch.zeros_like(prompt.captured.embedding), torch.zeros_like(prompt.error)
    before, matrix = values(model, graph, run(*nothing)), graph.adjacency_matrix
    for node, tokens, writes in sources(model, graph, prompt):
        effect = values(model, graph, run(tokens, writes)) - before
        assert_equal(rows(matrix, graph)[:, node], effect)


@pytest.mark.few
@pytest.mark.parametrize("case", one_each(), ids=str)
def test_edges_are_effects_of_interventions_in_the_transformers_model(case: Case) -> None:
    model = build(case)
    graph = attribute(IDS, model, max_n_logits=3)
    frozen = FrozenModel(model.parts, model.transcoders, IDS, [0])
    before, matrix = values(model, graph, frozen.run(frozen.tokens, frozen.writes)[:2]), graph.adjacency_matrix
    for node, tokens, writes in list(sources(model, graph, linear_prompt(model)))[::5]:
        after = values(model, graph, frozen.run(frozen.tokens + tokens, frozen.writes + writes)[:2])
        assert_equal(rows(matrix, graph)[:, node], after - before)


@pytest.mark.few
@pytest.mark.parametrize("case", one_each(), ids=str)
def test_rows_are_the_jacobian_of_the_frozen_network(case: Case) -> None:
    model = build(case)
    graph = attribute(IDS, model, max_n_logits=3)
    prompt = linear_prompt(model)
    run = frozen_network(prompt)
    zero = torch.zeros_like(prompt.captured.embedding), torch.zeros_like(prompt.error)
    by_token, by_write = torch.func.jacrev(lambda *change: values(model, graph, run(*change)), argnums=(0, 1))(*zero)
    expected = [
        torch.einsum("tpd,pd->t", by_token, tokens) + torch.einsum("tlpd,lpd->t", by_write, writes)
        for _, tokens, writes in sources(model, graph, prompt)
    ]
    found = rows(graph.adjacency_matrix, graph)[:, : graph.nodes.layout.target_start]
    assert_equal(found, torch.stack(expected, dim=1))


def linear_prompt(model: ReplacementModel) -> LinearPrompt:
    return linearise(encode_prompt(model.parts, model.transcoders, IDS, [0]), model.transcoders, True)


def model_run(model: ReplacementModel) -> tuple[Tensor, list[Tensor]]:
    """The true run: final norm's output (P, D), transcoder inputs L x (P, D)."""
    network = linear_prompt(model).network
    return network.captured.final, [network.transcoder_input(layer) for layer in range(network.n_layers)]


def frozen_network(prompt: LinearPrompt) -> Run:
    """The frozen network as a function of changes: of the token vectors, and of what is written at the output hooks."""
    network, start = prompt.network, prompt.captured.embedding
    if prompt.captured.position_embedding is not None:
        start = start + prompt.captured.position_embedding

    def run(tokens_PD: Tensor, writes_LPD: Tensor) -> tuple[list[Tensor], Tensor]:
        def output(layer: int, x: Tensor) -> Tensor:
            skip, y = prompt.skips[layer], network.transcoder_output(layer)
            through = 0 if skip is None else (x - network.transcoder_input(layer)) @ skip
            return y + through + writes_LPD[layer]

        return network.propagate(start + tokens_PD, output, constants=True)

    return run


def sources(model: ReplacementModel, graph: Graph, prompt: LinearPrompt) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(node, token vectors (P, D), writes (L, P, D)) of every source of a graph."""
    layout, nodes, embedding = graph.nodes.layout, graph.nodes, prompt.captured.embedding
    for node in range(layout.target_start):
        layer, position = int(nodes.layer[node]), int(nodes.position[node])
        tokens, writes = torch.zeros_like(embedding), torch.zeros_like(prompt.error)
        if node < layout.error_start:
            for above in model.transcoders.target_layers(layer):
                row = model.transcoders.decoder_rows(layer, nodes.feature[node : node + 1], target_layer=above)[0]
                writes[above, position] = graph.activation_values[node] * row
        elif node < layout.token_start:
            writes[layer, position] = prompt.error[layer, position]
        else:
            tokens[position] = embedding[position]
        yield node, tokens, writes


def values(model: ReplacementModel, graph: Graph, run: tuple[list[Tensor] | Tensor, Tensor]) -> Tensor:
    """What features and targets read in a run: pre-activations without bias, demeaned logits."""
    inputs, final = run
    read = [
        inputs[layer][position] @ model.transcoders.encoder_rows(layer, torch.tensor([index]))[0][0]
        for layer, position, index in graph.active_features.tolist()
    ]
    logits = model.parts.unembed(final[-1])
    return torch.stack(read + [logits[token] - logits.mean() for token in graph.logit_token_ids.tolist()])


def rows(matrix: Tensor, graph: Graph) -> Tensor:
    """The rows of features and targets, in the order of `values`."""
    layout = graph.nodes.layout
    return torch.cat([matrix[layout.features], matrix[layout.targets]])
