"""Graphs of several dictionaries: attention between the MLPs of its layers, features coloured by whose they are."""

from __future__ import annotations

from collections.abc import Callable

from circuit_tracer.viewer import graph_page
from tests.support.browser import Page
from tests.support.documents import feature, node, small_document
from tests.support.gestures import texts

PARTS = [
    {"name": "base", "place": "mlp", "first": 0},
    {"name": "tuned", "place": "mlp", "first": 10},
    {"name": "heads", "place": "attention", "first": 20},
]


def document() -> dict:
    """The small one, with a feature of a second dictionary, and one of attention with its error, all in layer 1."""
    made = small_document(dictionaries=PARTS)
    for each in made["nodes"]:
        if each["feature_type"] == "cross layer transcoder":
            each |= {"dictionary": "base", "dictionary_index": int(each["node_id"].split("_")[1])}
    made["nodes"] += [
        feature(1, 12, 1, dictionary="tuned", dictionary_index=2, influence=0.3),
        {
            **feature(1, 23, 1, dictionary="heads", dictionary_index=3, influence=0.3),
            "feature_type": "lorsa",
        },
        node("1_-2_1", "lorsa error", "1", 1, influence=0.5),
    ]
    links = [("1_23_1", "1_7_1", 1.0), ("0_5_0", "1_23_1", 2.0), ("1_-2_1", "1_12_1", 1.0), ("1_12_1", "3_20_1", 2.0)]
    made["links"] += [{"source": source, "target": target, "weight": weight} for source, target, weight in links]
    return made


def test_attention_stands_below_the_mlp_of_its_layer(open_page: Callable[..., Page]):
    page = open_page(graph_page(document()))
    y = {
        name: page.js(f"viewer.view.layout.y[viewer.graph.byId.get('{name}').index]")
        for name in ("0_6_1", "1_23_1", "1_-2_1", "1_7_1", "1_12_1", "3_20_1")
    }
    assert y["0_6_1"] > max(y["1_23_1"], y["1_-2_1"])
    assert min(y["1_23_1"], y["1_-2_1"]) > max(y["1_7_1"], y["1_12_1"])
    assert min(y["1_7_1"], y["1_12_1"]) > y["3_20_1"]
    assert page.errors() == []


def test_the_legend_and_names_say_whose_a_feature_is(open_page: Callable[..., Page]):
    page = open_page(graph_page(document()))
    (legend,) = texts(page, "[data-testid=legend]")
    assert [name in legend for name in ("base", "tuned", "heads", "error")] == [True] * 4
    assert page.js("['0_6_1', '1_12_1', '1_23_1'].map((name) => viewer.graph.byId.get(name).part)") == [0, 1, 2]
    page.js("viewer.store.set({ clicked: '1_7_1' })")
    page.frames(2)
    assert "heads 3" in page.js("document.body.textContent")


def test_a_graph_of_one_dictionary_has_the_legend_it_had(small: Page):
    (legend,) = texts(small, "[data-testid=legend]")
    assert legend.startswith("feature")
    assert "attention" not in legend


def test_the_legend_speaks_of_neurons_where_they_are_nodes(open_page: Callable[..., Page]):
    (legend,) = texts(open_page(graph_page(small_document(left_over="other neurons"))), "[data-testid=legend]")
    assert legend.startswith("neuron")
    assert "other neurons" in legend
    assert "feature" not in legend
