"""The page's own API: graphs, saving, pruning, tracing, testing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Depends, Query
from fastapi.sse import EventSourceResponse
from starlette.responses import Response

from circuit_tracer.graph.files.read_json import require_as_written
from circuit_tracer.graph.files.viewer_json import check_slug
from circuit_tracer.version import package_version
from circuit_tracer.viewer.server.columns import MOST_LINKS, MOST_NODES
from circuit_tracer.viewer.server.graphs import labels_of
from circuit_tracer.viewer.server.groups import offered_groups
from circuit_tracer.viewer.server.head_messages import (
    EdgeAnswer,
    EdgeQuestion,
    HeadTableFile,
    LinksQuestion,
    ScoreAnswer,
    ScoreQuestion,
)
from circuit_tracer.viewer.server.head_table import read_head_table
from circuit_tracer.viewer.server.jobs import Job
from circuit_tracer.viewer.server.messages import (
    GraphList,
    GroupRequest,
    InterveneRequest,
    JobReport,
    Outputs,
    PromptText,
    Pruned,
    PruneRequest,
    Session,
    SteerRequest,
    Tokens,
    TraceRequest,
    View,
)
from circuit_tracer.viewer.server.problems import Busy, Conflict
from circuit_tracer.viewer.server.routing import Json, Served, router
from circuit_tracer.viewer.server.site import Site
from circuit_tracer.viewer.server.tracing import trace_into

AS_IT_IS = 8 * 2**20  # bytes of a file that is handed out unread
GLANCE = 0.1  # seconds between looks at a job whose progress is streamed
MOST_AROUND = 100
API = router("the page's API")
Count = Annotated[int | None, Query(ge=1, le=10**9)]


async def _job(id: str, site: Served) -> Job:
    return site.jobs.find(id)


Found = Annotated[Job, Depends(_job)]


@API.get("/api/session")
def session(site: Served) -> Session:
    """What this server can do, and the token for changes."""
    facts = site.engine.facts() if site.engine else None
    return Session(version=package_version(), token=site.token, model=facts, heads=site.head_table.is_file())


@API.get("/api/heads")
def heads(site: Served) -> HeadTableFile:
    """What every head of the model does, of the file heads.json beside the features."""
    return read_head_table(site.head_table)


@API.get("/api/graphs")
def graphs(site: Served) -> GraphList:
    """The graphs of the folder."""
    entries, warning = site.graphs.entries()
    return GraphList(graphs=entries, warning=warning)


@API.get("/api/graphs/{slug}")
def graph(
    slug: str,
    site: Served,
    nodes: Annotated[Count, Query(description=f"at most so many nodes (default {MOST_NODES})")] = None,
    links: Annotated[Count, Query(description=f"at most so many links (default {MOST_LINKS})")] = None,
    around: Annotated[
        str | None,
        Query(description="node ids, separated by commas, that are to be in the part with their strongest neighbours"),
    ] = None,
) -> Response:
    """A graph as viewer JSON; of a large one its most important part, which metadata.part describes."""
    path = site.graphs.path(slug)
    asked = (nodes, links, around) != (None, None, None)
    if not asked and path.suffix == ".json" and path.stat().st_size <= AS_IT_IS:
        data = path.read_bytes()
        require_as_written(data, path.name)
        return Response(data, media_type="application/json")
    names = [name for name in (around or "").split(",") if name][:MOST_AROUND]
    return Json(site.graphs.columns(slug).part(nodes or MOST_NODES, links or MOST_LINKS, names))


@API.put("/api/graphs/{slug}/view")
def save_view(slug: str, site: Served, view: View) -> View:
    """Save pins, supernodes, places and labels in the graph's file."""
    return View.of(site.graphs.save_view(slug, view.model_dump(mode="json")))


@API.post("/api/graphs/{slug}/prune")
def prune(slug: str, site: Served, request: PruneRequest) -> Pruned:
    """Prune the whole graph, which must lie beside its JSON, at other thresholds."""
    thresholds = (request.node_threshold, request.edge_threshold)
    return Pruned(**site.graphs.prune(slug, *thresholds, site.labels, request.keep))


@API.post("/api/graphs/{slug}/group")
def group(slug: str, site: Served, _: GroupRequest) -> JobReport:
    """Group the nodes of a graph, whose whole file is here, by what they do; the file stays as it is."""
    site.graphs.opened(slug)
    document = site.graphs.document(slug)

    def work(job: Job) -> dict[str, Any]:
        job.progress("grouping")
        labels = {**(site.labels or {}), **labels_of(document)}
        return offered_groups(site.graphs.opened(slug), document, labels, site.records).model_dump(mode="json")

    return _report(site.jobs.start("group", work))


