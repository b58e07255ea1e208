"""Stories: their numbers against naive statements, their evidence against interventions made by hand."""

from __future__ import annotations

import json
from itertools import combinations, pairwise
from pathlib import Path

import pytest
import torch

from circuit_tracer import Graph
from circuit_tracer.attribution import attribute
from circuit_tracer.circuits import Grouping, Role, Supernode, contract, group_nodes
from circuit_tracer.circuits.naming import name_groups
from circuit_tracer.circuits.story import Contrast, Sentence, Story, tell
from circuit_tracer.circuits.story.contrast import LIVE
from circuit_tracer.circuits.story.evidence import PART
from circuit_tracer.circuits.story.scene import LEAST_CHAIN, LEAST_DETOUR, LEAST_SHARE, MOST_CHAINS, Scene
from circuit_tracer.circuits.story.words import percent
from circuit_tracer.demo import PROMPT, load_labels
from circuit_tracer.demo.show import contrast_prompt, load_demo
from circuit_tracer.errors import FileFormatError, InputError
from circuit_tracer.interventions import ablate, apply_edits
from circuit_tracer.replacement_model import ReplacementModel
from tests.support.graph_cases import random_graph

OTHER = "the capital of the state containing Oakland is"


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    return load_demo()


def grouped(graph: Graph, model: ReplacementModel) -> Grouping:
    labels = load_labels()
    return name_groups(graph, group_nodes(graph, labels=labels), labels=labels, model=model)


@pytest.fixture(scope="module")
def told(model: ReplacementModel) -> tuple[Graph, Grouping, Story]:
    graph, other = attribute(PROMPT, model), attribute(OTHER, model)
    groups = grouped(graph, model)
    contrast = Contrast(other, grouped(other, model))
    return graph, groups, tell(graph, model, groups, contrasts=[contrast], random_groups=3)


def of_kind(story: Story, kind: str) -> list[Sentence]:
    return [sentence for sentence in story.sentences if sentence.kind == kind]


def test_the_demo_is_told_from_the_city_to_the_answer(told: tuple[Graph, Grouping, Story]) -> None:
    graph, groups, story = told
    assert story.target == "“Austin”"
    assert "“Dallas” → Texas → " in of_kind(story, "chains")[0].text
    assert {group.name for group in groups} >= {"Texas", "say a capital: Austin"}
    ids = set(graph.nodes.ids())
    assert all(sentence.node_ids and set(sentence.node_ids) <= ids for sentence in story.sentences)
    assert all(sentence.status != "not tested" for sentence in story.sentences)
    swap = of_kind(story, "contrast")[0]
    assert swap.status == "holds"
    assert "“Sacramento”" in swap.text


def test_what_a_group_is_worth_is_what_ablating_it_does(
    told: tuple[Graph, Grouping, Story], model: ReplacementModel
) -> None:
    """Against `apply_edits`, which goes another way: it sets the features instead of taking out what they wrote."""
    graph, _, story = told
    for sentence in of_kind(story, "carries"):
        features = [tuple(map(int, node.split("_"))) for node in sentence.node_ids]
        if len({layer for layer, _, _ in features}) > 1:
            continue  # an edit sets later members from where the earlier ones have moved them
        outcome = apply_edits(model, graph, ablate([(layer, at, index) for layer, index, at in features]), LIVE, "none")
        target = int(graph.targets.token_id[0])
        after = float(outcome.logits[-1].softmax(-1)[target])
        assert sentence.evidence is not None
        chance, logit = sentence.evidence.measurements
        assert chance.after == pytest.approx(after, abs=2e-4)
        change = outcome.logit_change()
        assert logit.after - logit.before == pytest.approx(float(change[target] - change.mean()), abs=2e-2)
        assert logit.predicted is not None
        holds = (logit.after - logit.before) / (logit.predicted - logit.before) >= PART
        assert sentence.status == ("holds" if holds else "does not hold")
        assert percent(chance.after) in sentence.evidence.text


def test_a_sentence_whose_claim_fails_says_so(told: tuple[Graph, Grouping, Story], model: ReplacementModel) -> None:
    """A graph whose edges out of a group are turned around predicts the opposite of what the model does."""
    _, groups, _ = told
    wrong = attribute(PROMPT, model)
    members = next(group.members for group in groups if group.name == "Texas")
    texas = [place for place, name in enumerate(wrong.nodes.ids()) if name in members]
    matrix = wrong.adjacency_matrix.clone()
    matrix[:, texas] *= -1
    wrong.adjacency_matrix = matrix
    story = tell(wrong, model, groups, random_groups=0)
    claims = [sentence for sentence in of_kind(story, "carries") if sentence.text.startswith("Texas ")]
    assert [sentence.status for sentence in claims] == ["does not hold"]


def test_without_a_model_nothing_is_tested_and_names_do_not_change_numbers(told: tuple[Graph, Grouping, Story]) -> None:
    graph, groups, _ = told
    kept = graph.story
    story = tell(graph, None, groups)
    other = tell(graph, None, groups.named({place: f"x{place}" for place in range(len(groups))}))
    graph.story = kept
    assert {sentence.status for sentence in story.sentences} == {"not tested"}
    assert "not tested" in story.markdown()
    assert [sentence.node_ids for sentence in story.sentences] == [sentence.node_ids for sentence in other.sentences]
    numbers = [[word for word in " ".join(each.lines()).split() if word.startswith("%")] for each in (story, other)]
    assert numbers[0] == numbers[1]


