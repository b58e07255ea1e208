"""The benchmark of explanations on a few prompts, and how names and labels are read."""

from __future__ import annotations

import pytest

from benchmarks.explanations.__main__ import missed, prompts
from benchmarks.explanations.doubts import permuted_labels, random_groups
from benchmarks.explanations.effects import effects
from benchmarks.explanations.explained import OF_FEATURES, Explained, found
from benchmarks.explanations.swaps import swaps
from benchmarks.explanations.truth import Concept, concept_of, is_named_after, says
from circuit_tracer.circuits.supernodes import Grouping, Supernode
from circuit_tracer.demo import load_labels, world
from circuit_tracer.demo.show import load_demo
from circuit_tracer.replacement_model import ReplacementModel

LABELS = load_labels()
TEXAS, CALIFORNIA = (
    world.two_hop(world.entity(name), city, "capital") for name, city in (("Texas", "Dallas"), ("California", "Fresno"))
)


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    return load_demo()


@pytest.fixture(scope="module")
def cases(model: ReplacementModel) -> list[Explained]:
    return [Explained.of(one, model, LABELS) for one in (TEXAS, CALIFORNIA)]


@pytest.mark.parametrize(
    ("label", "concept"),
    [
        ("Texas (question about it)", (False, "Texas")),
        ("say Austin", (True, "Austin")),
        ("say the capital of a state", (True, "capital")),
        ("say a capital: Austin, Boise, Lima", (True, "capital")),
        ("say an abbreviation", (True, "abbreviation")),
        ("asked for: capital", (False, "capital")),
        ('"capital"', (False, "capital")),
        ("US cities", (False, "US cities")),
        ("mixed: say Texas, say Italy", None),
        (None, None),
    ],
)
def test_labels_name_one_thing_or_none(label: str | None, concept: Concept | None) -> None:
    assert concept_of(label) == concept


def test_names_are_read_without_what_tells_them_apart() -> None:
    for name in ("New York", "New York at “Buffalo”", "New York at “Buffalo”, “is” L0–1 #2", "New York #1"):
        assert is_named_after(name, "New York")
    for name in ("New York, Texas", "say New York", "New York City", "York"):
        assert not is_named_after(name, "New York")
    assert says("say Austin, Albany at “is” L2", "Austin")
    assert says("say a capital: Austin, Albany at “is” L2", "Austin")
    assert not says("say a capital: Albany", "Austin")
    assert not says("say a capital", "capital")
    assert not says("say Albany, Austin", "Austin")
    assert not says("Austin", "Austin")


@pytest.mark.slow("takes 1.2 s")
def test_the_known_chain_is_found_and_carries_the_answer(cases: list[Explained], model: ReplacementModel) -> None:
    shares = found(cases)
    assert shares["the model is right"] == shares["the entity's group is found"] == 1
    assert 0 < shares["purity by influence"] <= 1
    turned = swaps(cases, cases, model)
    assert turned["swaps tried"] == 2
    assert turned["the answer turns, 2x"] == 1
    assert turned["random groups, 1x"] == 0
    done = effects(cases[:1], model)
    assert done["all frozen: worst difference from the edges"] < 1e-4
    assert done["the entity's group"]["without it"] < 0.5 < done["the entity's group"]["probability with it"]


def test_purity_counts_the_leading_concept_of_known_features(cases: list[Explained]) -> None:
    """One group of all features is as pure as its largest concept; groups of one as the features that are of one kind."""
    case = cases[0]
    nodes = [node for group in case.of_features for node in group.members if node in case.label]
    of_one = {node: case.influence[node] for node in nodes if concept_of(case.label[node]) is not None}
    apart = Grouping(tuple(Supernode("", "detects", (node,)) for node in nodes))
    together = Grouping((Supernode("", "mixed", tuple(nodes)),))
    purities = [Explained(TEXAS, case.graph, grouping, LABELS).purity() for grouping in (apart, together)]
    assert purities[0].leading == pytest.approx(sum(of_one.values()))
    by_concept: dict[Concept | None, float] = {}
    for node, influence in of_one.items():
        concept = concept_of(case.label[node])
        by_concept[concept] = by_concept.get(concept, 0.0) + influence
    assert purities[1].leading == pytest.approx(max(by_concept.values()))
    assert purities[0].total == pytest.approx(purities[1].total)
    mixed, whole = case.mixed()
    assert mixed == pytest.approx(whole - purities[0].leading)


def test_doubts_change_what_they_name_and_nothing_else(cases: list[Explained], model: ReplacementModel) -> None:
    permuted = permuted_labels(LABELS)
    assert permuted != LABELS
    for layer in {place[0] for place in LABELS}:
        assert sorted(text for place, text in permuted.items() if place[0] == layer) == sorted(
            text for place, text in LABELS.items() if place[0] == layer
        )
    drawn = random_groups(cases[0].graph, model, LABELS)
    for ours, theirs in zip(cases[0].grouping, drawn, strict=True):
        assert len(ours.members) == len(theirs.members)
        if ours.role not in OF_FEATURES:
            assert ours.members == theirs.members
    assert any(ours.members != theirs.members for ours, theirs in zip(cases[0].grouping, drawn, strict=True))


def test_prompts_are_many_and_the_same_every_time() -> None:
    chosen = prompts()
    assert sum(map(len, chosen.values())) >= 200
    assert chosen == prompts()
    assert {one.city for one in chosen["reserved cities"]} <= {one.reserved_city for one in world.entities()}
    assert not set(chosen["held out"]) & set(world.model_training())


def test_aims_that_are_missed_are_named() -> None:
    good = {
        "found": {
            "the entity's group is found": 0.9,
            "the answer's group is found": 0.95,
            "purity by influence": 1.0,
            "mixed features, of the pruned graph's influence": 0.1,
        },
        "swaps": {"the answer turns, 1x": 0.9, "random groups, 1x": 0.03},
    }
    assert missed({"trained": good}) == []
    worse = {
        "found": good["found"] | {"purity by influence": 0.89},
        "swaps": good["swaps"] | {"random groups, 1x": 0.04},
    }
    assert missed({"trained": worse}) == [
        "trained: purity by influence 89.0% (aim 90%)",
        "trained: random groups, 1x 4.0% (aim 3%)",
    ]
