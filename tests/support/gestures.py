"""What tests do with a page and read from it."""

from __future__ import annotations

import json
import time
from typing import Any

from tests.support.browser import Page

CTRL, SHIFT = 2, 8
READY = "window.viewer?.view.picture"


def state(page: Page, name: str) -> Any:
    return page.js(f"viewer.store.state.{name}")


def place(page: Page, node: str) -> tuple[float, float]:
    """Where a node is on the screen."""
    box = page.js(
        f"""(() => {{ const b = viewer.view.element.getBoundingClientRect();
        const p = viewer.view.place(viewer.graph.byId.get({json.dumps(node)})); return [b.left + p.x, b.top + p.y]; }})()"""
    )
    return box[0], box[1]


def texts(page: Page, selector: str) -> list[str]:
    return page.js(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)")


def params(page: Page) -> dict[str, str]:
    page.js("new Promise(done => setTimeout(done, 200))")
    return page.js("Object.fromEntries(new URLSearchParams(location.hash.slice(1)))")


def pixels(page: Page, canvas: str) -> int:
    """Non-transparent pixels of a canvas."""
    return page.js(
        f"""(() => {{ const c = document.querySelector({json.dumps(canvas)});
        const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
        let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n; }})()"""
    )


def set_slider(page: Page, name: str, value: float) -> None:
    page.js(
        f"""(() => {{ const e = document.querySelector('[data-testid={name}]'); e.value = {value};
        e.dispatchEvent(new Event('input', {{bubbles: true}})); }})()"""
    )
    page.frames()


def panned(page: Page, seconds: float) -> tuple[float, float]:
    """Drag the link graph to and fro: frames a second, and the milliseconds that 95 % of frames stay within."""
    page.js("viewer.areas.focus(0)")
    page.js(
        """window.stamps = [];
        (function tick(now) { stamps.push(now); requestAnimationFrame(tick); })(performance.now())"""
    )
    middle, top = page.center(".link-graph")
    reach = page.js("viewer.view.width") * 0.3
    page.mouse("Moved", middle, top)
    page.mouse("Pressed", middle, top)
    start, step, x = time.monotonic(), 0, middle
    while time.monotonic() - start < seconds:
        step += 1
        x = middle + reach * ((step % 80) / 40 - 1 if step % 160 < 80 else 1 - (step % 80) / 40)
        page.mouse("Moved", x, top + (step % 50), button="left", buttons=1)
    page.mouse("Released", x, top)
    gaps = sorted(page.js("stamps.slice(1).map((now, at) => now - stamps[at])"))
    return 1000 * len(gaps) / sum(gaps), gaps[int(0.95 * len(gaps))]


def serious_findings(page: Page, axe: str, *rules: str) -> list[str]:
    """What axe-core, given as text, holds serious or critical on the page, by all of its rules or some."""
    if not page.js("'axe' in window"):
        page.js(axe + "; 0")
    only = f"runOnly: {json.dumps(rules)}, " if rules else ""
    return page.js(
        f"axe.run({{{only}resultTypes: ['violations']}})"
        """.then(r => r.violations
        .filter(v => ['serious', 'critical'].includes(v.impact))
        .map(v => `${v.id}: ${v.nodes.slice(0, 3).map(n => n.html.slice(0, 160)).join(' | ')}`))"""
    )


def findings_in_both_looks(page: Page, axe: str) -> list[str]:
    """The same in the light, and then what the dark can change: contrast. The page stays dark."""
    light = serious_findings(page, axe)
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    page.frames(15)  # colours change slowly
    return light + serious_findings(page, axe, "color-contrast")
