"""The page of a run, as one file and from the server: rows, filters, families, graphs of rows, two of them compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from circuit_tracer.errors import InputError
from circuit_tracer.many import Row, Run
from circuit_tracer.many.aggregate import aggregate_graphs
from circuit_tracer.viewer.run import run_document, run_page
from circuit_tracer.viewer.server import Server, serve
from tests.support.asking import ask
from tests.support.browser import Browser, Page
from tests.support.command import save_folders
from tests.support.gestures import texts
from tests.support.run_cases import Case
from tests.support.tiny import tiny_model

READY = "window.viewer?.run"
GRAPH = "window.viewer?.view?.picture"
ROWS = "[data-testid=rows-table] tbody tr"
HOSTILE = "<img src=x onerror=window.hacked=1>"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Five rows of a tiny model, of which one fails, with their families."""
    case = Case(save_folders(tmp_path_factory.mktemp("tiny")))
    rows = [
        Row("a/1", "the capital of Texas", label="x", extra={"note": HOSTILE}),
        Row("b", "the capital of the state", label="y", extra={"note": "second"}),
        Row("empty", "", label="x"),
        Row("c", "Austin is the capital of", label="y", extra={"note": "third"}),
        Row("d", "Texas is the state", label="x"),
    ]
    found = case.run(tmp_path_factory.mktemp("runs") / "tiny run", rows)
    pairs = ((row.id, graph) for row, graph in found.graphs())
    labels = {row.id: row.label for row in rows if row.label and row.id != "empty"}
    aggregate_graphs(pairs, labels, families=2, resamples=20).write(found.address)
    return found


@pytest.fixture(scope="module")
def served(run: Run) -> Iterator[Server]:
    with serve(run.address, port=0) as server:
        yield server


def listed(page: Page) -> list[str]:
    return page.js(f"[...document.querySelectorAll('{ROWS}')].map(e => e.dataset.row)")


def choose(page: Page, menu: str, value: str) -> None:
    page.js(
        f"""(() => {{ const e = document.querySelector('[data-testid=filter-{menu}]'); e.value = '{value}';
        e.dispatchEvent(new Event('change')) }})()"""
    )


@pytest.mark.slow("takes 2.7 s")
def test_one_file_lists_filters_sorts_and_opens_graphs(run: Run, open_page: Callable[..., Page]) -> None:
    page = open_page(run_page(run), ready=READY)
    assert listed(page) == ["a/1", "b", "empty", "c", "d"]
    assert "4 of 5 prompts traced, 1 failed" in page.js("document.querySelector('h1').textContent")
    assert "InputError" in page.js(f"document.querySelector('{ROWS}.failed').textContent")
    page.click("[data-testid=sort-n_features]")
    order = sorted(run.ids, key=lambda id: -next(row["n_features"] for row in run.table if row["id"] == id))
    assert listed(page) == [*order, "empty"]
    choose(page, "label", "y")
    assert set(listed(page)) == {"b", "c"}
    page.js("viewer.store.set({query: 'second'})")
    assert listed(page) == ["b"]
    page.js("viewer.store.set({query: '', label: '', sort: ''})")
    overview = run_document(run)["families"]
    assert sum(family["size"] for family in overview["families"]) == 4
    page.click("[data-testid=family-0]")
    assert sorted(listed(page)) == sorted(overview["families"][0]["members"])
    assert page.js("window.hacked") is None
    assert page.js("document.querySelector('[data-testid=compare]')") is None  # that takes a server
    page.click("[data-testid=medoid-0]")
    page.wait(GRAPH)
    assert page.js("viewer.graph.metadata.prompt") == run.graph(overview["families"][0]["medoid"]).input_string
    page.click("[data-testid=back]")
    page.wait(READY)
    assert page.js("viewer.store.state.family") == "0"
    assert page.errors() == []


@pytest.mark.slow("takes 1.3 s")
def test_a_small_file_has_the_medoids_first(run: Run) -> None:
    medoids = [family["medoid"] for family in run_document(run)["families"]["families"]]
    text = run_page(run)
    size = text.split('"graphs":{')[1].index('"}') // len(run.ids)
    few = run_page(run, most_graphs=int(2.5 * size)).split('"graphs":')[1]
    assert [few.index(f'"{id}":"') for id in medoids]
    assert sum(f'"{id}":"' in few for id in run.ids) == 2


