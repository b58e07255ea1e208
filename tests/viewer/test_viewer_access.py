"""Use without eyes or mouse: axe-core finds nothing serious, and every control is reached and named."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from circuit_tracer.viewer.comparison import comparison_page
from tests.support.browser import Page
from tests.support.documents import small_comparison
from tests.support.gestures import findings_in_both_looks, serious_findings

ROUTES = "document.querySelector('[data-testid=start-routes]').click()"
SELECT = "viewer.actions.select(viewer.graph.nodes.find(n => n.kind === 'target').id)"


@pytest.mark.few
@pytest.mark.parametrize("phone", [False, True], ids=["desk", "phone"])
@pytest.mark.parametrize(
    "then", ["", f"{ROUTES}; {SELECT}", "document.querySelector('[data-testid=report-button]').click()"]
)
def test_axe_finds_nothing_serious(open_page: Callable[..., Page], demo_page: str, axe: str, phone: bool, then: str):
    page = open_page(demo_page, **({"width": 390, "height": 800, "phone": True} if phone else {}))
    page.js(f"void ({then or 0})" if ";" not in then else f"(() => {{ {then} }})()")
    page.frames(5)
    assert (serious_findings if phone else findings_in_both_looks)(page, axe) == []


def test_axe_finds_nothing_serious_in_a_comparison(open_page: Callable[..., Page], axe: str):
    assert serious_findings(open_page(comparison_page(small_comparison(conclusive=False))), axe) == []


@pytest.mark.slow("a key for every control: 3 s")
def test_every_control_is_reached_by_tab_and_named(open_page: Callable[..., Page], demo_page: str):
    page = open_page(demo_page)
    page.js(f"(() => {{ {ROUTES}; {SELECT} }})()")
    page.js("document.activeElement.blur()")
    reached = []
    for _ in range(120):
        page.key("Tab")
        reached.append(
            page.js(
                """(() => { const e = document.activeElement;
                return e.getAttribute('data-testid') ?? e.getAttribute('aria-label') ?? e.tagName; })()"""
            )
        )
        if reached[-1] == "BODY":
            break
    for name in (
        "search",
        "undo",
        "report-button",
        "save-menu",
        "theme",
        "pruning",
        "edge-threshold",
        "link-graph",
        "box",
    ):
        assert name in reached, name
