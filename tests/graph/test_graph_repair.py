"""Viewer JSON of other programs becomes one that every viewer shows; a good one stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from circuit_tracer.graph.files.repair import repaired
from circuit_tracer.graph.files.validate import validate_document
from tests.support.documents import small_document

Document = dict[str, Any]


def as_circuit_tracer_writes(document: Document) -> None:
    """Ids for the page that join position and feature otherwise, nulls, and error nodes named as features of layer 0."""
    for node in document["nodes"]:
        node["jsNodeId"] = node["node_id"].replace("_", "-")
        node.setdefault("activation", None)
        node.setdefault("influence", None)
        if node["feature_type"] == "mlp reconstruction error":
            node["node_id"] = "0_0_1"
    for link in document["links"]:
        link["source"] = link["source"].replace("0_-1_1", "0_0_1")


def without_tokens(document: Document) -> None:
    for node in document["nodes"]:
        if node["feature_type"] == "embedding":
            node["clerp"] = f'Emb: "{document["metadata"]["prompt_tokens"][node["ctx_idx"]]}"'
    del document["metadata"]["prompt_tokens"]


def change(name: str, value: Any, kind: str) -> Callable[[Document], None]:
    def damage(document: Document) -> None:
        for node in document["nodes"]:
            if node["feature_type"] == kind:
                node[name] = value

    return damage


DAMAGE: dict[str, Callable[[Document], None]] = {
    "as circuit-tracer writes": as_circuit_tracer_writes,
    "no prompt tokens": without_tokens,
    "no label": change("clerp", None, "cross layer transcoder"),
    "tokens of one number": change("feature", 7, "embedding"),
    "errors without a number": change("feature", None, "mlp reconstruction error"),
    "quotes in a label": change("clerp", 'Output "say "yes"" (p=0.750)', "logit"),
    "no probability": change("token_prob", None, "logit"),
    "no view": lambda document: document.pop("qParams"),
    "a view of texts": lambda document: document.update(qParams={"pinnedIds": "0_5_0,0_6_1", "supernodes": "[]"}),
    "metadata with nulls": lambda document: document["metadata"].update(schema_version=None, info=None),
    "influence of some alone": lambda document: [
        document["metadata"].update(node_threshold=0.8),
        *(node.pop("influence", None) for node in document["nodes"]),
    ],
}


@pytest.mark.parametrize("case", DAMAGE)
def test_what_can_be_told_is_mended(case: str) -> None:
    document = small_document()
    DAMAGE[case](document)
    assert validate_document(document)
    given = copy.deepcopy(document)
    mended, said = repaired(document)
    assert validate_document(mended) == []
    assert said
    assert document == given, "the document given is not changed"
    assert repaired(mended) == (mended, [])


def test_a_good_document_stays_as_it_is() -> None:
    document = small_document()
    assert repaired(document) == (document, [])


def test_links_of_a_feature_and_an_error_of_one_name_are_told_apart_by_their_order() -> None:
    document = small_document()
    document["nodes"][3]["node_id"] = "0_5_0"  # the error at layer 5, position 0 in circuit-tracer's naming
    document["nodes"][3].update(layer="5", ctx_idx=0)
    for link in document["links"]:
        link["source"] = link["source"].replace("0_-1_1", "0_5_0")
    mended, _ = repaired(document)
    weights = {(link["source"], link["target"]): link["weight"] for link in mended["links"]}
    assert weights["0_5_0", "3_20_1"] == 1.0
    assert weights["5_-1_0", "3_20_1"] == -3.0
    assert validate_document(mended) == []


def test_what_cannot_be_told_is_left_to_the_validator() -> None:
    document = small_document()
    document["links"][0]["weight"] = None
    document["nodes"][0]["node_id"] = None
    mended, _ = repaired(document)
    assert len(validate_document(mended)) >= 2
