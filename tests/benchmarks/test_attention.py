"""The benchmarks of explained attention, on a few prompts of the embedded model, and the pieces they are made of."""

from __future__ import annotations

import pytest
import torch

from benchmarks.attention.heads import Head, heads_of, ranked
from benchmarks.attention.induction import NAMES, OVERLAP, Repeated, loadings, overlap, random_groups, repeated_prompts
from benchmarks.attention.world import Story, missed, story, summary, usual_outputs
from benchmarks.tables import attention as tables
from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.attention import explain_edge
from circuit_tracer.demo import world
from circuit_tracer.demo.show import load_demo

HEADS: list[Head] = [(layer, head) for layer in range(2) for head in range(2)]
HOW = "mean over the prompt"


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    return load_demo()


def told(changed: list[Head], **more: object) -> Story:
    return Story("held out", True, ["city"], (1, 0), 0.9, True, 1.0, {HOW: changed}, "feature", True, **more)  # type: ignore[arg-type]


def test_a_question_s_entity_is_followed_through_the_head_that_its_edge_names(model: ReplacementModel) -> None:
    one = next(each for each in world.reserved() if each.city == "Gadsden" and each.relation == "capital")
    features = {"Alabama": {(0, 361): 1.0, (0, 379): 1.0}, "Texas": {}}
    usual = usual_outputs(model, [each.prompt for each in world.seen_two_hops()[::300]])
    found = story(model, features, one, "trained", usual, "Texas", check=True)
    assert found.right
    assert found.positions == ["city", "city"]
    assert found.head == (1, 0)
    assert found.share > 0.9
    assert all((1, 0) in heads for heads in found.changed.values())
    assert len(found.changed) == 3
    assert found.top_own
    assert found.top_at_city
    assert not found.top_other
    assert found.attention > 0.9
    nothing = story(model, {"Alabama": {}}, one, "trained", usual, "Alabama", check=False)
    assert nothing.right
    assert nothing.head is None
    assert not nothing.positions


def test_counts_have_their_denominators_and_missed_aims_are_named() -> None:
    stories = [told([(1, 0)])] * 3 + [told([(1, 0), (1, 1)]), told([]), Story("held out", True), Story("held out")]
    found = summary(stories, HEADS)
    assert (found["prompts"], found["answered right"], found["heads"]["of"]) == (7, 6, 5)
    ablated = found["answers changed"][HOW]
    assert (ablated["of"], ablated["named head"], ablated["another head of its layer"]) == (5, 4, 1)
    assert ablated["by head"] == {"L0H0": 0, "L0H1": 0, "L1H0": 4, "L1H1": 1}
    assert missed(found) == ["prompts"]
    assert missed(found | {"prompts": 200}) == []
    assert missed(summary([told([(1, 1)])], HEADS)) == [
        "prompts",
        "answers changed by the named head",
        "answers changed by other heads of its layer",
    ]
    assert missed(summary([Story("held out", True)], HEADS))[1].startswith("no edge")
    text = "\n".join(tables.world(found | {"groups": {"held out": found}}))
    assert "| L1H0: 5 | L1H0: 5 |" in text
    assert f"another head of its layer ({HOW}) | 1 | 1 |" in text


def test_loadings_are_those_of_the_edges_one_by_one(model: ReplacementModel) -> None:
    ids = model.ensure_tokenized("the capital of Texas is Austin the capital of Texas is")
    austin = int(ids[6])
    shares, count = loadings(model, Repeated(ids, 6, austin), None)
    graph = attribute(ids, model, attribution_targets=torch.tensor([austin]))
    target, edges = graph.nodes.layout.target_start, graph.edges
    sources = edges.source[(edges.target == target) & (graph.nodes.position[edges.source] == 6)].tolist()
    each = [explain_edge(graph, source, target, model, paths=0) for source in sources]
    assert count == len(each) > 5
    assert set(shares) == set(NAMES)
    by_size = sum(one.last.abs() for one in each)
    net = sum(one.first for one in each)
    torch.testing.assert_close(shares["last"], by_size / by_size.sum(), rtol=1e-4, atol=1e-6)  # type: ignore[union-attr]
    torch.testing.assert_close(shares["first, net"], net / net.abs().sum(), rtol=1e-4, atol=1e-5)  # type: ignore[union-attr]


def test_nothing_is_reported_of_a_model_that_does_not_copy(model: ReplacementModel) -> None:
    with pytest.raises(SystemExit, match="nothing reported: the model copies 0 of 8"):
        repeated_prompts(model, 2)


def test_random_groups_are_of_the_layers_asked_for_and_leave_out_the_heads_themselves(model: ReplacementModel) -> None:
    heads = [(layer, head) for layer in range(3) for head in range(9)]
    like = [(0, 0), (0, 1), (2, 0), (2, 5), (2, 8)]
    for group in random_groups(heads, like):
        assert [layer for layer, _ in group] == [0, 0, 2, 2, 2]
        assert len(set(group)) == 5
        assert not set(group) & set(like)
    assert all(len(set(group)) == 5 for group in random_groups(heads, None))
    assert heads_of(model.parts) == [(layer, head) for layer in range(4) for head in range(2)]


def test_overlap_counts_the_heads_that_two_rankings_begin_with() -> None:
    order = ranked(torch.arange(40.0).view(4, 10), 40)
    assert order[:2] == [(3, 9), (3, 8)]
    found = overlap({"induction": order, **dict.fromkeys(NAMES, order[5:] + order[:5])})
    assert found == {"of": OVERLAP, **dict.fromkeys(NAMES, 5), "by chance": 2.5}
