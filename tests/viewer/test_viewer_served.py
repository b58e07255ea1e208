"""The same page from a folder that a server hands out: a list of graphs, and features fetched as they are needed."""

from __future__ import annotations

import functools
import gzip
import http.server
import json
import shutil
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from circuit_tracer.viewer.bundle import STATIC
from tests.support.browser import Browser, Page
from tests.support.documents import feature_details, small_document


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files, and ranges of them."""

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        path = Path(self.translate_path(self.path))
        if not wanted or not path.is_file():
            super().do_GET()
            return
        start, end = map(int, wanted.removeprefix("bytes=").split("-"))
        data = path.read_bytes()[start : end + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(STATIC, tmp_path, dirs_exist_ok=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "graph_data").mkdir()
    documents = [small_document(), small_document(slug="other", prompt="another <b>prompt</b>")]
    index = {"graphs": [document["metadata"] for document in documents]}
    (tmp_path / "data" / "graph-metadata.json").write_text(json.dumps(index))
    for document in documents:
        (tmp_path / "graph_data" / f"{document['metadata']['slug']}.json").write_text(json.dumps(document))
    return tmp_path


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/index.html"
    server.shutdown()


def opened(browser: Browser, address: str) -> Page:
    page = browser.page(address)
    page.wait("window.viewer?.view.picture")
    return page


@pytest.mark.slow("takes 1.4 s")
def test_modules_show_the_first_graph_of_the_list_and_choose_another(browser: Browser, address: str):
    page = opened(browser, address)
    options = page.js("[...document.querySelectorAll('[data-testid=chooser] option')].map(e => e.textContent)")
    assert options == ["one two", "another <b>prompt</b>"]
    page.js(
        """(() => { const e = document.querySelector('[data-testid=chooser]'); e.value = 'other';
        e.dispatchEvent(new Event('change')); })()"""
    )
    page.wait("window.viewer?.graph.metadata.slug === 'other'")
    page.js("viewer.actions.pin(['0_5_0'])")
    page.wait("location.search.includes('pinnedIds=0_5_0')")
    assert "slug=other" in page.js("location.search")
    page.close()


def test_features_from_a_file_each(browser: Browser, folder: Path, address: str):
    (folder / "features").mkdir()
    (folder / "features" / "20.json").write_text(json.dumps(feature_details()))
    page = opened(browser, address)
    page.js("viewer.actions.select('0_5_0')")
    page.wait("document.querySelector('[data-testid=examples]')")
    page.js("viewer.actions.select('1_7_1')")
    page.wait("document.querySelector('[data-testid=no-examples]')")
    assert "(404)" in page.js("document.querySelector('[data-testid=no-examples]').textContent")
    page.close()


@pytest.mark.slow("takes 1.4 s")
@pytest.mark.parametrize("pack", [zlib.compress, gzip.compress])
def test_features_from_the_indexed_binary_form(browser: Browser, folder: Path, address: str, pack):
    (folder / "features").mkdir()
    record = pack(json.dumps(feature_details()).encode())
    record = struct.pack("<I", len(record)) + record
    offsets = [0] * 6 + [len(record)] * 3
    (folder / "features" / "layer_0.bin").write_bytes(record)
    index = {"0": {"filename": "layer_0.bin", "offsets": offsets}}
    (folder / "features" / "index.json.gz").write_bytes(gzip.compress(json.dumps(index).encode()))
    page = opened(browser, address)
    page.js("viewer.actions.select('0_5_0')")
    page.wait("document.querySelector('[data-testid=examples]')")
    page.js("viewer.actions.select('0_6_1')")
    page.wait("document.querySelector('[data-testid=no-examples]')")
    assert "no record" in page.js("document.querySelector('[data-testid=no-examples]').textContent")
    assert page.js("document.querySelectorAll('.tooltip').length") == 1
    page.close()


@pytest.mark.slow("takes 1.2 s")
def test_a_graph_that_is_not_there_gives_a_message(browser: Browser, address: str):
    page = browser.page(address + "?slug=gone")
    page.wait("document.querySelector('[data-testid=problem]')")
    assert "answered 404" in page.js("document.querySelector('[data-testid=problem]').textContent")
    page.close()
