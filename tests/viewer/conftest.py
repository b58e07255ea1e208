"""One browser for all tests of the viewer; they are skipped where there is none (CHROMIUM names another program)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from circuit_tracer.graph import Graph
from circuit_tracer.replacement_model import ReplacementModel
from circuit_tracer.viewer.bundle import STATIC, bundled_script
from circuit_tracer.viewer.server import Server
from tests.support.browser import Browser, Page, find_chromium
from tests.support.documents import feature_details, small_document
from tests.support.gestures import READY

AXE = "axe-core@4.10.3"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "browser: drives headless Chromium; skipped where there is none")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if find_chromium() is None:
        pytest.skip("no Chromium here; install the package chromium, or set CHROMIUM to a browser of its kind")
    with Browser() as running:
        yield running


@pytest.fixture
def open_page(browser: Browser, tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """Open the text of a page from disk, as users do, in a browser that cannot reach anything else."""
    pages: list[Page] = []

    def opener(text: str, *, after: str = "", ready: str = READY, **options: object) -> Page:
        path = tmp_path / f"page-{len(pages)}.html"
        path.write_text(text, encoding="utf-8")
        page = browser.page(path.as_uri() + after, **options)
        pages.append(page)
        page.wait(ready)
        page.frames(2)
        return page

    yield opener
    for page in pages:
        page.close()


@pytest.fixture
def small(open_page: Callable[..., Page]) -> Page:
    """The small document, with details of one feature."""
    from circuit_tracer.viewer import graph_page

    return open_page(graph_page(small_document(), {(0, 5): feature_details()}))


@pytest.fixture(scope="session")
def axe(pytestconfig: pytest.Config) -> str:
    """The text of axe-core, from npm; AXE_CORE may name a file of it."""
    given = os.environ.get("AXE_CORE")
    folder = pytestconfig.cache.mkdir("axe-core")
    path = Path(given) if given else folder / "node_modules" / "axe-core" / "axe.min.js"
    with FileLock(folder / "lock"):  # another worker may want it as well
        if not path.is_file():
            npm = shutil.which("npm")
            if npm is None:
                pytest.skip("no npm to fetch axe-core with; set AXE_CORE to axe.min.js")
            command = [npm, "install", "--silent", "--no-save", "--ignore-scripts", "--prefix", str(folder), AXE]
            if subprocess.run(command, check=False, timeout=120).returncode:
                pytest.skip("npm could not fetch axe-core; set AXE_CORE to axe.min.js")
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def demo_model() -> ReplacementModel:
    from circuit_tracer.demo.show import load_demo

    return load_demo()


@pytest.fixture(scope="session")
def demo_graph(demo_model: ReplacementModel) -> Graph:
    from circuit_tracer.attribution.attribute import attribute
    from circuit_tracer.demo import PROMPT

    return attribute(PROMPT, demo_model)


@pytest.fixture
def graph_folder(tmp_path: Path) -> Path:
    """A folder with one small graph."""
    folder = tmp_path / "graphs"
    folder.mkdir()
    document = small_document()
    (folder / "small.json").write_text(json.dumps(document))
    (folder / "graph-metadata.json").write_text(json.dumps({"graphs": [document["metadata"]]}))
    return folder


@pytest.fixture
def served(graph_folder: Path, demo_model: ReplacementModel) -> Iterator[Server]:
    """A server over that folder with the embedded model."""
    from circuit_tracer.demo import load_labels
    from circuit_tracer.viewer.server import serve

    with serve(graph_folder, port=0, model=demo_model, labels=load_labels(), neuronpedia_secret="secret") as server:
        yield server


@pytest.fixture(scope="session")
def script_in_one_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's folder with all modules in main.js: half a second less a visit than seventy requests."""
    folder = tmp_path_factory.mktemp("page")
    for path in (STATIC / "index.html", *STATIC.glob("*.css")):
        shutil.copy(path, folder)
    (folder / "main.js").write_text(bundled_script(), encoding="utf-8")
    return folder


@pytest.fixture
def quick(served: Server, script_in_one_file: Path) -> Iterator[Server]:
    """The same server, with the page from there. What modules one by one come to: `test_without_a_model_...`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(served.site, "frontend", script_in_one_file)
        patch.setattr("circuit_tracer.viewer.server.pages.STATIC", script_in_one_file)
        yield served


@pytest.fixture
def visit(browser: Browser, quick: Server) -> Iterator[Callable[..., Page]]:
    """Open an address of the server; at the end the page must have asked nobody else, and had no error."""
    pages: list[Page] = []

    def opener(address: str = "", ready: str = READY, **options: object) -> Page:
        page = browser.page(quick.url + address, **options)
        pages.append(page)
        page.wait(ready, 30)
        page.frames(2)
        return page

    yield opener
    for page in pages:
        assert page.errors() == []
        assert [each for each in page.requests() if not each.startswith((quick.url, "data:", "blob:"))] == []
        page.close()


@pytest.fixture
def demo_served(served: Server, graph_folder: Path, demo_graph: Graph) -> Server:
    """The embedded model's graph, alone in the folder."""
    from circuit_tracer.demo import load_labels

    (graph_folder / "small.json").unlink()
    (graph_folder / "graph-metadata.json").unlink()
    demo_graph.save(graph_folder / "demo.safetensors")
    demo_graph.to_json("demo", graph_folder, labels=load_labels(), node_threshold=0.9)
    return served


@pytest.fixture(scope="session")
def demo_page(demo_graph: Graph) -> str:
    from circuit_tracer.demo import load_labels
    from circuit_tracer.viewer import graph_page

    return graph_page(demo_graph, labels=load_labels(), slug="demo", node_threshold=0.95)