def test_a_story_stays_with_its_graph_until_the_edges_change(
    told: tuple[Graph, Grouping, Story], tmp_path: Path
) -> None:
    graph, _, story = told
    assert Story.from_json(json.loads(json.dumps(story.to_json()))) == story
    read = Graph.load(graph.save(tmp_path / "g.safetensors"))
    assert Story.from_json(read.story) == story
    written = json.loads(read.to_json("g", tmp_path).read_text(encoding="utf-8"))
    assert Story.from_json(written["metadata"]["story"]) == story
    assert "story" not in (tmp_path / "graph-metadata.json").read_text(encoding="utf-8")
    read.adjacency_matrix = read.adjacency_matrix * 2
    assert read.story is None


@pytest.mark.parametrize("value", [None, {}, {"version": 2}, {"version": 1, "sentences": [3]}], ids=repr)
def test_what_is_no_story_is_refused(value: object) -> None:
    with pytest.raises(FileFormatError, match="Tell it again"):
        Story.from_json(value)


def test_markdown_keeps_signs_as_they_are() -> None:
    story = Story("a_b*", "p", "t", (Sentence("answer", "<s> [x]", ("0_1_2",)),))
    assert story.markdown().startswith("# a\\_b\\*\n\n1. \\<s\\> \\[x\\]\n   - **not tested**\n   - nodes: `0_1_2`\n")


def test_contrasts_must_fit(told: tuple[Graph, Grouping, Story], model: ReplacementModel) -> None:
    graph, groups, _ = told
    longer = attribute("the capital of Texas is", model)
    with pytest.raises(InputError, match="has 6 tokens and the prompt 9"):
        tell(graph, None, groups, contrasts=[Contrast(longer, grouped(longer, model))])
    with pytest.raises(InputError, match="names the node"):
        tell(graph, None, Grouping((Supernode("x", "detects", ("9_9_9",)),)))


@pytest.mark.parametrize(
    ("prompt", "swap", "expected"),
    [
        (PROMPT, None, OTHER),
        (PROMPT, "Oregon", "the capital of the state containing Portland is"),
        ("the capital of California is", None, "the capital of Texas is"),
        ("the language of the country containing Lyon is", None, "the language of the country containing Milan is"),
        ("after Monday comes", None, None),
    ],
)
def test_the_demo_knows_what_to_put_beside_a_prompt(prompt: str, swap: str | None, expected: str | None) -> None:
    assert contrast_prompt(prompt, swap) == expected


@pytest.mark.parametrize(("prompt", "swap"), [(PROMPT, "France"), (PROMPT, "Texas"), ("after Monday comes", "Texas")])
def test_the_demo_refuses_what_cannot_stand_there(prompt: str, swap: str) -> None:
    with pytest.raises(InputError, match=f"--swap {swap}"):
        contrast_prompt(prompt, swap)


@pytest.mark.parametrize("seed", range(4))
def test_chains_are_the_best_ways_of_all(seed: int) -> None:
    """Against all ways, written out: of each token the longest that has enough of its best weight."""
    graph = random_graph(seed, n_selected=10)
    layout, ids = graph.nodes.layout, graph.nodes.ids()
    role: Role = "detects"
    grouping = Grouping(
        tuple(Supernode("", role, (ids[node],)) for node in range(layout.n_features)), {"node_threshold": 1.0}
    )
    scene = Scene(graph, grouping)
    shares = contract(graph, grouping).shares
    found = {}
    for token in (place for place, group in enumerate(scene.groups) if group.role == "token"):
        ways = []
        for count in range(1, len(scene.spoken) + 1):
            for inner in combinations(scene.spoken, count):
                way = (token, *inner, scene.answer)
                steps = torch.tensor([float(shares[after, before]) for before, after in pairwise(way)])
                if bool((steps >= LEAST_SHARE).all()):
                    ways.append((float(steps.double().prod()), way))
        best = max((weight for weight, _ in ways), default=0.0)
        if told := [(len(way), weight, way) for weight, way in ways if weight >= LEAST_DETOUR * best]:
            found[token] = max(told)
    top = max((weight for _, weight, _ in found.values()), default=0.0)
    ranked = sorted(found.values(), key=lambda each: (-each[0], -each[1]))
    assert scene.chains == [list(way) for _, weight, way in ranked if weight >= LEAST_CHAIN * top][:MOST_CHAINS]


def test_the_answer_is_told_of_the_place_where_it_is_read(model: ReplacementModel) -> None:
    graph = attribute(PROMPT, model, position=4)
    told = tell(graph, None, Grouping(())).sentences[0].text
    assert told.startswith("After “the capital of the” the model says “state” at 4 with ")
    asked = attribute(PROMPT, model, attribution_targets=[" Sacramento"])
    told = tell(asked, None, Grouping(())).sentences[0].text
    assert told == f"After “{PROMPT}” the model gives “Sacramento” a probability of under 0.1 %."
