"""Labels by a language model and from Neuronpedia, against servers on this machine that speak the real protocols."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from circuit_tracer.cli.main import app
from circuit_tracer.demo import FEATURES
from circuit_tracer.errors import InputError, ResourceError
from circuit_tracer.features import FeatureFolder
from circuit_tracer.features.chat import ChatModel
from circuit_tracer.features.interpret import (
    Interpretation,
    Interpreter,
    explain_messages,
    in_turn,
    marked_text,
    split_examples,
)
from circuit_tracer.features.labels import Label, load_labels
from circuit_tracer.features.neuronpedia_labels import fetch_labels
from circuit_tracer.graph.files.node_ids import cantor_pair
from circuit_tracer.neuronpedia import Neuronpedia
from tests.support.fake_servers import KEY, FakeServer, chat_answers, label_answers
from tests.support.json_lines import require_lines

FOLDER = FeatureFolder(FEATURES)
ACTIVE = [place for place in FOLDER if FOLDER.get(place)["n_active"]]
PLACES = [*ACTIVE[:4], *ACTIVE[-2:]]


def interpreter(server: FakeServer, cache: Path, key: str = KEY) -> Interpreter:
    chat = ChatModel("some-model", f"{server.address}/v1", cache, key)
    return Interpreter(FeatureFolder(FEATURES), chat, Interpretation(6, 3))


@pytest.mark.parametrize(("newer", "busy"), [(False, 0), (True, 0), (False, 3)])
def test_features_are_named_and_scored_and_nothing_is_asked_twice(newer: bool, busy: int, tmp_path: Path) -> None:
    with FakeServer(chat_answers(newer, busy)).running() as server:
        naming = interpreter(server, tmp_path)
        before = naming.estimate(PLACES)
        assert (before.features, before.known) == (6, 0)
        tests = [place for place in PLACES if naming._test(place, naming.features.get(place)) is not None]
        assert tests
        assert before.requests == 6 + len(tests)
        assert before.cost(1.0, 2.0) == (before.input_tokens + 2 * before.output_tokens) / 1e6 > 0
        labels = naming.interpret(PLACES, workers=2)
        assert set(labels) == set(PLACES)
        assert {label.source for label in labels.values()} == {"openai:some-model"}
        tokens = {place: json.dumps(naming.features.get(place)["examples_quantiles"]) for place in PLACES}
        assert all(label.text in tokens[place] for place, label in labels.items())
        assert [place for place, label in labels.items() if label.score is not None] == tests
        assert all(0 <= (label.score or 0) <= 1 for label in labels.values())
        asked = len(server.asked)
        assert asked >= before.requests
        after = naming.estimate(PLACES)
        assert (after.requests, after.known, after.input_tokens, after.cost(1, 1)) == (0, before.requests, 0, 0)
        assert interpreter(server, tmp_path).interpret(PLACES) == labels
        assert len(server.asked) == asked


def test_a_name_that_fits_scores_high_and_one_that_does_not_scores_low(tmp_path: Path) -> None:
    """The fake model finds texts by the words of a name: a name in all of the texts and in no other is perfect."""
    with FakeServer(chat_answers()).running() as server:
        naming = interpreter(server, tmp_path)
        tests = [naming._test(place, naming.features.get(place)) for place in ACTIVE[:20]]
        test = next(test for test in tests if test is not None and sum(test.active) == 3)
    assert test.score({n for n, active in enumerate(test.active, 1) if active}) == 1
    assert test.score({n for n, active in enumerate(test.active, 1) if not active}) == 0
    assert test.score(set()) == test.score(set(range(1, 7))) == 0.5


def test_texts_of_the_test_are_not_shown_before(tmp_path: Path) -> None:
    with FakeServer(chat_answers()).running() as server:
        naming = interpreter(server, tmp_path)
    for place in PLACES:
        shown, tested = split_examples(naming.features.get(place), naming.settings)
        windows = [json.dumps(one) for one in (*shown, *tested)]
        assert len(set(windows)) == len(windows)
        assert 1 <= len(shown) <= 6
        assert len(tested) <= 3


def test_a_conversation_marks_what_is_active() -> None:
    example = {"tokens": ["a", " big\n", " cat"], "tokens_acts_list": [0, 2, 4.2], "train_token_ind": 1}
    assert marked_text(example, 4.0) == "a<< big⏎>>(5)<< cat>>"
    record = {"act_max": 4.0, "top_logits": [" dog"]}
    system, user = explain_messages(record, [example])
    assert "ten words" in system["content"]
    assert "1. a<< big⏎>>(5)<< cat>>" in user["content"]
    assert "' dog'" in user["content"]
    assert in_turn([[{"n": 1}, {"n": 2}], [{"n": 3}]]) == [{"n": 1}, {"n": 3}, {"n": 2}]


def test_what_a_server_refuses_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("circuit_tracer.http.FIRST_PAUSE", 0.0)
    with FakeServer(chat_answers()).running() as server:
        with pytest.raises(InputError, match=r"401.*Incorrect API key.*OPENAI_API_KEY"):
            interpreter(server, tmp_path, "wrong").interpret(PLACES[:1])
        chat = ChatModel("m", server.address, tmp_path, KEY)
        with pytest.raises(InputError, match=r"404.*ends in /v1"):
            chat.ask([{"role": "user", "content": "x"}], 5)
    with pytest.raises(ResourceError, match="cannot be reached"):
        interpreter(server, tmp_path / "other").interpret(PLACES[:1])
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(InputError, match="needs a key"):
        ChatModel.from_environment("m", tmp_path)


def test_the_command_shows_the_cost_and_asks_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    folder = shutil.copytree(FEATURES, tmp_path / "features")
    graph = {"metadata": {"schema_version": 1}, "links": []}
    nodes = [{"feature_type": "cross layer transcoder", "feature": cantor_pair(*PLACES[0]), "layer": "0"}]
    (tmp_path / "graph.json").write_text(json.dumps({**graph, "nodes": nodes}))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with FakeServer(chat_answers()).running() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        arguments = ["features", "label", str(folder), "--model", "m", "--graph", str(tmp_path / "graph.json")]
        refused = CliRunner().invoke(app, [*arguments, "--price", "1,2"], input="n\n")
        assert refused.exit_code != 0
        assert re.search(r"1 features; [12] questions to m \(0 answered already\)", refused.output)
        assert "at 1,2 a million" in refused.output
        assert server.asked == []
        done = CliRunner().invoke(app, [*arguments, "--yes", "--json"])
        require_lines(arguments, done.exit_code, done.stdout)
        assert json.loads(done.stdout)["labelled"] == 1
        assert "(0 answered already)" in done.stderr
    labels = load_labels(folder)
    assert labels[PLACES[0]].source == "openai:m"
    assert labels[PLACES[1]].source == "world"


def test_labels_come_from_neuronpedia_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("circuit_tracer.features.neuronpedia_labels.FEATURES_A_REQUEST", 2)
    known = {
        ("0-set", 30): [("oai_token-act-pair", "first"), ("np_max-act", "second"), ("np_max-act-logits", "best")],
        ("0-set", 51): [("oai_token-act-pair", "only")],
        ("1-set", 7): [],
    }
    with FakeServer(label_answers(known)).running() as server:
        neuronpedia = Neuronpedia(server.address)
        places = [(0, 30), (0, 51), (1, 7), (2, 11), (3, 30), (0, 9)]
        labels = fetch_labels(neuronpedia, places, "gemma", "set", tmp_path)
        source = "neuronpedia:gemma/set"
        assert labels == {(0, 30): Label("best", source), (0, 51): Label("only", source)}
        asked = len(server.asked)
        assert asked == 5  # two for layer 0, one for each other layer
        assert server.asked[0][2][1] == {"modelId": "gemma", "layer": "0-set", "index": "30", "maxActsToReturn": 0}
        assert fetch_labels(neuronpedia, places, "gemma", "set", tmp_path) == labels
        assert len(server.asked) == asked
        with pytest.raises(InputError, match="no name of Neuronpedia's"):
            fetch_labels(neuronpedia, places, "../x", "set", tmp_path)
        with pytest.raises(InputError, match=r"refused.*404"):
            Neuronpedia(server.address + "/elsewhere").post("features", [])
