"""Graphs made to do harm, or made badly: strings stay text, nothing is loaded, and no page stays blank."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from circuit_tracer.viewer import graph_frame, graph_page
from tests.support.browser import Browser, Page
from tests.support.documents import feature_details, node, small_document

PROBLEM = "document.querySelector('[data-testid=problem]')"
HOSTILE = [
    "<img src=x onerror=window.hacked=1>",
    "</script><script>window.hacked=1</script>",
    "<!--<script>",
    "\"'><svg onload=window.hacked=1>",
    "javascript:window.hacked=1",
    "{{constructor.constructor('window.hacked=1')()}}",
    "__proto__",
    "\u202e\u0000\u0007\U0001f600 \u2028 \ud800",
    "&lt;b&gt;",
    "x" * 5000,
]


@pytest.mark.few
@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_strings_are_shown_as_text(open_page: Callable[..., Page], text: str):
    document = small_document(prompt=text, slug=text, scan=text, prompt_tokens=[text, text])
    for each in document["nodes"]:
        each["clerp"] = f'Output "{text}" (p=0.5)' if each["feature_type"] == "logit" else text
        if each["feature_type"] == "logit":
            each["token"] = text
    document["qParams"]["supernodes"] = [[text, "0_5_0", "1_7_1"]]
    document["metadata"]["info"] = {"generator": {"name": text}}
    details = feature_details()
    details["top_logits"] = [text]
    details["examples_quantiles"][0]["quantile_name"] = text
    details["examples_quantiles"][0]["examples"][0]["tokens"] = [text, text, text]
    page = open_page(graph_page(document, {(0, 5): details}))
    page.js("viewer.actions.pin(viewer.graph.nodes.map(n => n.id)); viewer.actions.select('0_5_0')")
    page.js(
        "document.querySelector('[data-testid=report-button]').click(); viewer.store.set({query: 'x', edgeNumbers: true})"
    )
    page.frames(3)
    assert page.js("window.hacked") is None
    assert page.js("document.querySelectorAll('#app img, #app svg[onload], #app script').length") == 0
    assert page.js("document.scripts.length") == 3
    # Half a surrogate pair is no text; everything else comes out as it went in.
    names = page.js("[...document.querySelectorAll('.box')].map(e => e.getAttribute('aria-label'))")
    assert any(text.replace("\ud800", "\ufffd") in name for name in names)
    assert page.errors() == []


def without(document: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key != name}


def changed(**values: Any) -> dict[str, Any]:
    """The small document with fields of its first node changed."""
    document = small_document()
    document["nodes"][0].update(values)
    return document


BROKEN: list[tuple[Any, str]] = [
    (without(small_document(), "nodes"), "nodes is missing"),
    (without(small_document(), "links"), "links is missing"),
    ({**small_document(), "nodes": []}, "no nodes"),
    ({**small_document(), "metadata": {}}, "prompt_tokens"),
    ({**small_document(), "metadata": None}, "metadata is missing"),
    (changed(ctx_idx=7), "the prompt has 2 tokens"),
    (changed(layer="top"), "has layer top"),
    (changed(node_id=None), "has no node_id"),
    ([1, 2], "holds no object"),
    (None, "holds no object"),
    ("text", "holds no object"),
]


def open_file(page: Page, path: Path) -> None:
    found = page.call(
        "DOM.querySelector", nodeId=page.call("DOM.getDocument")["root"]["nodeId"], selector="input[type=file]"
    )
    page.call("DOM.setFileInputFiles", nodeId=found["nodeId"], files=[str(path)])


@pytest.fixture
def empty_page(open_page: Callable[..., Page]) -> Page:
    """The page as it is without a graph."""
    text = graph_page(small_document())
    start = text.index('<script type="application/json"')
    return open_page(
        text[:start] + text[text.index('<script type="module"') :], ready="document.querySelector('input[type=file]')"
    )


@pytest.mark.few
@pytest.mark.parametrize(("document", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_a_broken_file_gives_a_message(empty_page: Page, tmp_path: Path, document: Any, message: str):
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(document))
    open_file(empty_page, path)
    empty_page.wait(PROBLEM)
    assert message in empty_page.js(f"{PROBLEM}.textContent")
    path.write_text(json.dumps(small_document()))
    open_file(empty_page, path)
    empty_page.wait("window.viewer?.view.picture")
    assert empty_page.errors() == []


@pytest.mark.few
@pytest.mark.parametrize(
    "data", [b"", b"{", b"\x1f\x8b\x08\x00cut", b"\xff\xfe"], ids=["empty", "cut", "cut gzip", "bytes"]
)
def test_what_is_no_json_gives_a_message(empty_page: Page, tmp_path: Path, data: bytes):
    path = tmp_path / "broken.json"
    path.write_bytes(data)
    open_file(empty_page, path)
    empty_page.wait(PROBLEM)
    assert "cut short" in empty_page.js(f"{PROBLEM}.textContent")


def test_a_gzipped_graph_opens(empty_page: Page, tmp_path: Path):
    path = tmp_path / "g.json.gz"
    path.write_bytes(gzip.compress(json.dumps(small_document()).encode()))
    open_file(empty_page, path)
    empty_page.wait("window.viewer?.view.picture")


def test_every_dialect_is_read_and_repairs_are_reported(open_page: Callable[..., Page]):
    document = small_document()
    document["nodes"] += [
        dict(document["nodes"][1]),
        node("0_1_1", "mlp reconstruction error", "1", 1),
        node("1_lor_3_1", "lorsa", "1", 1, feature=None),
        node("odd", "something new", "0", 0, clerp=None),
    ]
    document["links"] += [
        {"source": "gone", "target": "1_7_1", "weight": 1.0},
        {"source": "0_1_1", "target": "3_20_1", "weight": 2.0},
        {"source": "0_5_0", "target": "1_7_1", "weight": None},
    ]
    document["qParams"] = {"pinnedIds": "0_5_0,1_7_1", "supernodes": '[["A","0_5_0","1_7_1"]]', "clickedId": None}
    page = open_page(graph_page(document))
    assert page.js("viewer.graph.byId.has('1_-1_1')")
    assert page.js("viewer.store.state.groups.length") == 1
    page.js("document.querySelector('[data-testid=report-button]').click()")
    report = page.js("document.querySelector('[data-testid=validation]').textContent")
    for finding in ("occurred twice", "old form", "not in the file", "no finite weight", "no influence"):
        assert finding in report
    assert page.errors() == []


@pytest.mark.parametrize("n_layers", [1, 48])
def test_graphs_of_one_and_of_many_layers_are_drawn(open_page: Callable[..., Page], n_layers: int):
    document = small_document()
    for each in document["nodes"]:
        if each["feature_type"] == "logit":
            each["layer"] = str(n_layers + 1)
        elif each["layer"] == "1":
            each["layer"] = str(n_layers - 1)
    page = open_page(graph_page(document))
    assert page.js("[...viewer.view.layout.x, ...viewer.view.layout.y].every(Number.isFinite)")
    assert page.js("viewer.view.layout.rows.length") == n_layers + 2


def test_a_graph_of_an_interrupted_trace_says_so(open_page: Callable[..., Page]):
    document = small_document()
    document["metadata"]["interrupted"] = "3 of 9 features"
    page = open_page(graph_page(document))
    assert page.js("document.querySelector('h1').textContent").startswith("interrupted: ")
    page.js("document.querySelector('[data-testid=report-button]').click()")
    assert "3 of 9 features" in page.js("document.querySelector('[data-testid=validation]').textContent")
    assert page.errors() == []


def test_links_in_a_circle_are_reported_not_followed(open_page: Callable[..., Page]):
    document = small_document()
    document["links"].append({"source": "1_7_1", "target": "0_5_0", "weight": 1.0})
    page = open_page(graph_page(document))
    page.js("viewer.actions.pin(['0_5_0', '3_20_1']); document.querySelector('[data-testid=report-button]').click()")
    assert "in a circle" in page.js("document.querySelector('[data-testid=validation]').textContent")
    assert page.errors() == []


def test_a_notebook_frame_shows_the_graph(browser: Browser, tmp_path: Path):
    path = tmp_path / "notebook.html"
    path.write_text(f"<!doctype html><title>n</title>{graph_frame(small_document(), height=600)}", encoding="utf-8")
    page = browser.page(path.as_uri())
    page.frames(10)
    assert page.errors() == []
    tree = page.call(
        "Accessibility.getFullAXTree",
        frameId=page.call("Page.getFrameTree")["frameTree"]["childFrames"][0]["frame"]["id"],
    )
    names = [each.get("name", {}).get("value") for each in tree["nodes"]]
    assert "Attribution graph" in names
    page.close()
