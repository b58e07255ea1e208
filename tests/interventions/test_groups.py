"""Groups taken out at once: the sums that the graph says in the frozen network, chance beside them in the real one; swaps."""

from __future__ import annotations

import pytest
import torch

from circuit_tracer import Graph, ReplacementModel, attribute
from circuit_tracer.errors import InputError
from circuit_tracer.graph.validation import GroupTest, ValidationReport
from circuit_tracer.interventions import apply_edits, group_effects, measure_groups, swap_groups, validate
from circuit_tracer.interventions.validation.prediction import path_effects
from tests.support.tiny import tiny_model, tiny_transcoder

IDS, OTHER_IDS = torch.tensor([1, 17, 4, 33, 17, 9]), torch.tensor([1, 17, 4, 20, 17, 9])


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    return ReplacementModel.from_model(
        tiny_model("llama", torch.float64), tiny_transcoder(dtype=torch.float64), None, "llama"
    )


@pytest.fixture(scope="module")
def graph(model: ReplacementModel) -> Graph:
    return attribute(IDS, model, max_n_logits=5, desired_logit_prob=1.0)


@pytest.fixture(scope="module")
def groups(graph: Graph) -> dict[str, list[str]]:
    """Every kind of node: features in three groups, errors with a feature, a token, and outputs that cannot be taken out."""
    ids, layout = graph.nodes.ids(), graph.nodes.layout
    features = ids[layout.features]
    half = len(features) // 2
    return {
        "half": features[:half],
        "two": features[half : half + 2],
        "one": features[half + 2 : half + 3],
        "errors": [*ids[layout.errors][7:9], features[-1]],
        "token": [ids[layout.token_start + 3], features[-2]],
        "outputs": ids[layout.targets],
    }


@pytest.fixture(scope="module")
def tested(model: ReplacementModel, graph: Graph, groups: dict[str, list[str]]) -> GroupTest:
    return measure_groups(graph, model, groups, random_groups=2)


def test_in_the_frozen_network_a_group_does_the_sum_of_its_edges(
    graph: Graph, groups: dict[str, list[str]], tested: GroupTest
) -> None:
    """On the answer, and on every other group: blocks of the dense adjacency matrix."""
    ids = graph.nodes.ids()
    member = torch.tensor([[node in groups[each.name] for node in ids] for each in tested.effects]).double()
    features = member * (torch.arange(len(ids)) < graph.nodes.layout.n_features)
    between = -(features @ graph.adjacency_matrix @ member.T)  # target group, source group
    on_answer = -(graph.adjacency_matrix[graph.nodes.layout.target_start] @ member.T)
    names = [each.name for each in tested.effects]
    assert names == ["half", "two", "one", "errors", "token"]
    for source, effect in enumerate(tested.effects):
        for found in effect.predicted["edges"], effect.measured["constrained"]:
            assert found == pytest.approx(float(on_answer[source]), rel=1e-8, abs=1e-9)
        assert [link.target for link in effect.onto] == [name for name in names if name != effect.name]
        for link in effect.onto:
            expected = float(between[names.index(link.target), source])
            assert link.predicted["edges"] == pytest.approx(expected, rel=1e-8, abs=1e-9)
            assert link.measured["constrained"] == pytest.approx(expected, rel=1e-8, abs=1e-9)


def test_paths_of_a_group_are_those_of_its_members_at_once(
    graph: Graph, groups: dict[str, list[str]], tested: GroupTest
) -> None:
    ids = graph.nodes.ids()
    for effect in tested.effects:
        nodes = torch.tensor([[ids.index(member) for member in groups[effect.name]]])
        expected = float(path_effects(graph, nodes)[graph.nodes.layout.target_start, 0])
        assert effect.predicted["paths"] == pytest.approx(expected, rel=1e-12)


def test_synergy_is_what_members_do_not_do_alone(
    model: ReplacementModel, graph: Graph, groups: dict[str, list[str]], tested: GroupTest
) -> None:
    half, two, one, _, token = tested.effects
    alone = group_effects(graph, model, {member: [member] for member in groups["two"]}, random_groups=0)
    assert two.singles == pytest.approx(sum(each.measured["live"] or 0 for each in alone), rel=1e-9)
    assert one.synergy == 0
    assert half.synergy is not None
    assert abs(half.synergy) > 1e-6
    assert token.random is None
    assert [token.measured["live"], token.left["live"], token.singles, token.synergy] == [None] * 4


