"""Names of groups: from labels, from what they promote, from examples, and by a language model on this machine."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.circuits import Grouping, Role, Supernode
from circuit_tracer.circuits.naming import interpret_groups, name_groups, titles
from circuit_tracer.circuits.naming.concepts import (
    AHEAD,
    LONGEST,
    Concept,
    concepts,
    leading,
    several,
    shortened_name,
    tally,
)
from circuit_tracer.circuits.naming.context import labels_in_context
from circuit_tracer.circuits.naming.endpoint import read_answer
from circuit_tracer.circuits.naming.promoted import Active, promoted_by
from circuit_tracer.demo import FEATURES
from circuit_tracer.features import FeatureFolder
from circuit_tracer.features.chat import ChatModel
from circuit_tracer.features.interpret import Interpretation
from circuit_tracer.features.labels import STANDS_OUT, WORDS
from circuit_tracer.features.logits import vocabulary_effects
from circuit_tracer.graph.influence import edge_influence, node_influence
from circuit_tracer.models.parts import bind
from tests.support.fake_servers import KEY, FakeServer
from tests.support.graph_cases import random_graph
from tests.support.tiny import tiny_model, tiny_transcoder

GRAPH = random_graph()
IDS = GRAPH.nodes.ids()
PLACES = [(layer, index) for layer, _, index in GRAPH.active_features[GRAPH.selected_features].tolist()]


def group(*members: int, role: Role = "detects", name: str = "") -> Grouping:
    return Grouping((Supernode(name, role, tuple(IDS[member] for member in members)),))


def named(grouping: Grouping, **sources: Any) -> str:
    return name_groups(GRAPH, grouping, **sources).supernodes[0].name


@pytest.mark.parametrize(
    ("label", "found"),
    [
        ("Texas (places)", ["Texas"]),
        ("say Austin", ["say Austin"]),
        ("promotes the word “Austin”", ["say Austin"]),
        ('"capital"', ["capital"]),
        ("mentions of rivers", ["rivers"]),
        ("mixed: Texas (cities), say Texas", ["Texas", "say Texas"]),
        ("a, b", ["a, b"]),
        ("(places)", ["(places)"]),
        ("say a capital: Austin, Boise, Lima", ["say a capital"]),
        ("time: noon", ["time: noon"]),
    ],
)
def test_what_a_label_names(label: str, found: list[str]) -> None:
    assert [str(concept) for concept in concepts(label)] == found


def test_concepts_count_by_weight_of_the_labels_that_name_them() -> None:
    weights = tally([("Texas (places)", 3.0), ("mixed: texas, Utah (cities), Utah (name)", 3.0), ("say Utah", 0.5)])
    assert weights == {Concept("Texas"): 4.5, Concept("Utah"): 3.0, Concept("Utah", says=True): 0.5}
    assert leading(weights, 6.5) == "Texas"
    assert leading(weights, 10.1) is None  # too little of the whole
    assert several(weights, 6.5) == "Texas, Utah"
    assert several({Concept(name): 1.0 for name in "abcd"}, 4.0) == "a, b"
    assert several({Concept(name): 1.0 for name in "abcd"}, 1.0) == "a, b, …"
    assert leading({}, 0.0) is several({}, 0.0) is None
    assert len(shortened_name("word " * 20)) <= LONGEST + 2


@pytest.mark.parametrize(
    ("labels", "name"),
    [
        ([("mixed: Utah, Ohio, Iowa", 1.0)], None),  # of one feature nobody knows which
        ([("mixed: Utah, Ohio, Iowa", 1.0), ("mixed: Ohio, Maine, say yes", 1.0)], "Ohio"),  # what they have in common
        ([("mixed: Utah, Ohio, Iowa", 1.0), ("Ohio", 0.05)], None),  # by too little
    ],
    ids=["alone", "in-common", "by-too-little"],
)
def test_mixed_labels_name_what_they_have_in_common(labels: list[tuple[str, float]], name: str | None) -> None:
    assert leading(tally(labels), sum(weight for _, weight in labels)) == name


def test_labels_name_what_detects_and_what_says() -> None:
    labels = dict.fromkeys(PLACES[:2], "Texas (places)") | {PLACES[2]: "say Austin"}
    assert named(group(0, 1), labels=labels) == "Texas"
    assert named(group(2, role="says"), labels=labels) == "say Austin"
    assert named(group(0, name="mine"), labels=labels) == "mine"
    assert named(group(0, name="mine"), labels=labels, over=True) == "Texas"
    by_id = {IDS[0]: "Utah"}
    assert named(group(0), labels=by_id) == "Utah"


def test_the_token_that_a_feature_stands_on_gives_way_to_what_else_its_group_is_about() -> None:
    token = GRAPH.token_texts[int(GRAPH.nodes.position[0])].strip()
    labels = {IDS[0]: f'"{token}"', IDS[1]: "Texas (places)"}
    assert named(group(0, 1), labels=labels) == "Texas"
    assert named(group(0), labels=labels).startswith(token), "if there is nothing else"


def test_labels_of_several_things_are_read_in_context() -> None:
    """Against a loop over all edges of a dense graph."""
    edges, weights = GRAPH.edges, GRAPH.target_weights
    influence = node_influence(edges, GRAPH.blocks, weights)
    flow = torch.zeros(GRAPH.n_nodes, GRAPH.n_nodes, dtype=torch.float64)
    flow[edges.target, edges.source] = edge_influence(edges, influence, weights).abs().double()
    both = (flow + flow.T)[0, : GRAPH.nodes.layout.n_features]
    first, second, third = both.argsort(descending=True)[:3].tolist()
    labels = {IDS[0]: "mixed: Utah (cities), Texas (cities), Ohio", IDS[first]: "say texas", IDS[third]: "Maine"}
    assert labels_in_context(GRAPH, labels) == labels | {IDS[0]: "Texas (cities)"}
    assert labels_in_context(GRAPH, labels | {IDS[second]: "Utah (name)"})[IDS[0]] == (
        "Texas (cities)" if both[first] - both[second] >= AHEAD * (both[first] + both[second]) else labels[IDS[0]]
    )
    alone = {IDS[0]: labels[IDS[0]], IDS[third]: "Maine"}
    assert labels_in_context(GRAPH, alone) == alone, "nothing speaks for any of them"
    output = GRAPH.targets.label[0].strip()
    said = {IDS[0]: f"mixed: say nothing, say {output}"}
    spoken = bool(flow[GRAPH.nodes.layout.target_start, 0])
    assert labels_in_context(GRAPH, said)[IDS[0]] == (f"say {output}" if spoken else said[IDS[0]])


def test_a_group_that_says_is_named_by_what_its_members_promote_together() -> None:
    """Each alone promotes its own token more; the sum stands out at a third."""
    record = {"logit_spread": 1.0, "n_vocabulary": 10, "examples_quantiles": []}
    records = {
        PLACES[0]: {**record, "top_logits": [" own", " both"], "top_logit_values": [9.0, 8.0]},
        PLACES[1]: {**record, "top_logits": [" other", " both"], "top_logit_values": [9.0, 8.0]},
    }
    assert named(group(0, 1, role="says"), features=records).startswith("say both")
    kinds = dict.fromkeys(PLACES[:2], "say a capital")
    assert named(group(0, 1, role="says"), features=records, labels=kinds).startswith("say a capital: both")
    quiet = {place: {**each, "logit_spread": 100.0} for place, each in records.items()}
    assert "both" not in named(group(0, 1, role="says"), features=quiet)


def test_effects_on_the_vocabulary_are_those_of_the_model() -> None:
    """Against the definition, written out: the sum of decoder rows through the final norm's gain and the unembedding."""
    model = Traceable(bind(tiny_model("llama"), "llama"), tiny_transcoder("clt"), None)
    members = [Active((0, 3), 2.0, 1.0), Active((1, 5), 0.5, 1.0), Active((0, 7), 1.0, 1.0)]
    written = sum(
        member.activation * model.transcoders.decoder_rows(member.place[0], torch.tensor([member.place[1]]))[0].sum(0)
        for member in members
    )
    assert isinstance(written, torch.Tensor)
    effect = model.parts.unembed.weight.double() @ (written.double() * model.parts.final_norm.parameters.gain.double())
    effect = effect - effect.mean()
    found = vocabulary_effects(model.parts, written[None], len(effect))[0]
    assert torch.allclose(found.double(), effect, rtol=1e-9, atol=1e-9)
    chance = STANDS_OUT * float(effect.std(correction=0)) * math.sqrt(2 * math.log(len(effect)))
    expected = int((effect > chance).sum())
    assert len(promoted_by(members, model)) == min(WORDS, expected)
    best = int(effect.argmax())
    assert len(promoted_by(members, model, {best})) == max(
        1, min(WORDS, expected)
    )  # an output, and the strongest of all
    assert promoted_by(members, model, {(best + 1) % len(effect)}) == promoted_by(members, model)


