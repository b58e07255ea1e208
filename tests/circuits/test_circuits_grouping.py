"""Groups that nodes form by themselves, and what is measured of them."""

from __future__ import annotations

import time
from itertools import combinations

import pytest
import torch

from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.circuits import contract, group_nodes
from circuit_tracer.circuits.profiles import node_profiles
from circuit_tracer.circuits.purity import MeasuredEffects, PredictedEffects, purities
from circuit_tracer.demo import load_labels
from circuit_tracer.demo.show import load_demo
from circuit_tracer.errors import InputError
from circuit_tracer.graph import Graph, node_influence, prune_graph
from tests.support.graph_cases import random_graph

DALLAS, CAPITAL = 7, 2  # positions in the demo's prompt


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    return load_demo()


@pytest.fixture(scope="module")
def graph(model: ReplacementModel) -> Graph:
    return attribute("the capital of the state containing Dallas is", model)


def test_a_node_and_its_double_are_in_one_group() -> None:
    graph = doubled(random_graph(seed=2, n_layers=4, n_pos=2, n_active=20, n_selected=20, density=0.9))
    grouping = group_nodes(graph, node_threshold=1.0, edge_threshold=1.0, purity=0.0)
    owner = {member: row for row, group in enumerate(grouping) for member in group.members}
    names = graph.nodes.ids()[graph.nodes.layout.features]
    pairs = list(zip(names[::2], names[1::2], strict=True))
    assert all(owner[one] == owner[other] for one, other in pairs)
    assert len({owner[one] for one, _ in pairs}) > 1
    bounded = group_nodes(graph, node_threshold=1.0, edge_threshold=1.0, max_layers=0, max_positions=0, purity=0.0)
    places = [{(member.split("_")[0], member.split("_")[2]) for member in group.members} for group in bounded]
    assert all(len(each) == 1 for each in places)
    assert len(bounded) > len(grouping)


def doubled(graph: Graph) -> Graph:
    """Each feature twice, with half of its output each."""
    n, layout = graph.n_nodes, graph.nodes.layout
    rows = torch.cat([torch.arange(layout.n_features).repeat_interleave(2), torch.arange(layout.n_features, n)])
    half = torch.ones(len(rows), dtype=torch.float64)
    half[: 2 * layout.n_features] = 0.5
    active = graph.active_features[graph.selected_features].repeat_interleave(2, 0) * torch.tensor([1, 1, 2])
    active[1::2, 2] += 1
    return Graph(
        input_string=graph.input_string,
        input_tokens=graph.input_tokens,
        active_features=active,
        adjacency_matrix=graph.adjacency_matrix[rows][:, rows] * half,
        cfg=graph.cfg,
        selected_features=torch.arange(len(active)),
        activation_values=graph.activation_values[graph.selected_features].repeat_interleave(2),
        logit_targets=graph.logit_targets,
        logit_probabilities=graph.logit_probabilities,
    )


def test_every_node_is_in_one_group_and_tokens_and_outputs_stay_alone(graph: Graph) -> None:
    pruned = prune_graph(graph, 0.95)
    grouping = group_nodes(graph, labels=load_labels(), node_threshold=0.95)
    members = [member for group in grouping for member in group.members]
    ids = graph.nodes.ids()
    assert sorted(members) == sorted(ids[node] for node in torch.nonzero(pruned.node_mask)[:, 0])
    for group in grouping:
        assert len(group.members) == 1 or group.role not in ("token", "logit")
    assert contract(graph, grouping).acyclic
    assert grouping == group_nodes(graph, labels=load_labels(), node_threshold=0.95)


def test_the_demo_goes_from_the_city_over_a_group_to_what_is_said(graph: Graph) -> None:
    grouping = group_nodes(graph, labels=load_labels(), node_threshold=0.95)
    circuit = contract(graph, grouping)
    position = graph.nodes.position
    sayer = max(
        (row for row, group in enumerate(circuit.groups) if group.role == "says"),
        key=lambda row: circuit.influence[row],
    )
    source, share = circuit.inputs(sayer)[0]
    assert share > 0.25
    assert {int(position[node]) for node in circuit.nodes[source]} == {DALLAS}
    [(token, whole)] = circuit.inputs(source)
    assert circuit.nodes[token] == (graph.nodes.layout.token_start + DALLAS,)
    assert whole == pytest.approx(1)
    detectors = [nodes for group, nodes in zip(circuit.groups, circuit.nodes, strict=True) if group.role == "detects"]
    assert any(CAPITAL in position[list(nodes)] for nodes in detectors)