@API.post("/api/tokens")
def tokens(site: Served, request: PromptText) -> Tokens:
    """A prompt as the model reads it."""
    return site.model.tokens(request)


@API.post("/api/outputs")
def outputs(site: Served, request: PromptText) -> Outputs:
    """What the model would say after a prompt: tokens that a trace may explain; none while the model is at work."""
    engine = site.model
    try:
        with site.jobs.alone("reading what the model would say"):
            return engine.outputs(request)
    except Busy:
        return Outputs(outputs=[])


@API.post("/api/traces")
def trace(site: Served, request: TraceRequest) -> JobReport:
    """Trace a prompt; the graph is saved in the folder."""
    engine = site.model
    if request.slug is not None:
        check_slug(request.slug)
        if not request.replace and site.graphs.taken(request.slug):
            raise Conflict(f"there is a graph named {request.slug!r} already; choose another name, or replace it")
    return _report(
        site.jobs.start("trace", lambda job: trace_into(site.graphs, request, engine.trace, job, site.labels))
    )


@API.post("/api/graphs/{slug}/intervene")
def intervene(slug: str, site: Served, request: InterveneRequest) -> JobReport:
    """Change features on a graph's prompt, and see what the model then says."""
    engine, document = site.model, site.graphs.document(slug)

    def work(job: Job) -> dict[str, Any]:
        job.progress("intervening")
        return engine.intervene(request, document, _whole(site, slug)).model_dump(mode="json")

    return _report(site.jobs.start("intervene", work))


@API.post("/api/graphs/{slug}/steer")
def steer(slug: str, site: Served, request: SteerRequest) -> JobReport:
    """Continue a graph's prompt with features changed, and without."""
    engine, document = site.model, site.graphs.document(slug)

    def work(job: Job) -> dict[str, Any]:
        return engine.steer(request, document, _whole(site, slug), job).model_dump(mode="json")

    return _report(site.jobs.start("steer", work))


@API.post("/api/graphs/{slug}/explain-edge")
def explain_edge(slug: str, site: Served, asked: EdgeQuestion) -> EdgeAnswer:
    """Split a link of a graph, whose whole file is here, over the attention heads that it runs through."""
    engine = site.model
    with site.jobs.alone("explaining a link"):
        return engine.explain_edge(site.graphs.opened(slug), asked)


@API.post("/api/graphs/{slug}/explain-score")
def explain_score(slug: str, site: Served, asked: ScoreQuestion) -> ScoreAnswer:
    """Why a head looks from a token of a graph's prompt at another, over what both tokens hold."""
    engine = site.model
    with site.jobs.alone("explaining a score of attention"):
        return engine.explain_score(site.graphs.opened(slug), asked, site.labels)


@API.post("/api/graphs/{slug}/explain-links")
def explain_links(slug: str, site: Served, asked: LinksQuestion) -> JobReport:
    """Split all links of a graph's file over heads, and keep the strongest heads in it and in the whole graph's file."""
    engine, document = site.model, site.graphs.document(slug)

    def work(job: Job) -> dict[str, Any]:
        job.progress("splitting links over heads")
        graph = site.graphs.graph(slug)
        engine.explain_links(graph, document, asked.keep)
        job.progress("saving")
        return {"links": site.graphs.add_heads(slug, graph)}

    return _report(site.jobs.start("heads", work))


@API.get("/api/jobs/{id}")
def job(job: Found) -> JobReport:
    """How far a job is."""
    return _report(job)


@API.delete("/api/jobs/{id}")
def cancel(job: Found, site: Served) -> JobReport:
    """End a job where it next reports."""
    return _report(site.jobs.cancel(job.id))


@API.get("/api/jobs/{id}/events", response_class=EventSourceResponse)
async def events(job: Found, site: Served) -> AsyncIterator[JobReport]:
    """Progress as server-sent events, each a JobReport, until the job has ended."""
    last = None
    while not site.stopping.is_set():
        report = _report(job)
        if (seen := report.model_copy(update={"seconds": 0})) != last:
            yield report
            last = seen
        if report.state != "running":
            return
        await asyncio.sleep(GLANCE)


def _whole(site: Site, slug: str) -> Any:
    return site.graphs.graph(slug) if site.graphs.whole(slug) is not None else None


def _report(job: Job) -> JobReport:
    return JobReport(**job.report())
