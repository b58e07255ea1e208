"""Heads on a page without a server: what of its file it shows, and what it says of the rest."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from circuit_tracer.viewer import graph_page
from tests.support.browser import Browser, Page
from tests.support.documents import headed_document, small_document
from tests.support.gestures import READY, params, state, texts

Opener = Callable[..., Page]


@pytest.fixture(scope="module")
def opened(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    path = tmp_path_factory.mktemp("heads") / "page.html"
    path.write_text(graph_page(headed_document()), encoding="utf-8")
    page = browser.page(path.as_uri())
    page.wait(READY)
    yield page
    assert page.errors() == []
    page.close()


@pytest.fixture
def headed(opened: Page) -> Page:
    """The same page for all tests, as it is at the start."""
    opened.js(
        """(() => { const start = Object.fromEntries(Object.entries(viewer.store.fields).map(([name, { initial }]) =>
        [name, initial(viewer.graph)])); viewer.store.set({ ...start, clicked: null, focused: null, hovered: null });
        viewer.open('connections'); })()"""
    )
    opened.frames(1)
    return opened


def middle(page: Page, source: str, target: str) -> tuple[float, float]:
    """Where a link is half-way, on the screen."""
    box = page.js(
        f"""(() => {{ const b = viewer.view.element.getBoundingClientRect();
        const [p, q] = ['{source}', '{target}'].map(id => viewer.view.place(viewer.graph.byId.get(id)));
        return [b.left + (p.x + q.x) / 2, b.top + (p.y + q.y) / 2]; }})()"""
    )
    return box[0], box[1]


def bars(page: Page, panel: str) -> list[list[str]]:
    return page.js(
        f"""[...document.querySelectorAll('[data-testid={panel}] .bars li')]
        .map(e => [e.querySelector('.bar-name').textContent, e.querySelector('.value').textContent])"""
    )


def test_a_click_on_a_link_shows_its_heads(headed: Page) -> None:
    headed.click(middle(headed, "0_5_0", "3_20_1"))
    assert state(headed, "edge") == "0_5_0>3_20_1"
    assert state(headed, "clicked") is None
    assert texts(headed, "[data-testid=edge-ends] .name") == ["alpha", "output “yes”"]
    assert bars(headed, "edge-first") == [["direct", "+25%"], ["L1H3", "+75%"]]
    assert "0.75 heads in a row" in texts(headed, "[data-testid=edge-hops]")[0]
    assert "need circuit-tracer serve" in texts(headed, "[data-testid=edge-status]")[0]
    assert params(headed)["edge"] == "0_5_0>3_20_1"


def test_a_row_of_connections_leads_to_the_heads_of_its_link(headed: Page) -> None:
    headed.js("viewer.actions.select('1_7_1')")
    headed.js("document.querySelector('[data-testid=inputs] .to-heads').focus()")
    headed.key("Enter")
    assert state(headed, "edge") == "0_5_0>1_7_1"
    assert bars(headed, "edge-first") == [["L0H1", "+83%"], ["L1H0", "−17%"], ["others", "+33%"]]
    assert bars(headed, "edge-last") == [["L0H1", "+92%"], ["others", "+8.3%"]]
    headed.click("[data-testid=edge-ends] .name")
    assert state(headed, "clicked") == "0_5_0"
    assert headed.js("document.querySelector('[data-testid=edge]').hidden") is False


def test_keys_lead_to_the_link_between_the_selected_node_and_the_one_with_the_ring(headed: Page) -> None:
    headed.js("viewer.actions.select('1_7_1'); viewer.view.element.focus()")
    headed.key("i")
    headed.key("h")
    assert state(headed, "edge") == "0_5_0>1_7_1"


def test_links_through_a_head_alone(headed: Page) -> None:
    count = headed.js("viewer.view.links.length")

    def choose(field: str, value: str) -> None:
        headed.js(
            f"(() => {{ const e = document.querySelector('[data-testid={field}]'); e.value = {json.dumps(value)};"
            " e.dispatchEvent(new Event('change')); })()"
        )

    choose("head-filter", "l0h1")
    shown = "viewer.view.links.map(l => viewer.graph.nodes[viewer.graph.links.target[l]].id)"
    assert headed.js(shown) == ["1_7_1"]
    assert sorted(headed.js("[...viewer.view.touched].map(n => viewer.graph.nodes[n].id)")) == ["0_5_0", "1_7_1"]
    headed.js("viewer.actions.select('1_7_1')")
    assert texts(headed, "[data-testid=inputs] .row .what") == ["alpha"]
    choose("head-filter", "L1H0")
    choose("head-filter-end", "last")
    assert headed.js(shown) == []
    assert params(headed)["throughHead"] == "L1H0 last"
    choose("head-filter", "L7H7")
    assert state(headed, "throughHead") == "L1H0 last"
    choose("head-filter", "")
    assert headed.js("viewer.view.links.length") == count
    headed.js("viewer.actions.chooseHead('L1H3')")
    headed.click("[data-testid=head-filter-button]")
    assert headed.js(shown) == ["3_20_1"]


def test_a_head_shows_what_the_file_says_of_its_look(headed: Page) -> None:
    headed.click("[data-testid=tab-head]")
    assert texts(headed, "[data-testid=head-named] .chip") == ["L0H1", "L1H3", "L1H0"]
    headed.js("viewer.actions.chooseHead('L1H3:1:0:rest')")
    assert texts(headed, "[data-testid=score-query] .what") == ["beta", "error"]
    assert texts(headed, "[data-testid=score-query] .value") == ["1.23", "−0.50"]
    assert texts(headed, "[data-testid=score-key] .what") == ["alpha", "pruned away"]
    assert texts(headed, "[data-testid=score-pairs] .what") == ["alpha L0 · one → beta L0 · two"]
    assert texts(headed, "[data-testid=score-pairs] .value") == ["0.63"]
    headed.click("[data-testid=score-pairs] .name")
    assert state(headed, "clicked") == "0_5_0"
    assert params(headed)["head"] == "L1H3:1:0:rest"
    headed.js("viewer.actions.chooseHead('L1H3')")
    assert headed.js("document.querySelector('[data-testid=head-versus]').value") == "rest"
    headed.js("viewer.actions.chooseHead('L0H1')")
    assert texts(headed, "[data-testid=head-score]") == ["75% of its attention · score 1.25"]
    assert texts(headed, "[data-testid=score-key] p") == ["features 1.50 · biases −0.25"]
    assert texts(headed, "[data-testid=score-key] .what") == ["alpha", "decoder biases"]
    pressed = (
        "[...document.querySelectorAll('[data-testid=head-strip] button')].map(e => e.getAttribute('aria-pressed'))"
    )
    assert headed.js(pressed) == ["true", "false"]
    headed.js("viewer.actions.chooseHead('L0H0')")
    assert "needs circuit-tracer serve" in texts(headed, "[data-testid=head-offline]")[0]
    assert texts(headed, "[data-testid=head-offline] li") == ["L0H1 two at one", "L1H3 two at one rather than the rest"]


def test_an_attention_target_has_its_own_words(headed: Page) -> None:
    headed.js("viewer.actions.select('3_22_1')")
    assert texts(headed, ".node-title strong") == ["L1H3 ' two'@1 -> 'one'@0 rather than the rest"]
    headed.click(".node-head .chip")
    assert state(headed, "head") == "L1H3:1:0:rest"


@pytest.mark.slow("two more pages")
def test_addresses_lead_back_and_wrong_ones_to_nothing(open_page: Opener) -> None:
    text = graph_page(headed_document())
    page = open_page(text, after="#edge=0_5_0%3E1_7_1&throughHead=L0H1")
    assert bars(page, "edge-last") == [["L0H1", "+92%"], ["others", "+8.3%"]]
    assert page.js("viewer.view.links.length") == 1
    page = open_page(text, after="#edge=nothing&throughHead=L0&head=%3Cb%3E")
    assert "no such link" in texts(page, "[data-testid=edge]")[0]
    assert [state(page, name) for name in ("throughHead", "head")] == [None, None]
    assert page.errors() == []


@pytest.mark.slow("takes 1.3 s")
def test_a_file_that_says_no_heads_says_what_it_needs(small: Page) -> None:
    assert small.js("document.querySelector('[data-testid=head-filter]')") is None
    small.js("viewer.actions.select('1_7_1')")
    assert texts(small, ".to-heads") == []
    small.js("viewer.actions.chooseEdge('0_5_0>1_7_1')")
    assert "does not say which heads" in texts(small, "[data-testid=edge-status]")[0]


BROKEN = {
    "no object": 3,
    "no direct part": {"first": [], "last": []},
    "a head that is no number": {"direct": 0, "first": [["<b>", 1, 1]], "last": []},
    "no list": {"direct": 0, "first": {}, "last": []},
}


@pytest.mark.slow("one more page")
def test_broken_heads_are_passed_over(open_page: Opener) -> None:
    document = small_document()
    for link, heads in zip(document["links"], BROKEN.values(), strict=False):
        link["heads"] = heads
    document["nodes"][0]["qk_tracing_results"] = {"pair_wise_contributors": [[1, 2]]}
    page = open_page(graph_page(document))
    assert page.js("viewer.graph.links.heads") is None
    assert page.errors() == []


@pytest.mark.slow("a page with 150 heads")
def test_long_tokens_and_many_heads_stay_inside(open_page: Opener) -> None:
    document = headed_document(prompt_tokens=["x" * 300, " " + "y" * 300])
    document["links"][2]["heads"] = {
        "direct": 0.0,
        "hops": 3.0,
        "first": [[layer, head, 1 / (1 + layer + head)] for layer in range(15) for head in range(10)],
        "last": [],
    }
    page = open_page(graph_page(document), after="#edge=0_5_0%3E1_7_1")
    assert len(bars(page, "edge-first")) == 13
    page.click("[data-testid=edge-all-first]")
    assert len(bars(page, "edge-first")) == 151
    pane = "document.querySelector('[data-testid=%s]')"
    for name in ("edge", "head"):
        page.click(f"[data-testid=tab-{name}]")
        element = pane % name
        assert page.js(f"{element}.scrollWidth <= {element}.clientWidth")
    assert page.errors() == []