def test_purity_is_the_agreement_of_effects_and_causes(graph: Graph) -> None:
    pruned = prune_graph(graph, 0.95)
    profiles = node_profiles(graph, pruned)
    predicted = PredictedEffects(graph, pruned, profiles)
    rows = [row for row, role in enumerate(profiles.roles) if role == "says"][:3]
    alone = [[row] for row in range(len(profiles.roles))]
    effects, at_once = predicted.of(alone), predicted.of([rows])
    outside = [row for row in range(len(effects)) if row not in rows]
    weight = profiles.influence[rows] / profiles.influence[rows].sum()
    caused = effects[outside][:, rows] / effects[outside][:, rows].abs().sum(0)
    expected = 0.0
    for place, row in enumerate(rows):
        does = shared(effects[row, outside], at_once[0, outside])
        comes = shared(caused[:, place], caused @ weight)
        expected += float(weight[place]) * 2 * does * comes / (does + comes)
    found = purities([rows, rows[:1]], effects, torch.cat([at_once, effects[rows[:1]]]), effects.T, profiles.influence)
    assert found == [pytest.approx(expected), 1.0]


def shared(one: torch.Tensor, other: torch.Tensor) -> float:
    one, other = (each / each.abs().sum() for each in (one, other))
    return float(torch.where(one * other > 0, torch.minimum(one.abs(), other.abs()), 0).sum())


def test_with_a_model_effects_are_what_it_does(graph: Graph, model: ReplacementModel) -> None:
    pruned = prune_graph(graph, 0.95)
    profiles = node_profiles(graph, pruned)
    measured = MeasuredEffects(graph, pruned, profiles, model)
    last_layer = [row for row, node in enumerate(profiles.nodes) if graph.nodes.layer[node] == graph.n_layers - 1][:1]
    token = profiles.roles.index("token")
    found, predicted = measured.of([last_layer, [token]]), PredictedEffects(graph, pruned, profiles).of([last_layer])
    torch.testing.assert_close(found[:1], predicted, rtol=1e-3, atol=1e-6)  # nothing is left to react
    assert not found[1].any()

    grouping = group_nodes(graph, model, labels=load_labels(), node_threshold=0.95)
    assert grouping.score is not None
    assert grouping.score.measured
    assert grouping.score.calibration == pytest.approx(1, abs=0.6)
    assert 0.85 <= grouping.score.purity <= 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"purity": 1.2}, r"purity is 1\.2; expected a share"),
        ({"max_layers": -1}, "max_layers is -1"),
        ({"node_threshold": 2.0}, r"node_threshold is 2\.0"),
        ({"purity": "high"}, "purity"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_input(options: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        random_graph().supernodes(**options)


@pytest.mark.slow("500 nodes, timed")
def test_500_nodes_take_less_than_2_seconds() -> None:
    graph = doubled(random_graph(seed=1, n_layers=12, n_pos=5, n_active=300, n_selected=240, density=0.5))
    assert int(prune_graph(graph, 1.0).node_mask.sum()) >= 500
    graph.blocks  # noqa: B018 - an order that graphs keep
    started = time.process_time()
    grouping = group_nodes(graph, node_threshold=1.0)
    assert time.process_time() - started < 2
    assert len(grouping) <= graph.n_nodes - 240


def test_influence_of_groups_is_that_of_their_nodes_less_what_stays_inside(graph: Graph) -> None:
    grouping = group_nodes(graph, node_threshold=0.95)
    circuit = contract(graph, grouping)
    influence = node_influence(graph.edges, graph.blocks, graph.target_weights)
    matrix = graph.adjacency_matrix.double()
    flow = (
        matrix.abs() / matrix.abs().sum(1, keepdim=True).clamp(min=1e-10) * (influence + graph.target_weights)[:, None]
    )
    for row, nodes in enumerate(circuit.nodes):
        inner = sum(float(flow[a, b] + flow[b, a]) for a, b in combinations(nodes, 2))
        assert float(circuit.influence[row]) == pytest.approx(float(influence[list(nodes)].sum()) - inner, abs=1e-9)
