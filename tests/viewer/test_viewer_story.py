"""The grouped circuit and its story: what a page opens on, how the circuit is laid out, groups that are offered, sentences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from circuit_tracer.viewer import graph_page
from circuit_tracer.viewer.server import Server
from tests.support.asking import ask
from tests.support.browser import Page
from tests.support.documents import large_document, small_document
from tests.support.gestures import CTRL, state, texts

SIZES = {"phone": (390, 844), "laptop": (1366, 768), "desk": (1920, 1080)}
SENTENCES = [
    {
        "kind": "carries",
        "text": "alpha passes on 40 % of the influence on <b>yes</b>.",
        "node_ids": ["0_5_0", "gone"],
        "status": "does not hold",
        "evidence": {
            "text": "Without it the model says “no”.",
            "holds": False,
            "measurements": [
                {"done": "ablation", "read": "yes", "quantity": "probability", "before": 0.75, "after": 0.5}
            ],
        },
    },
    {
        "kind": "chains",
        "text": "“one” → alpha → “yes”.",
        "node_ids": ["E_10_0", "0_5_0", "3_20_1"],
        "status": "not tested",
    },
]


def told_document() -> dict[str, Any]:
    """The small document with groups, one of them of a single node, and a story."""
    document = small_document(
        story={"version": 1, "title": "Why “yes”", "sentences": SENTENCES, "left_out": ["Errors."]}
    )
    document["qParams"] |= {
        "supernodes": [["pair", "0_6_1", "1_7_1"], ["first word", "0_5_0"]],
        "pinnedIds": ["0_6_1", "1_7_1", "0_5_0", "3_20_1"],
    }
    return document


@pytest.fixture
def told(open_page: Callable[..., Page]) -> Page:
    return open_page(graph_page(told_document()))


def resize(page: Page, size: tuple[int, int]) -> None:
    width, height = size
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
    page.frames(4)


@pytest.mark.slow("takes 1.5 s")
def test_thirty_four_pins_can_be_read_at_every_width_in_the_order_of_their_tokens(
    open_page: Callable[..., Page],
) -> None:
    page = open_page(graph_page(large_document(100, 800, 23, 30)))
    page.js(
        """viewer.actions.pin([...viewer.graph.nodes.filter(n => n.kind === 'feature').slice(-24),
        ...viewer.graph.nodes.filter(n => n.kind !== 'feature').slice(0, 10)].map(n => n.id))"""
    )
    page.js(
        "for (const n of viewer.graph.nodes) n.label = 'a label of quite some length, with a second line and a third'"
    )
    for size in SIZES.values():
        resize(page, size)
        page.js("document.querySelector('[data-testid=narrow-1]').click(); viewer.subgraph.draw()")
        found = page.js(
            """(() => { const {content: {boxes, places}, element} = viewer.subgraph;
            const area = e => { const b = e.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; };
            const all = name => [...document.querySelectorAll(name)];
            return {all: area(element), boxes: all('.box').map(area), percents: all('.wire-percent').map(area),
            names: all('.box-name').map(area), letters: viewer.subgraph.content.look.font * viewer.subgraph.scale,
            sign: document.querySelector('[data-testid=circuit-outside]').textContent,
            told: !document.querySelector('[data-testid=circuit-outside]').hidden,
            lines: all('.box-name').map(e => e.textContent.split('\\n').length),
            at: boxes.map((box, n) => [box.nodes[0].position, places[n][0]])}; })()"""
        )
        assert len(found["boxes"]) == 34
        assert found["letters"] >= 10
        outside = sum(not inside(box, found["all"]) for box in found["boxes"])
        assert found["told"] is (outside > 0)
        assert not outside or found["sign"].endswith(f" {outside} outside")
        assert not outside or size is SIZES["phone"]
        assert all(inside(name, box) for name, box in zip(found["names"], found["boxes"], strict=True))
        assert set(found["lines"]) <= {1, 2}
        covered = [*found["boxes"], *found["percents"]]
        assert found["percents"]
        assert not any(overlap(one, other) for n, one in enumerate(covered) for other in covered[:n])
        ordered = sorted(found["at"])
        for position, x in ordered:
            assert all(x >= other - 1e-6 for before, other in ordered if before < position)
    resize(page, SIZES["phone"])
    page.click("[data-testid=circuit-outside]")
    all_seen = """(() => { const {element} = viewer.subgraph, all = element.getBoundingClientRect();
        return [...document.querySelectorAll('.box')].map(e => e.getBoundingClientRect()).every(b => b.left >= all.left - 1
        && b.right <= all.right + 1 && b.top >= all.top - 1 && b.bottom <= all.bottom + 1); })()"""
    assert page.js(all_seen)
    assert page.js("document.querySelector('[data-testid=circuit-outside]').hidden")


def inside(inner: list[float], outer: list[float]) -> bool:
    return all(inner[side] >= outer[side] - 1 for side in (0, 1)) and all(
        inner[side] <= outer[side] + 1 for side in (2, 3)
    )


def overlap(one: list[float], other: list[float]) -> bool:
    slack = 1.0
    return (
        one[0] < other[2] - slack
        and other[0] < one[2] - slack
        and one[1] < other[3] - slack
        and other[1] < one[3] - slack
    )


def test_no_box_is_fed_from_above(told: Page) -> None:
    ways = told.js(
        """(() => { const {boxes, places, links} = viewer.subgraph.content;
        return links.map(({from, to}) => places[from][1] - places[to][1]); })()"""
    )
    assert ways
    assert all(rise > 0 for rise in ways)
    assert told.js("document.querySelectorAll('.wires polygon').length") == len(ways)  # each ends in an arrow


def test_the_picture_is_what_the_page_shows(told: Page) -> None:
    found = told.js(
        """(() => { const picture = viewer.subgraph.picture();
        const [drawn, seen] = [picture, document].map(where => name => [...where.querySelectorAll(name)]);
        const ways = elements => elements.map(e => e.getAttribute('d'));
        return {links: ways(drawn('path')), shown: ways(seen('.wires path')), dots: drawn('circle').length,
        words: drawn('text').map(e => e.textContent),
        rects: drawn('rect').slice(1).map(e => ['x', 'y', 'width', 'height'].map(name => Number(e.getAttribute(name)))),
        boxes: seen('.box').map(e => [parseFloat(e.style.left), parseFloat(e.style.top), e.offsetWidth, e.offsetHeight])};
        })()"""
    )
    assert found["links"] == found["shown"]
    assert found["rects"] == found["boxes"]
    assert found["dots"] == 2
    for selector in (".box-name", ".box-caption", ".wire-percent"):
        assert texts(told, selector)
        assert set(texts(told, selector)) <= set(found["words"])
    told.js("document.querySelector('[data-testid=edge-numbers]').click()")
    assert texts(told, ".wire-percent") == []
    assert told.js("viewer.subgraph.picture().querySelectorAll('.wire-percent').length") == 0


def test_a_page_opens_on_the_circuit_and_its_story(told: Page, open_page: Callable[..., Page]) -> None:
    top = "document.querySelector('{}').getBoundingClientRect().top"
    assert told.js(top.format(".subgraph-panel")) < told.js(top.format(".graph-panel"))
    assert told.js("document.querySelector('#panel-story').hidden") is False
    assert texts(told, ".box-caption") == ["L0 · one", "2 nodes · two", "after two"]
    assert "first word" in texts(told, ".box-name")
    phone = open_page(graph_page(told_document()), ready="window.viewer", width=390, height=800, phone=True)
    assert phone.js("document.querySelector('.panel.current').className").startswith("panel subgraph-panel")
    assert texts(phone, ".narrow-bar button") == ["Graph", "Circuit", "Story", "Feature"]
    plain = open_page(graph_page(small_document()))
    assert plain.js(top.format(".subgraph-panel")) > plain.js(top.format(".graph-panel"))
    assert plain.js("document.querySelector('[data-testid=tab-story]')") is None


def test_a_sentence_lights_its_nodes_and_shows_what_tested_it(told: Page) -> None:
    assert texts(told, ".told") == [sentence["text"] for sentence in SENTENCES]  # markup is text
    assert texts(told, ".status") == ["does not hold", "not tested"]
    assert "2 sentences, 1 tested by interventions, of which 0 hold." in texts(told, ".story .quiet")
    told.mouse("Moved", *told.center(".sentences li:last-child .told"))
    told.frames()
    assert state(told, "lit") == ["E_10_0", "0_5_0", "3_20_1"]
    assert texts(told, ".box.lit .box-name") == ["first word", "output “yes”"]
    assert texts(told, ".box.dim .box-name") == ["pair"]
    told.click(".told")
    assert texts(told, "[data-testid=measured] td") == ["75%", "50%"]
    assert "2 nodes, 1 of them not in this file" in texts(told, ".measured .quiet")
    told.mouse("Moved", 5, 5)
    told.frames()
    assert state(told, "lit") == ["0_5_0"]  # the open sentence stays lit
    told.click(".told")
    told.mouse("Moved", 5, 5)
    assert state(told, "lit") is None
    assert told.errors() == []


def test_groups_of_the_file_are_offered_accepted_and_undone(told: Page) -> None:
    assert told.js("document.querySelector('[data-testid=group-all]').hidden") is True
    told.js("viewer.actions.unpinAll(); viewer.actions.pin(['E_10_0'])")
    told.click("[data-testid=group-all]")
    assert texts(told, "[data-testid=offer]") == ["Preview: 2 groups of 3 nodes"]
    assert sorted(texts(told, ".box-name")) == ["first word", "output “yes”", "pair", "“one”"]
    assert state(told, "groups") == []
    assert told.js("document.querySelectorAll('.box .tools').length") == 0  # only looked at
    told.key("Escape")
    assert texts(told, ".box-name") == ["“one”"]
    assert told.js("document.activeElement.dataset.testid") == "group-all"
    told.click("[data-testid=group-all]")
    told.click("[data-testid=offer-accept]")
    assert told.js("document.activeElement.className").startswith("panel subgraph-panel")
    assert [group["name"] for group in state(told, "groups")] == ["pair", "first word"]
    assert state(told, "pinned") == ["E_10_0", "0_6_1", "1_7_1", "0_5_0", "3_20_1"]
    told.click("[data-testid=undo]")
    assert state(told, "groups") == []
    assert state(told, "pinned") == ["E_10_0"]


@pytest.mark.slow("takes 1.6 s")
def test_a_server_groups_the_graph_of_a_page(visit: Callable[..., Page], demo_served: Server) -> None:
    page = visit("?slug=demo")
    page.click("[data-testid=group-all]")
    page.wait("viewer.store.state.offer", 30)
    page.frames()
    words, boxes = texts(page, "[data-testid=offer]")[0], texts(page, ".box-name")
    assert words.startswith("Preview: ")
    assert words.endswith("% pure")
    assert "output “Austin”" in boxes
    page.click("[data-testid=offer-accept]")
    assert texts(page, ".box-name") == boxes
    groups = state(page, "groups")
    assert groups
    page.click("[data-testid=undo]")
    assert state(page, "groups") == []
    page.click("[data-testid=redo]")
    page.key("s", CTRL)
    page.wait("document.querySelector('.toast[role=status]')")
    saved = ask(demo_served, "/api/graphs/demo").json["qParams"]["supernodes"]
    assert saved == [[group["name"], *group["members"]] for group in groups]