def test_a_run_without_aggregate_has_rows_alone(run: Run, tmp_path: Path) -> None:
    bare = Run(str(tmp_path), run.settings, run.fingerprints, run.rows, run.table, run.store)
    document = run_document(bare)
    assert document["families"] is document["features"] is document["labels"] is None
    assert [row["id"] for row in document["rows"]] == ["a/1", "b", "empty", "c", "d"]
    assert document["rows"][1]["extra"] == {"note": "second"}


def test_tables_name_features_and_put_the_surest_first(run: Run) -> None:
    plain = run_document(run)
    first = plain["features"][0]
    named = run_document(run, {(first["layer"], first["index"]): "the first"})
    assert named["features"][0]["name"] == "the first"
    influences = [row["influence"] for row in named["features"]]
    assert influences == sorted(influences, reverse=True)
    sure = [row["q"] for row in named["labels"] if row["q"] is not None]
    assert sure == sorted(sure)
    assert any("the first" in row["name"] for row in named["labels"])


@pytest.mark.slow("a run, its page and a comparison in a browser: 3 s")
def test_the_server_shows_a_run_and_compares_two_rows(run: Run, served: Server, browser: Browser) -> None:
    page = browser.page(served.url)
    try:
        page.wait(READY, 30)
        for id in ("a/1", "c"):
            page.click(f"[data-testid='mark-{id}']")
        page.click("[data-testid=compare]")
        page.wait(GRAPH, 30)
        assert page.js("viewer.record.a.prompt") == run.graph("a/1").input_string
        assert page.js("viewer.record.b.prompt") == run.graph("c").input_string
        page.open(f"{served.url}?row=b")
        page.wait(GRAPH, 30)
        assert texts(page, "h1")[0].endswith("the capital of the state")
        assert page.errors() == []
        assert all(each.startswith((served.url, "data:", "blob:")) for each in page.requests())
    finally:
        page.close()


def test_the_api_of_runs_keeps_the_guards_rules(run: Run, served: Server) -> None:
    asked = {"a": "a/1", "b": "b"}
    assert ask(served, "/api/run").json["rows"][0]["id"] == "a/1"
    assert ask(served, "/api/run/graphs/a%2F1").json["metadata"]["prompt"] == run.graph("a/1").input_string
    assert ask(served, "/api/comparisons", asked).json["target"]
    assert ask(served, "/api/comparisons", asked, token=False).status == 403
    assert ask(served, "/api/run", headers={"host": "evil.example"}).status == 403
    for gone in ("nothing", "empty", "..%2F..%2Fmanifest.json"):
        assert ask(served, f"/api/run/graphs/{gone}").status == 404
        assert ask(served, "/api/comparisons", {"a": gone, "b": "b"}).status == 404
    assert ask(served, "/api/comparisons", {**asked, "target": "no such"}).status == 400
    assert ask(served, "/api/comparisons", {**asked, "positions": "elsewhere"}).status == 400
    with served.site.jobs.alone("something else"):
        assert ask(served, "/api/comparisons", asked).status == 503


def test_nothing_is_traced_into_a_run(run: Run) -> None:
    with pytest.raises(InputError, match="is a run"):
        serve(run.address, port=0, model=tiny_model("llama"))


def test_two_graphs_of_a_folder_are_compared(run: Run, tmp_path: Path) -> None:
    for name, id in (("one", "a/1"), ("two", "b")):
        graph = run.graph(id)
        graph.save(tmp_path / f"{name}.safetensors")
        graph.to_json(name, tmp_path)
    graph.to_json("json alone", tmp_path)
    with serve(tmp_path, port=0) as server:
        assert ask(server, "/api/comparisons", {"a": "one", "b": "two"}).json["same"] == [
            "model",
            "dictionary",
            "edits",
        ]
        assert ask(server, "/api/comparisons", {"a": "one", "b": "json alone"}).status == 409
        assert ask(server, "/api/run").status == 404
