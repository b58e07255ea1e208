"""A run over many prompts: its page's data, graphs of its rows; and two graphs compared, of a run or of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from starlette.responses import Response

from circuit_tracer.viewer.server.messages import CompareRequest
from circuit_tracer.viewer.server.problems import NotThere
from circuit_tracer.viewer.server.routing import Json, Served, router
from circuit_tracer.viewer.server.site import Site

if TYPE_CHECKING:
    from circuit_tracer.graph import Graph
    from circuit_tracer.many import Run

RUNS = router("runs")


def is_run(folder: Path) -> bool:
    """Whether `circuit-tracer run` made a folder; by its files, as many/ would import torch."""
    return (folder / "manifest.json").is_file() and (folder / "rows").is_dir()


@RUNS.get("/api/run")
def run(site: Served) -> Response:
    """The run that is served: rows with what became of them, families, and what the graphs have in common."""
    from circuit_tracer.viewer.run import run_document

    return Json(run_document(_run(site), site.labels))


@RUNS.get("/api/run/graphs/{id:path}")
def row_graph(id: str, site: Served) -> Response:
    """The graph of a row as viewer JSON."""
    from circuit_tracer.viewer.run import row_document

    return Json(row_document(_done(site, id), id, site.labels))


@RUNS.post("/api/comparisons")
def comparison(site: Served, request: CompareRequest) -> Response:
    """What changes from one graph to another: rows of the run, or graphs of the folder whose whole files are here."""
    from circuit_tracer.many.comparison import compare

    with site.jobs.alone("comparing two graphs"):
        graphs = [_graph(site, name) for name in (request.a, request.b)]
        found = compare(*graphs, target=request.target, positions=request.positions)
    return Json(found.to_json())


def _graph(site: Site, name: str) -> Graph:
    found = site.graphs.graph(name) if site.run is None else _done(site, name).graph(name)
    called = {place: label for place, label in (site.labels or {}).items() if isinstance(place, tuple)}
    found.labels = {**called, **found.labels}
    return found


def _run(site: Site) -> Run:
    """The run as it is now; NotThere if none is served."""
    from circuit_tracer.many import open_run

    if site.run is None:
        raise NotThere("this server shows a folder of graphs and no run; start it on the folder of a run")
    return open_run(site.run)


def _done(site: Site, id: str) -> Run:
    """The run, after it was seen to have a graph of a row; NotThere for one that it does not have."""
    found = _run(site)
    if id not in found.ids:
        raise NotThere(f"no graph of a row {id[:200]!r} in this run")
    return found
