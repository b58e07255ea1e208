"""The page of two graphs: one layout for both and for what changed, colours and sizes by the account, the account itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from circuit_tracer.errors import FileFormatError
from circuit_tracer.viewer.comparison import comparison_page
from tests.support.browser import Page
from tests.support.documents import small_comparison
from tests.support.gestures import texts

ROWS = "[data-testid=account-table] tbody tr"


@pytest.fixture
def page(open_page: Callable[..., Page]) -> Page:
    return open_page(comparison_page(small_comparison()))


def rows(page: Page) -> list[str]:
    return page.js(f"[...document.querySelectorAll('{ROWS}')].map(e => e.dataset.row)")


def test_all_graphs_have_one_layout(page: Page) -> None:
    places = page.js("['a', 'b'].map(s => viewer.graph.nodes.map(n => Object.values(viewer.views[s].place(n))))")
    assert places[0] == places[1]
    order = """['a', 'difference'].map(s => [0, 1].map(axis =>
        viewer.graph.nodes.map(n => [Object.values(viewer.views[s].place(n))[axis], n.id])
        .filter(([, id]) => !id.startsWith('2_')).sort((x, y) => x[0] - y[0] || (x[1] < y[1] ? -1 : 1)).map(p => p[1])))"""
    small, large = page.js(order)
    assert small == large
    shown = "viewer.graph.nodes.filter(n => viewer.views.{}.shown[n.index]).map(n => n.id)"
    everything = set(page.js(shown.format("difference")))
    assert everything - set(page.js(shown.format("a"))) == {"E_12_0", "0_8_1"}
    assert everything - set(page.js(shown.format("b"))) == {"E_10_0", "0_6_1"}


def test_colour_is_the_sign_and_size_the_share_of_the_change(page: Page) -> None:
    shades = page.js(
        "Object.fromEntries(viewer.graph.nodes.map(n => [n.id, Math.sign(viewer.view.look.shades[n.index])]))"
    )
    assert shades == {
        "0_6_1": -1, "0_8_1": 1, "1_7_1": -1, "0_-1_1": -1, "2_20_1": -1,
        "E_10_0": None, "E_12_0": None, "E_11_1": None, "0_5_0": None, "2_21_1": None,
    }  # fmt: skip
    size = "viewer.view.layout.size[viewer.graph.byId.get('{}').index]"
    alpha, beta, gamma, delta = (page.js(size.format(name)) for name in ("1_7_1", "0_6_1", "0_8_1", "0_5_0"))
    assert alpha == beta > gamma > delta
    outlines = page.js("Object.fromEntries(viewer.graph.nodes.map(n => [n.id, viewer.view.look.outlines[n.index]]))")
    assert (outlines["0_6_1"], outlines["0_8_1"], outlines["1_7_1"]) == ("only-a", "only-b", "")
    page.js("viewer.store.set({measure: 'carried'})")
    page.frames()
    alpha, delta = (page.js(size.format(name)) for name in ("1_7_1", "0_5_0"))
    assert delta > alpha  # along all paths it is delta that carries most


def test_pointing_at_a_node_lights_it_in_both_graphs_and_in_the_table(page: Page) -> None:
    page.js("window.before = {}; for (const s of ['a', 'b']) before[s] = viewer.views[s].overlay.toDataURL()")
    where = page.js(
        """(() => { const v = viewer.views.a, b = v.element.getBoundingClientRect();
        const p = v.place(viewer.graph.byId.get('1_7_1')); return [b.left + p.x, b.top + p.y]; })()"""
    )
    page.mouse("Moved", *where)
    page.frames(3)
    assert page.js("viewer.store.state.hovered") == "1_7_1"
    assert page.js("['a', 'b'].every(s => viewer.views[s].overlay.toDataURL() !== before[s])")
    assert page.js(f"[...document.querySelectorAll('{ROWS}.pointed')].map(e => e.dataset.row)") == ["1_7_1"]
    tooltip = page.js("viewer.views.a.tooltip.textContent")
    assert "in both graphs" in tooltip
    assert "activation 3 \u2192 2" in tooltip
    page.click(f"{ROWS}[data-row='0_8_1'] .name")
    assert page.js("viewer.store.state.clicked") == "0_8_1"
    assert page.js(f"document.querySelector('{ROWS}.clicked').dataset.row") == "0_8_1"


def test_the_account_is_sorted_and_searched(page: Page) -> None:
    assert rows(page)[:2] in (["0_6_1", "1_7_1"], ["1_7_1", "0_6_1"])
    assert rows(page)[2:] == ["0_8_1", "0_-1_1", "0_5_0"]
    assert texts(page, f"{ROWS}[data-row='1_7_1'] td") == [
        "3.00",
        "1.00",
        "\u22122.00",
        "\u22120.75",
        "\u22121.25",
        "\u22121.00",
    ]
    page.click("[data-testid=sort-b]")
    assert rows(page)[-1] == "0_-1_1"
    page.js("viewer.store.set({query: 'gam'})")
    assert rows(page) == ["0_8_1"]
    page.js("viewer.store.set({query: '', hideErrors: true})")
    assert "0_-1_1" not in rows(page)
    assert "4 \u2192 1, \u22123" in page.js("document.querySelector('[data-testid=change]').textContent")
    assert "residual0" in page.js("document.querySelector('[data-testid=accounted]').textContent")
    assert "2 further nodes" in page.js("document.querySelector('[data-testid=rest]').textContent")
    assert page.js("document.querySelector('[data-testid=verdict]').role") is None
    assert page.errors() == []


def test_a_change_that_errors_carry_is_said_to_be_inconclusive(open_page: Callable[..., Page]) -> None:
    said = "errors carry 81% of it: nothing can be concluded"
    changed: dict[str, Any] = {"conclusive": False, "verdict": [said], "unexplained": 0.81, "positions": "pooled"}
    column = {"a": None, "b": None, "token_a": None, "token_b": None}
    page = open_page(comparison_page(small_comparison(**changed, columns=[column, column])), phone=True, width=390)
    assert texts(page, "[role=alert]") == [said]
    assert page.js("document.documentElement.scrollWidth <= innerWidth")
    label = "viewer.store.state.labels['E_10_0']"
    assert page.js(label) == "\u201cone\u201d"  # a column of all places has no token to name it by


HOSTILE = "x</script><img src=x onerror=window.hacked=1>"


def test_strings_of_a_comparison_stay_text(open_page: Callable[..., Page]) -> None:
    record = small_comparison(target=HOSTILE, verdict=[HOSTILE])
    record["a"]["prompt"] = record["b"]["model"] = HOSTILE
    for node in record["nodes"]:
        node["label"] = HOSTILE
    page = open_page(comparison_page(record))
    assert page.js("window.hacked") is None
    assert page.js("document.querySelectorAll('#app img').length") == 0
    assert HOSTILE in page.js("document.querySelector('h1').textContent")
    assert page.errors() == []


def test_what_is_no_comparison_is_refused() -> None:
    with pytest.raises(FileFormatError, match="comparison of version 9"):
        comparison_page(small_comparison(version=9))
    with pytest.raises(FileFormatError, match="nodes"):
        comparison_page(small_comparison(nodes=[{}]))
