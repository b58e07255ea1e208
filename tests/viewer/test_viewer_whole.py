"""The link graph shows all of a graph, says when it does not, and comes back as it was left."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from circuit_tracer.viewer import graph_page
from tests.support.browser import Page
from tests.support.documents import large_document, small_document
from tests.support.gestures import READY, set_slider, state, texts

# Shown nodes whose glyph is not wholly in the panel, or under the names at its borders.
OUTSIDE = """(() => { const { graph, shown, layout, width, height } = viewer.view;
    return graph.nodes.filter((node) => shown[node.index]).filter((node) => {
      const { x, y } = viewer.view.place(node), r = layout.radius * layout.size[node.index];
      return x - r < layout.margin.left - 6 || x + r > width || y - r < 0 || y + r > height - layout.margin.bottom + 4;
    }).map((node) => node.id); })()"""
NAMES = "viewer.view.names.map(({ text, corners }) => [text, ...corners.flat()])"


@pytest.fixture(scope="module")
def deep_page() -> str:
    document = large_document(300, 800, n_tokens=24, n_layers=30)
    document["nodes"][-1]["token"] = " France "
    return graph_page(document)


@pytest.mark.slow("takes 1.4 s")
def test_all_nodes_and_output_names_are_in_the_panel(open_page: Callable[..., Page], deep_page: str):
    page = open_page(deep_page, width=1366, height=768)
    assert_whole(page)
    page.call("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True)
    page.wait("viewer.view.width < 390")
    page.frames()
    assert_whole(page)


def assert_whole(page: Page) -> None:
    width, height = page.js("[viewer.view.width, viewer.view.height]")
    for pruning in (0.8, 0.3):
        set_slider(page, "pruning", pruning)
        assert page.js(OUTSIDE) == []
        names = page.js(NAMES)
        assert [name[0] for name in names[:10]].count("␣France␣ 10.0%") == 1
        assert len(names) == 20  # ten outputs, and the ten features with the most influence
        for _, x1, y1, x2, y2 in names:
            assert min(x1, x2) >= 0
            assert max(x1, x2) <= width
            assert min(y1, y2) >= 0
            assert max(y1, y2) <= height
    assert page.js("document.querySelector('[data-testid=outside]').hidden")


@pytest.mark.slow("takes 1.5 s")
def test_it_says_what_lies_outside_and_comes_back_as_it_was_left(open_page: Callable[..., Page], deep_page: str):
    page = open_page(deep_page)
    page.js("viewer.view.zoom(4, 0, 0)")
    page.wait("!document.querySelector('[data-testid=outside]').hidden")
    sign = texts(page, "[data-testid=outside]")[0]
    assert sign.startswith("→↓")
    for name in ("all-edges", "edge-numbers", "theme"):
        page.click(f"[data-testid={name}]")
    page.wait("location.hash.includes('zoom') && location.hash.includes('percent')")
    before = page.js("viewer.view.camera")
    page.call("Page.reload")
    page.wait("performance.getEntriesByType('navigation')[0].type === 'reload' && " + READY)
    page.frames()
    after = page.js("viewer.view.camera")
    assert after == {name: pytest.approx(value, abs=0.5) for name, value in before.items()}
    assert texts(page, "[data-testid=outside]")[0] == sign
    assert state(page, "allEdges") is False
    assert state(page, "edgeNumbers") is False
    assert page.js("document.documentElement.dataset.theme") == "light"
    page.click("[data-testid=outside]")
    assert page.js("viewer.view.camera") == {"zoom": 1, "x": 0, "y": 0}
    page.wait("document.querySelector('[data-testid=outside]').hidden")


def test_outputs_beyond_the_borders_leave_their_names_there(open_page: Callable[..., Page], deep_page: str):
    page = open_page(deep_page)
    page.js("viewer.view.zoom(20, viewer.view.width, viewer.view.layout.rows.at(-1).y)")
    page.frames()
    outputs = """viewer.graph.nodes.filter(({kind}) => kind === 'target').map((node) => [viewer.view.place(node).x, node.id])"""
    width, left = page.js("[viewer.view.width, viewer.view.layout.margin.left]")
    inside = {name for x, name in page.js(outputs) if left - 6 <= x <= width}
    named = page.js("viewer.view.names.filter(({id}) => viewer.graph.byId.get(id).kind === 'target').map(({id}) => id)")
    assert 0 < len(inside) < 10
    assert set(named) == inside


def test_glyphs_grow_with_influence(open_page: Callable[..., Page]):
    page = open_page(graph_page(small_document()))
    # Influence on the outputs, by hand: 0.75 of "yes", half of which is gamma's, three eighths the error's.
    influence = page.js("viewer.graph.nodes.map((node) => viewer.graph.influence.nodes[node.index])")
    assert influence[2] == pytest.approx(0.375)
    assert influence[3] == pytest.approx(0.28125)
    assert influence[0] == pytest.approx(0.75 / 8 + 0.375 * 0.75)
    assert influence[1] == pytest.approx(0.25 + 0.375 * 0.25)
    alpha, beta, gamma, error = page.js("Array.from(viewer.view.layout.size).slice(0, 4)")
    assert alpha == gamma == pytest.approx(1.7)
    assert beta == pytest.approx(0.7 + (0.34375 / 0.375) ** 0.5)
    assert error == pytest.approx(0.6 + 0.35 * (0.28125 / 0.375) ** 0.5)


def test_no_faint_link_lies_behind_a_selection(open_page: Callable[..., Page], deep_page: str):
    page = open_page(deep_page)
    page.js("viewer.actions.select(viewer.graph.nodes.find((node) => node.kind === 'target').id)")
    page.frames()
    # Every link that can be pointed at, anywhere, is one of the selection's.
    found = page.js(
        """(() => { const { view, graph, store } = viewer, found = new Set();
        for (let x = 0; x < view.width; x += 12) for (let y = 0; y < view.height; y += 12) found.add(view.linkAt(x, y));
        found.delete(null);
        const { source, target } = graph.links, chosen = graph.byId.get(store.state.clicked).index;
        return [found.size, [...found].filter((link) => source[link] !== chosen && target[link] !== chosen).length]; })()"""
    )
    assert found[0] > 0
    assert found[1] == 0
