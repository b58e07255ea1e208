"""The site: built strictly, without a network, and asking for nothing outside itself, also from disk."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.support.browser import Browser, find_chromium
from tests.support.code_blocks import ROOT

pytestmark = pytest.mark.slow("builds the site: half a minute")

# attributes by which a page loads something, where an <a href> only leads there
LOADS = {
    "audio": ("src",),
    "embed": ("src",),
    "iframe": ("src",),
    "img": ("src", "srcset"),
    "link": ("href",),
    "object": ("data",),
    "script": ("src",),
    "source": ("src", "srcset"),
    "video": ("src", "poster"),
}


class Page(HTMLParser):
    """What a page loads, what it links to, and the names of its places."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.places: set[str] = set()
        self.classes: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.places |= {given[name] for name in ("id", "name") if name in given}
        self.classes |= set(given.get("class", "").split())
        self.loaded += [given[name] for name in LOADS.get(tag, ()) if name in given]
        if tag == "a" and "href" in given:
            self.links.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole site; nothing can be fetched while it is built, for all requests go to a port where nobody listens."""
    folder = tmp_path_factory.mktemp("site")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environment = {**os.environ, **nowhere, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


def test_every_page_of_the_documentation_is_there(site: Path) -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        built = site / page.relative_to(ROOT / "docs")
        assert built.with_suffix(".html").is_file()
        assert built.read_bytes() == page.read_bytes(), "the Markdown that llms.txt leads to"
    assert (site / "llms.txt").is_file()
    assert "circuit-tracer attribute" in (site / "llms-full.txt").read_text(encoding="utf-8")


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        outside = [each for each in page.loaded if re.match(r"(https?:)?//", each.strip())]
        assert not outside, f"{path.relative_to(site)} loads {outside[0]}"
        assert "mermaid" not in page.classes, f"{path.relative_to(site)}: diagrams are text or SVG"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_every_link_arrives(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        if path.name == "404.html":  # its links are from the root of a server
            continue
        for link in page.links:
            found = urlsplit(link)
            if found.scheme or found.netloc:
                continue
            there = (path.parent / unquote(found.path)).resolve() if found.path else path
            assert there.is_file(), f"{path.relative_to(site)} links to {link}"
            if found.fragment and there in pages and not found.fragment.startswith("__"):
                assert unquote(found.fragment) in pages[there].places, f"{path.relative_to(site)} links to {link}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if find_chromium() is None:
        pytest.skip("no Chromium here; install the package chromium, or set CHROMIUM to a browser of its kind")
    with Browser() as running:
        yield running


@pytest.mark.parametrize("name", ["index", "start/your-model", "how-to/intervene", "reference/reads"])
@pytest.mark.parametrize("width", [390, 1366])
def test_nothing_is_wider_than_the_screen(site: Path, browser: Browser, name: str, width: int) -> None:
    page = browser.page((site / f"{name}.html").as_uri(), width, 844, phone=width < 500)
    assert page.js("document.documentElement.scrollWidth") <= width
    shown = "[...document.querySelectorAll('article img')].filter(each => each.offsetWidth)"
    assert page.js(f"{shown}.every(each => each.naturalWidth && each.getBoundingClientRect().right <= {width})")
    page.close()


def test_search_finds_from_disk(site: Path, browser: Browser) -> None:
    page = browser.page((site / "index.html").as_uri())
    page.click(".md-search__input")
    for letter in "residual":
        page.key(letter)
    page.wait("document.querySelectorAll('.md-search-result__item').length >= 2")
    assert all(
        link.startswith("file://")
        for link in page.js("[...document.querySelectorAll('.md-search-result__link')].map(link => link.href)")
    )
    asked = [
        each["params"]["request"]["url"] for each in browser.events if each["method"] == "Network.requestWillBeSent"
    ]
    assert asked
    assert not [url for url in asked if url.startswith("http")]
    assert not [each for each in browser.events if each["method"] == "Runtime.exceptionThrown"]