def test_examples_name_what_has_no_label() -> None:
    def record(token: str) -> dict[str, Any]:
        example = {"tokens": ["x", token], "tokens_acts_list": [0.0, 3.0], "train_token_ind": 1}
        return {"examples_quantiles": [{"examples": [example]}]}

    assert named(group(0, 1), features={PLACES[0]: record(" Dallas"), PLACES[1]: record(" Dallas")}) == "“Dallas”"


def test_titles_tell_groups_apart_and_say_what_unnamed_ones_are() -> None:
    layout = GRAPH.nodes.layout
    members = [(0,), (1,), (2, 3), (layout.error_start,), (layout.token_start,), (layout.target_start,)]
    roles: list[Role] = ["detects", "detects", "detects", "error", "token", "logit"]
    grouping = Grouping(
        tuple(
            Supernode("same" if len(each) == 1 and each[0] < 2 else "", role, tuple(IDS[node] for node in each))
            for role, each in zip(roles, members, strict=True)
        )
    )
    found = titles(GRAPH, grouping)
    assert len(set(found)) == len(found)
    assert all(title.startswith("same at “") for title in found[:2])
    assert found[2].startswith("group of 2 at “")
    assert found[3].startswith("error L0 at “")
    assert found[4:] == ["“<bos>”", '“"tok0"”']

    position = GRAPH.nodes.position[: layout.n_features].tolist()
    here = [node for node, place in enumerate(position) if place == position[0]][:4]
    pairs = [Supernode("", "detects", tuple(IDS[node] for node in pair)) for pair in (here[:2], here[2:])]
    assert all(title.count(" at ") == 1 for title in titles(GRAPH, Grouping(tuple(pairs))))  # where it stands, once


