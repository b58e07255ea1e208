"""The pictures of the documentation: all are listed by the script that makes them, used, small, and there on light and dark."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.pictures import DIAGRAMS, PICTURES, SHOTS, demo_page, diagram, in_the_dark, photograph
from circuit_tracer.graph.palette import PALETTES
from tests.support.browser import find_chromium
from tests.support.code_blocks import PAGES, ROOT

LISTED = {f"{name}.{kind}" for kind, names in (("svg", DIAGRAMS), ("png", [s.name for s in SHOTS])) for name in names}
USED = re.compile(r"""(?:!\[[^]]*\]\(|(?:src|srcset)=")([^)"\s#]+)(#[\w-]*)?""")
SUFFIX = {"light": "#gh-light-mode-only", "dark": "#gh-dark-mode-only"}


def used(page: Path) -> list[tuple[Path, str]]:
    """Files of pictures that a page shows, and when."""
    found = USED.findall(page.read_text(encoding="utf-8"))
    return [(page.parent / path, when) for path, when in found if "://" not in path]


def test_each_is_made_by_the_script_and_used() -> None:
    there = {path.name for path in PICTURES.iterdir()}
    assert there == {name.replace(".", f"-{theme}.") for name in LISTED for theme in PALETTES}
    shown = {path.name for page in PAGES for path, _ in used(page)}
    assert there <= shown, f"no page shows {sorted(there - shown)}"


@pytest.mark.parametrize("page", [page for page in PAGES if used(page)], ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_shows_is_there_on_light_and_dark(page: Path) -> None:
    shown = used(page)
    for path, when in shown:
        assert path.is_file(), f"{page.name} shows {path.name}"
        if path.resolve().parent == PICTURES:
            stem, theme = path.stem.rsplit("-", 1)
            assert when == SUFFIX[theme], f"{page.name}: {path.name} is for {SUFFIX[theme]}"
            twins = {other.name for other, _ in shown}
            assert {f"{stem}-{each}{path.suffix}" for each in PALETTES} <= twins


def test_they_are_small() -> None:
    assert sum(path.stat().st_size for path in PICTURES.iterdir()) < 3_000_000


@pytest.mark.parametrize("name", DIAGRAMS)
def test_a_diagram_is_the_same_in_the_dark(name: str) -> None:
    drawn = diagram(name, "light").read_text(encoding="utf-8")
    assert diagram(name, "dark").read_text(encoding="utf-8") == in_the_dark(drawn)
    assert "<title>" in drawn
    colours = set(re.findall(r"#[0-9a-f]{6}", drawn))
    assert colours <= set(vars(PALETTES["light"]).values()), "a colour that has no dark twin"


@pytest.mark.slow("traces, tests a story, and photographs the page eight times")
@pytest.mark.skipif(find_chromium() is None, reason="no Chromium here")
def test_the_page_can_be_photographed(tmp_path: Path) -> None:
    shots = [each for each in SHOTS if each.page == "demo"]
    photograph(shots, {"demo": demo_page()}, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2 * len(shots)
