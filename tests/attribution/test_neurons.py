"""Neurons as nodes: exact read vectors, no error nodes, autograd under RelP's rules, the choice of nodes."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.attribution.neuron_choice import RankedNeurons, rank_neurons
from circuit_tracer.attribution.targets import Aim, DirectionTarget, FeatureTarget, resolve_targets
from circuit_tracer.errors import InputError, UnsupportedModelError
from circuit_tracer.graph.graph import Graph
from circuit_tracer.models.capture import capture
from circuit_tracer.models.frozen import FrozenNetwork
from circuit_tracer.replacement_model import ReplacementModel
from circuit_tracer.transcoders.neurons import Neurons
from tests.support.kept import kept
from tests.support.relp import Relp
from tests.support.tiny import ARCHITECTURES, FAMILIES, tiny_model
from tests.support.tracing_cases import assert_equal

IDS = torch.tensor([3, 17, 5, 17, 40, 8])
TARGETS = [3, 7]
EVERY = 10**6  # more than there are
# families whose own code rounds rotary embeddings, norms or routers to float32
ROUNDED = {
    "cohere", "cohere-qk-norm", "cohere2", "cohere2_moe", "ernie4_5", "ernie4_5_moe", "flex_olmo", "flint", "granitemoe",
    "granitemoe_swa", "hunyuan_v1_moe", "hy_v3", "llama4_text", "mellum", "minimax_m2", "mixtral", "olmo", "olmoe", "qwen2_moe",
    "qwen3_moe", "apertus", "afmoe",
}  # fmt: skip
# families with steps of their own that the naive statement (tests/support/relp.py) does not patch
UNPATCHED = {
    "bloom", "deepseek_v2", "falcon", "falcon-groups", "falcon-one-norm", "falcon-sequential", "gemma4_text",
    "gemma4_text-keys-as-values", "gemma4_unified_text", "laguna", "laguna-by-number", "lfm2", "lfm2_moe", "lfm3",
    "lfm3-norms-before", "mimo_v2_flash", "mistral4", "molmo2_text", "mpt", "opt", "qwen3_5_moe_text", "qwen3_5_text",
    "qwen3_next", "qwen3_omni_moe_text", "qwen3_vl_moe_text", "step3p5", "youtu",
}  # fmt: skip
REFUSED = ("axk1", "ernie4_5_vl_moe_text")  # experts of another kind
each_architecture = pytest.mark.parametrize(
    "name",
    [
        *ARCHITECTURES,
        *(
            pytest.param(name, marks=pytest.mark.slow("neurons of every family"))
            for name in FAMILIES
            if name not in REFUSED
        ),
    ],
)


@kept
def model_of(name: str, dtype: torch.dtype = torch.float64) -> ReplacementModel:
    return ReplacementModel.from_model(tiny_model(name, dtype), "neurons", None, name)


@kept
def whole_graph(name: str) -> Graph:
    """Every neuron a node."""
    return attribute(IDS, model_of(name), attribution_targets=TARGETS, max_feature_nodes=EVERY, zero_positions=[])


class Totals(NamedTuple):
    """Effects over all paths on targets: of features (K, n) and of tokens (K, P)."""

    features: Tensor
    tokens: Tensor


def totals(graph: Graph) -> Totals:
    """By the inverse of the dense matrix of a graph whose every source has a row."""
    edges, layout, n = graph.adjacency_matrix, graph.nodes.layout, graph.nodes.layout.n_features
    shares = edges[:n, :n] / graph.activation_values[:, None]
    features = torch.linalg.solve((torch.eye(n) - shares).T, edges[layout.targets, :n].T).T
    through = features / graph.activation_values
    return Totals(features, edges[layout.targets, layout.tokens] + through @ edges[:n, layout.tokens])


def ranked_of(model: ReplacementModel, most: int) -> RankedNeurons:
    """By one backward pass."""
    network = FrozenNetwork(model.parts, capture(model.parts, IDS), "mlp.hook_in", "mlp.hook_out")
    targets = resolve_targets(model, network, Aim(TARGETS))
    keep = torch.ones(len(IDS), dtype=torch.bool)
    assert isinstance(model.transcoders, Neurons)
    return rank_neurons(network, model.transcoders, targets.read_out, targets.table.weight, keep, most)


def neurons_of(graph: Graph, model: ReplacementModel) -> list[Tensor]:
    """(P, F) of each layer: the number of a neuron's node, -1 without one."""
    found = []
    for layer in range(graph.n_layers):
        where = torch.full((graph.n_pos, model.transcoders.n_features(layer) // 2), -1)
        node = torch.nonzero(graph.active_features[:, 0] == layer).flatten()
        where[graph.active_features[node, 1], graph.active_features[node, 2] // 2] = node
        found.append(where)
    return found


@pytest.mark.few
@each_architecture
def test_read_vectors_give_activations_and_neurons_the_mlps_output(name: str) -> None:
    model = model_of(name)
    neurons = model.transcoders
    network = FrozenNetwork(model.parts, capture(model.parts, IDS), "mlp.hook_in", "mlp.hook_out")
    for layer in range(neurons.n_layers):
        x, y = network.transcoder_input(layer), network.transcoder_output(layer)
        position, index, value = neurons.encode_positions(layer, x)
        read, constant = neurons.reads(layer, index, position, lambda x=x: x)  # type: ignore[misc]
        assert_equal((read * x[position]).sum(1) + constant, value, 1e-12)
        assert bool((value > 0).all())
        written = torch.zeros_like(y).index_add_(
            0, position, neurons.decoder_rows(layer, index, layer) * value[:, None]
        )
        rounded = 1e-6 if name in ROUNDED else 1e-12
        assert_equal(written + neurons.output_bias(layer, lambda x=x: x), y, rounded)  # type: ignore[misc]


@pytest.mark.few
@each_architecture
def test_all_neurons_leave_no_error_and_give_what_autograd_gives_under_relps_rules(name: str) -> None:
    graph, model = whole_graph(name), model_of(name)
    tolerance = 1e-6 if name in ROUNDED else 1e-9
    assert graph.residual is not None
    assert graph.residual < 1e-10
    left = graph.adjacency_matrix[:, graph.nodes.layout.errors]
    assert float(left.abs().max()) < tolerance * float(graph.adjacency_matrix.abs().max())
    found = totals(graph)
    ranked = ranked_of(model, EVERY)
    assert torch.equal(ranked.active.index, graph.active_features[:, 2])
    assert_equal(ranked.effect, (found.features.abs() * graph.logit_probabilities[:, None]).sum(0), 1e-8)
    if name in UNPATCHED:
        return
    relp = Relp(model.hf_model, IDS)
    for row, target in enumerate(TARGETS):
        read = relp.logits[-1, target] - relp.logits[-1].mean()
        (gradient,) = torch.autograd.grad(read, relp.tokens, retain_graph=True)
        assert_equal(found.tokens[row], (gradient[0] * relp.tokens[0]).sum(-1).detach(), tolerance)


@pytest.mark.few
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "gpt_neox", "phi3"])
def test_every_edge_is_autograds_where_paths_end_at_neurons(name: str) -> None:
    graph, model = whole_graph(name), model_of(name)
    relp, where = Relp(model.hf_model, IDS, stop=True), neurons_of(graph, model)
    layout, edges = graph.nodes.layout, graph.adjacency_matrix
    reads = [relp.logits[-1, target] - relp.logits[-1].mean() for target in TARGETS]
    rows = list(range(layout.target_start, layout.n_nodes))
    for layer, nodes in enumerate(where):
        for position, neuron in ((1, 2), (4, 0)):  # some of each layer
            node = int(nodes[position, neuron])
            reads.append(relp.neurons[layer][..., position, neuron].sum() * _side(graph, node))
            rows.append(node)
    for read, row in zip(reads, rows, strict=True):
        found = torch.autograd.grad(
            read, [*relp.leaves, relp.tokens], retain_graph=True, allow_unused=True, materialize_grads=True
        )
        expected = torch.zeros_like(edges[row])
        for nodes, gradient, leaf in zip(where, found, relp.leaves, strict=False):
            expected[nodes] = (gradient * leaf).detach().view(nodes.shape)
        expected[layout.tokens] = (found[-1] * relp.tokens).sum(-1).detach()[0]
        expected[layout.errors] = edges[row, layout.errors]
        assert_equal(edges[row], expected)


def _side(graph: Graph, node: int) -> int:
    return 1 - 2 * int(graph.active_features[node, 2] % 2)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_oss", "gpt_neox"])
def test_the_largest_total_effects_are_nodes_and_the_rest_of_a_place_is_one(name: str) -> None:
    whole, model, n_nodes = whole_graph(name), model_of(name), 30
    few = attribute(IDS, model, attribution_targets=TARGETS, max_feature_nodes=n_nodes, zero_positions=[])
    size = (totals(whole).features.abs() * whole.logit_probabilities[:, None]).sum(0)
    place = size.topk(n_nodes).indices.sort().values
    assert torch.equal(few.active_features, whole.active_features[place])
    assert torch.equal(few.selected_features, torch.arange(n_nodes))
    assert few.residual is not None
    assert few.residual < 1e-12
    rest = torch.ones(len(whole.active_features), dtype=torch.bool)
    rest[place] = False
    edges, layout = whole.adjacency_matrix, whole.nodes.layout
    of_place = whole.active_features[:, 0] * whole.n_pos + whole.active_features[:, 1]
    kept = torch.cat([place, torch.arange(layout.target_start, layout.n_nodes)])
    others = torch.zeros(len(kept), whole.n_layers * whole.n_pos, dtype=torch.float64).index_add_(
        1, of_place[rest], edges[kept][:, : layout.n_features][:, rest]
    )
    n_all = few.nodes.layout.n_nodes
    own = torch.cat([torch.arange(n_nodes), torch.arange(few.nodes.layout.target_start, n_all)])
    assert_equal(few.adjacency_matrix[own][:, few.nodes.layout.errors], others, 1e-10)


def test_blocks_and_batches_change_nothing() -> None:
    graphs = [attribute(IDS, model_of("gemma3"), max_feature_nodes=40, batch_size=size) for size in (1, 7, 512)]
    for other in graphs[1:]:
        assert torch.equal(other.active_features, graphs[0].active_features)
        assert_equal(other.adjacency_matrix, graphs[0].adjacency_matrix, 1e-12)


def test_left_out_positions_have_no_neurons() -> None:
    graph = attribute(IDS, model_of("llama"), max_feature_nodes=EVERY, zero_positions=[0, 2])
    assert set(graph.active_features[:, 1].tolist()) == {1, 3, 4, 5}
    assert graph.residual is not None
    assert graph.residual < 1e-12


def test_one_token_and_low_precision() -> None:
    one = attribute(IDS[:1], model_of("gpt2"), zero_positions=[], max_feature_nodes=9)
    assert len(one.active_features) == 9
    half = attribute(IDS, model_of("llama", torch.bfloat16), max_feature_nodes=EVERY)
    assert half.residual is not None
    assert half.residual < 2e-2
    left = half.adjacency_matrix[:, half.nodes.layout.errors].abs().max()
    assert float(left) < 0.05 * float(half.adjacency_matrix.abs().max())


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_neurons_and_the_stream_can_be_targets(name: str) -> None:
    model, graph = model_of(name), whole_graph(name)
    layer, position, index = graph.active_features[graph.active_features[:, 0] == 1][5].tolist()
    direction = torch.linspace(-1, 1, 16, dtype=torch.float64)
    found = attribute(
        IDS,
        model,
        attribution_targets=[
            FeatureTarget(layer, position, index),
            DirectionTarget(direction, "hook_resid_mid", 2, 4),
        ],
        max_feature_nodes=EVERY,
        zero_positions=[],
    )
    node = int((graph.active_features == torch.tensor([layer, position, index])).all(1).nonzero())
    row, layout = found.adjacency_matrix[-2], found.nodes.layout
    assert_equal(row[layout.tokens], graph.adjacency_matrix[node, graph.nodes.layout.tokens], 1e-12)
    assert float(found.balance.pre_activation[-2]) == pytest.approx(float(graph.activation_values[node]))  # type: ignore[union-attr]
    assert found.residual is not None
    assert found.residual < 1e-12


def test_the_share_of_what_is_kept_grows_to_all() -> None:
    shares = [ranked_of(model_of("gpt2"), most) for most in (10, 100, EVERY)]
    assert [len(each.active) for each in shares] == [10, 100, shares[0].count]
    assert 0 < shares[0].share < shares[1].share < shares[2].share
    assert shares[2].share == pytest.approx(1)


def test_a_neuron_has_no_read_vector_without_a_prompt() -> None:
    with pytest.raises(InputError, match="depends on the prompt"):
        model_of("llama").transcoders.encoder_rows(0, torch.tensor([1]))


def test_an_mlp_of_another_kind_is_refused_by_name() -> None:
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.mlp.act_fn = torch.nn.Softmax(-1).eval()  # no function of one number
    with pytest.raises(UnsupportedModelError, match="neurons of llama cannot be traced: the MLP of layer 0"):
        ReplacementModel.from_model(model, "neurons", None, "odd")


@pytest.mark.slow("models of families")
@pytest.mark.parametrize("name", REFUSED)
def test_experts_of_another_kind_are_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"neurons of {name} cannot be traced"):
        model_of(name)


def test_weights_that_are_written_in_are_followed() -> None:
    model = ReplacementModel.from_model(tiny_model("llama"), "neurons", None, "llama")
    before = attribute(IDS, model, max_feature_nodes=10)
    with torch.no_grad():
        model.hf_model.model.layers[1].mlp.down_proj.weight.mul_(2)
    after = attribute(IDS, model, max_feature_nodes=10)
    assert after.residual is not None
    assert after.residual < 1e-12
    assert before.provenance["fingerprint"] != after.provenance["fingerprint"]
    assert isinstance(model.transcoders, Neurons)