class Moved(FeatureFolder):
    """The demo's records of features that are active often, as those of other features."""

    def __init__(self, places: Sequence[tuple[int, int]]) -> None:
        super().__init__(FEATURES)
        demo = FeatureFolder(FEATURES)
        often = (record for place in demo if (record := demo.get(place))["n_active"] > 20)
        self.records = dict(zip(dict.fromkeys(places), often, strict=False))

    def get(self, place: tuple[int, int], default: Any = None) -> Any:
        return self.records.get(place, default)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.records)


@pytest.fixture(scope="module")
def answering() -> Iterator[tuple[FakeServer, list[str]]]:
    """A server whose model says what stands first in a list, and finds every text."""
    says: list[str] = []

    def answers(method: str, path: str, body: Any, headers: Any) -> tuple[int, Any]:
        asked = body["messages"][1]["content"]
        numbers = re.findall(r"^(\d+)\. ", asked, re.MULTILINE)
        text = ", ".join(numbers) if asked.startswith("Feature: ") else says[0]
        return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}

    with FakeServer(answers).running() as server:
        yield server, says


def test_a_language_model_names_and_is_scored_on_texts_it_had_not_seen(
    answering: tuple[FakeServer, list[str]], tmp_path: Path
) -> None:
    server, says = answering
    says[:] = ['Sure: {"kind": "detects", "name": "Texan cities"}']
    features = Moved(PLACES)
    grouping = Grouping((*group(0, 1, 2), *group(5, role="says")))
    chat = ChatModel("some-model", f"{server.address}/v1", tmp_path, KEY)
    found = interpret_groups(GRAPH, grouping, features, chat, {PLACES[0]: "a label"}, Interpretation(6, 3))
    assert found[0].name == "Texan cities"
    assert (found[0].kind, found[0].source) == ("detects", "openai:some-model")
    assert found[0].score == 0.5  # it finds every text: half of them rightly
    naming, finding = (body["messages"][1]["content"] for _, _, body in server.asked[:2])
    assert '["a label"]' in naming
    texts = {text for text in _listed(finding) if _plain(text) not in map(_plain, _listed(naming))}
    assert len(_listed(finding)) >= 5  # up to three of the group, and as many others
    assert len(texts) >= 3  # those with the group's features were not shown


def _listed(asked: str) -> list[str]:
    return re.findall(r"^\d+\. (.*)$", asked, re.MULTILINE)


def _plain(text: str) -> str:
    return " ".join(re.sub(r"<<|>>(\(\d+\))?", "", text).split())


@pytest.mark.parametrize(
    ("answer", "role", "name"),
    [
        ('{"kind": "says", "name": "say Austin"}', "says", "say Austin"),
        ('{"kind": "says", "name": "Austin"}', "mixed", "say Austin"),
        ('{"kind": "says", "name": "Austin"}', "detects", None),
        ('{"kind": "reads", "name": "Austin"}', "detects", None),
        ('{"kind": "detects"}', "detects", None),
        ("Texas", "detects", None),
        ('{"kind": "detects", "name": ', "detects", None),
    ],
)
def test_only_an_answer_of_the_list_is_taken(answer: str, role: Role, name: str | None) -> None:
    found = read_answer(answer, Supernode("", role, ("0_1_2",)))
    assert (None if found is None else str(found)) == name
