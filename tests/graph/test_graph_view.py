"""Pins, supernodes and labels go into links and files and come back."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuit_tracer.errors import FileFormatError, InputError
from circuit_tracer.graph.files.node_ids import node_ids
from circuit_tracer.graph.files.read_json import load_viewer_json
from circuit_tracer.graph.files.validate import validate_document
from circuit_tracer.graph.files.view import View
from tests.support.graph_cases import random_graph

NUMBERS = st.integers(0, 40)
IDS = st.one_of(
    st.builds("{}_{}_{}".format, NUMBERS, st.integers(0, 10**6), NUMBERS),
    st.builds("E_{}_{}".format, NUMBERS, NUMBERS),
    st.builds("{}_-1_{}".format, NUMBERS, NUMBERS),
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VIEWS = st.builds(
    View,
    st.lists(IDS, max_size=3, unique=True).map(tuple),
    st.lists(st.tuples(TEXTS, st.lists(IDS, min_size=1, max_size=3).map(tuple)), max_size=3).map(tuple),
    st.dictionaries(IDS, TEXTS, max_size=3),
    st.one_of(st.just(""), IDS),
    st.one_of(st.none(), st.integers(0, 20).map(lambda n: n / 20)),
)


@given(VIEWS, st.sampled_from(["http://127.0.0.1:8041/?slug=a", "https://neuronpedia.org/gemma-2-2b/graph?slug=a%20b"]))
def test_a_link_says_all_of_a_view(view: View, page: str) -> None:
    link = view.to_url(page)
    found = View.from_url(link)
    assert found == View(view.nodes, view.supernodes, view.labels, view.clicked, view.pruning)
    assert found.to_url(page) == link
    assert found.to_url(link) == link
    assert View().to_url(link) == View().to_url(page)
    assert "slug=a" in link


@given(VIEWS)
def test_a_file_says_all_of_a_view_but_its_labels(view: View) -> None:
    found = View.from_q_params(json.loads(json.dumps(view.q_params())))
    assert found == View(view.nodes, view.supernodes, {}, view.clicked)


def test_links_of_other_viewers_are_read() -> None:
    groups = json.dumps([["say 50 %", "1_5_2", "E_7_0"]])
    twice = f"http://x.org/?pinnedIds=1_5_2%252C0_3_1&supernodes={quote(quote(groups))}&slug=s"
    assert View.from_url(twice) == View(("1_5_2", "0_3_1"), (("say 50 %", ("1_5_2", "E_7_0")),))
    behind = View.from_url(f"file:///tmp/a.html#pinnedIds=0_3_1&supernodes={quote(groups)}")
    assert behind.nodes == ("0_3_1", "1_5_2", "E_7_0")
    labelled = View.from_url(f"https://www.neuronpedia.org/m/graph?clerps={quote(json.dumps([['3_32_2', 'x']]))}")
    assert labelled.labels == {"3_4_2": "x"}  # 32 pairs layer 3 and feature 4
    assert "3_32_2" not in labelled.to_url("http://localhost/")
    assert "3_32_2" in labelled.to_url("https://neuronpedia.org/m/graph")


def test_features_become_node_ids() -> None:
    view = View.of_features({"two": [(1, 4, 9), (-1, 0, 7)]}, [(2, 3, 8)])
    assert view == View(("2_8_3",), (("two", ("1_9_4", "E_7_0")),))


@pytest.mark.parametrize(
    "query", ["supernodes={", "supernodes=[1]", "clerps=[[1]]", "pruningThreshold=much", "clerps=7"]
)
def test_what_is_no_view_is_said(query: str) -> None:
    with pytest.raises(InputError, match=r"in the address|does not hold a view"):
        View.from_url(f"http://localhost/?{query}")
    with pytest.raises(FileFormatError, match="do not hold a view"):
        View.from_q_params({"clerps": [[1]]})


def test_a_graph_is_exported_as_it_was_looked_at(tmp_path: Path) -> None:
    graph = random_graph()
    first, second, third = node_ids(graph)[:3]
    view = View((first,), (("pair", (second, third)),), {first: "mine"}, third)
    path = graph.to_json("seen", tmp_path, node_threshold=1.0, edge_threshold=1.0, view=view, labels={first: "theirs"})
    document = load_viewer_json(path)
    assert validate_document(document) == []
    assert View.from_q_params(document["qParams"]) == View((first, second, third), view.supernodes, {}, third)
    assert {node["node_id"]: node["clerp"] for node in document["nodes"]}[first] == "mine"
    with pytest.raises(InputError, match="not in the pruned graph"):
        graph.to_json("seen", tmp_path, view=View(("9_9_9",)))
