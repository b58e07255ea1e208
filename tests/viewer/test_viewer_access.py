"""Use without eyes or mouse: axe-core finds nothing serious, and every control is reached and named."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from browser import Page

AXE = "axe-core@4.10.3"
ROUTES = "document.querySelector('[data-testid=start-routes]').click()"
SELECT = "viewer.actions.select(viewer.graph.nodes.find(n => n.kind === 'target').id)"


@pytest.fixture(scope="session")
def axe(pytestconfig: pytest.Config) -> str:
    """The text of axe-core, from npm; AXE_CORE may name a file of it."""
    given = os.environ.get("AXE_CORE")
    folder = pytestconfig.cache.mkdir("axe-core")
    path = Path(given) if given else folder / "node_modules" / "axe-core" / "axe.min.js"
    if not path.is_file():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("no npm to fetch axe-core with; set AXE_CORE to axe.min.js")
        command = [npm, "install", "--silent", "--no-save", "--ignore-scripts", "--prefix", str(folder), AXE]
        if subprocess.run(command, check=False, timeout=120).returncode:
            pytest.skip("npm could not fetch axe-core; set AXE_CORE to axe.min.js")
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("look", ["light", "dark", "phone"])
@pytest.mark.parametrize(
    "then", ["", f"{ROUTES}; {SELECT}", "document.querySelector('[data-testid=report-button]').click()"]
)
def test_axe_finds_nothing_serious(open_page: Callable[..., Page], demo_page: str, axe: str, look: str, then: str):
    sizes = {"phone": {"width": 390, "height": 800, "phone": True}, "dark": {"dark": True}}
    page = open_page(demo_page, **sizes.get(look, {}))
    page.js(f"void ({then or 0})" if ";" not in then else f"(() => {{ {then} }})()")
    page.frames(5)
    page.js(axe + "; 0")
    found = page.js(
        """axe.run({resultTypes: ['violations']}).then(r => r.violations
        .filter(v => ['serious', 'critical'].includes(v.impact))
        .map(v => `${v.id}: ${v.nodes.slice(0, 3).map(n => n.html.slice(0, 160)).join(' | ')}`))"""
    )
    assert found == []


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
