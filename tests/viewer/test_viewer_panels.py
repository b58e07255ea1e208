"""What holds for every panel of the page's table (panels.js), whichever they are."""

from __future__ import annotations

from tests.support.browser import Page
from tests.support.gestures import params

SHOWN = "viewer.panels.map(p => p.id).filter(id => document.querySelector(`[data-testid=${id}]`).offsetParent)"


def test_every_panel_is_reached_by_keys_alone(small: Page):
    areas, reached = small.js("viewer.areas.areas.map(area => area.members.length)"), set()
    for number, panels in enumerate(areas):
        small.key("Escape")
        small.key(str(number + 1))
        area = f"viewer.areas.areas[{number}].element"
        for _ in range(panels):
            assert small.js(f"{area}.contains(document.activeElement)")
            reached |= set(small.js(SHOWN))
            small.key("ArrowRight")
    assert sorted(reached) == sorted(small.js("viewer.panels.map(p => p.id)"))
    assert small.errors() == []


def test_every_panel_stands_in_an_area_under_a_name_of_its_own(small: Page):
    ids = small.js("viewer.panels.map(p => p.id)")
    assert len(set(ids)) == len(ids)
    assert sum(small.js("viewer.areas.areas.map(area => area.members.length)")) == len(ids)
    tabs = small.js(
        "[...document.querySelectorAll('[role=tab]')].map(e => [e.textContent, e.getAttribute('aria-controls')])"
    )
    assert tabs
    for title, controls in tabs:
        assert title
        assert small.js(f"document.getElementById('{controls}').getAttribute('aria-labelledby')")


def test_the_address_has_a_name_for_each_field_and_none_at_the_start(small: Page):
    kept = small.js("Object.values(viewer.store.fields).map(field => field.address).filter(Boolean)")
    assert len(set(kept)) == len(kept)
    assert not set(kept) & {"pinnedIds", "supernodes", "clickedId", "clerps", "sg_pos", "slug", "around", "logitDiff"}
    small.js("viewer.actions.pin(['0_5_0'])")
    assert list(params(small)) == ["pinnedIds"]