def test_random_groups_are_of_other_features(model: ReplacementModel) -> None:
    """Where just as many others are left as the group has, every draw is all of them."""
    graph = attribute(IDS, model, max_n_logits=2, max_feature_nodes=8)
    features = graph.nodes.ids()[graph.nodes.layout.features]
    groups = {"left": features[:4], "right": features[4:], "most": features[:5]}
    left, right, most = group_effects(graph, model, groups, random_groups=2)
    assert left.random is not None
    assert left.random.change == pytest.approx(right.measured["live"])
    assert left.random.change_low == pytest.approx(left.random.change_high)
    assert left.random.left == pytest.approx(right.left["live"])
    assert most.random is None


def test_all_nodes_are_enough_and_needed(model: ReplacementModel, graph: Graph) -> None:
    layout = graph.nodes.layout
    everything = graph.nodes.ids()[: layout.token_start]
    tested = measure_groups(graph, model, {"all": everything}, random_groups=0)
    for condition, circuit in tested.circuit.items():
        assert circuit.only == pytest.approx(circuit.clean, rel=1e-9), condition
        assert circuit.clean == pytest.approx(tested.clean)
    (effect,) = tested.effects
    assert effect.left["live"] == pytest.approx(tested.circuit["live"].nothing)


def test_a_node_that_is_not_there_is_named(model: ReplacementModel, graph: Graph) -> None:
    with pytest.raises(InputError, match="the group 'Texas' names the node '0_9999_1'"):
        group_effects(graph, model, {"Texas": ["0_9999_1"]})
    assert group_effects(graph, model, {"outputs": graph.nodes.ids()[graph.nodes.layout.targets]}) == []


def test_a_report_carries_groups_and_speaks_of_them(
    model: ReplacementModel, graph: Graph, groups: dict[str, list[str]]
) -> None:
    report = validate(graph, model, groups={"two": groups["two"], "half": groups["half"]}, random_control=False)
    assert report.groups is not None
    assert [each.name for each in report.groups.effects] == ["two", "half"]
    assert any("Without 'half'" in sentence for sentence in report.verdict)
    assert ValidationReport.from_json(report.to_json()) == report


# ---- swaps


def test_a_group_swapped_for_another_prompts_has_its_values(model: ReplacementModel, graph: Graph) -> None:
    other = attribute(OTHER_IDS, model, max_n_logits=2)
    ours, theirs = (
        [each for each in one.nodes.ids()[one.nodes.layout.features] if each[-2:] == "_3"] for one in (graph, other)
    )
    outcome = apply_edits(model, graph, swap_groups(graph, ours, other, theirs, strength=2.0), watch="none")
    there = {
        (int(layer), int(position), int(index)): 2.0 * float(value)
        for (layer, position, index), value in zip(other.active_features, other.activation_values, strict=True)
        if position == 3
    }
    gone = {(int(layer), int(place), int(index)): 0.0 for layer, place, index in graph.active_features if place == 3}
    assert outcome.values == pytest.approx(gone | there)


def test_a_group_swapped_for_itself_changes_nothing(
    model: ReplacementModel, graph: Graph, groups: dict[str, list[str]]
) -> None:
    outcome = apply_edits(model, graph, swap_groups(graph, groups["half"], graph, groups["half"]), watch="none")
    torch.testing.assert_close(outcome.logits, outcome.clean_logits, rtol=1e-12, atol=1e-12)


def test_swaps_that_cannot_be_say_so(model: ReplacementModel, graph: Graph, groups: dict[str, list[str]]) -> None:
    other = attribute(OTHER_IDS[:-1], model, max_n_logits=2)
    feature = [other.nodes.ids()[0]]
    with pytest.raises(InputError, match="6 and 5 tokens"):
        swap_groups(graph, groups["one"], other, feature)
    with pytest.raises(InputError, match="no place here"):
        swap_groups(graph, groups["one"], other, feature, at={})
    with pytest.raises(InputError, match="holds no feature"):
        swap_groups(graph, groups["outputs"], graph, groups["one"])
    with pytest.raises(InputError, match="names the node '9_9_9'"):
        swap_groups(graph, ["9_9_9"], graph, groups["one"])
