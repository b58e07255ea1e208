"""The page's own API: graphs, saving, pruning, tracing, testing."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from starlette.responses import Response, StreamingResponse

from circuit_tracer.graph.files.viewer_json import check_slug, graph_document
from circuit_tracer.viewer.server.columns import MOST_LINKS, MOST_NODES
from circuit_tracer.viewer.server.endpoint import Call, Endpoint, bytes_response, json_response
from circuit_tracer.viewer.server.jobs import Job
from circuit_tracer.viewer.server.messages import (
    GraphList,
    InterveneRequest,
    JobReport,
    PromptText,
    Pruned,
    PruneRequest,
    Session,
    SteerRequest,
    Tokens,
    TraceRequest,
    View,
)
from circuit_tracer.viewer.server.problems import Conflict, Refusal
from circuit_tracer.viewer.server.site import Site

AS_IT_IS = 8 * 2**20  # bytes of a file that is handed out unread
GLANCE = 0.1  # seconds between looks at a job whose progress is streamed
MOST_AROUND = 100


def session(call: Call) -> Session:
    """What this server can do, and the token for changes."""
    try:
        number = version("circuit-tracing")
    except PackageNotFoundError:
        number = "unknown"
    engine = call.site.engine
    return Session(version=number, token=call.site.token, model=engine.facts() if engine else None)


def graphs(call: Call) -> GraphList:
    """The graphs of the folder."""
    entries, warning = call.site.graphs.entries()
    return GraphList(graphs=entries, warning=warning)


def graph(call: Call) -> Response:
    """A graph, or of a large one the part that matters most."""
    folder, slug = call.site.graphs, call.path["slug"]
    path = folder.path(slug)
    if not call.query and path.suffix == ".json" and path.stat().st_size <= AS_IT_IS:
        return bytes_response(path.read_bytes(), call.headers)
    around = [name for name in call.query.get("around", "").split(",") if name][:MOST_AROUND]
    part = folder.columns(slug).part(_count(call, "nodes", MOST_NODES), _count(call, "links", MOST_LINKS), around)
    return json_response(part, call.headers)


def save_view(call: Call) -> View:
    """Save pins, supernodes, places and labels in the graph's file."""
    saved = call.site.graphs.save_view(call.path["slug"], call.body.model_dump(mode="json"))
    return View.model_validate({name: value for name, value in saved.items() if name in View.model_fields})


def prune(call: Call) -> Pruned:
    """Prune the whole graph, which must lie beside its JSON, at other thresholds."""
    site, body = call.site, call.body
    thresholds = (body.node_threshold, body.edge_threshold)
    return Pruned(**site.graphs.prune(call.path["slug"], *thresholds, site.labels, body.keep))


def tokens(call: Call) -> Tokens:
    """A prompt as the model reads it."""
    return call.site.model.tokens(call.body)


def trace(call: Call) -> JobReport:
    """Trace a prompt; the graph is saved in the folder."""
    site, request = call.site, call.body
    engine = site.model
    if request.slug is not None:
        check_slug(request.slug)
        if not request.replace and site.graphs.taken(request.slug):
            raise Conflict(f"there is a graph named {request.slug!r} already; choose another name, or replace it")
    return _started(site.jobs.start("trace", lambda job: _trace(site, request, engine.trace, job)))


def intervene(call: Call) -> JobReport:
    """Change features on a graph's prompt, and see what the model then says."""
    site, slug, request = call.site, call.path["slug"], call.body
    engine, document = site.model, site.graphs.document(slug)

    def work(job: Job) -> dict[str, Any]:
        job.progress("intervening")
        return engine.intervene(request, document, _whole(site, slug)).model_dump(mode="json")

    return _started(site.jobs.start("intervene", work))


def steer(call: Call) -> JobReport:
    """Continue a graph's prompt with features changed, and without."""
    site, slug, request = call.site, call.path["slug"], call.body
    engine, document = site.model, site.graphs.document(slug)

    def work(job: Job) -> dict[str, Any]:
        return engine.steer(request, document, _whole(site, slug), job).model_dump(mode="json")

    return _started(site.jobs.start("steer", work))


def job(call: Call) -> JobReport:
    """How far a job is."""
    return JobReport(**call.site.jobs.find(call.path["id"]).report())


def cancel(call: Call) -> JobReport:
    """End a job where it next reports."""
    return JobReport(**call.site.jobs.cancel(call.path["id"]).report())


def events(call: Call) -> Response:
    """Progress as server-sent events, each a JobReport, until the job has ended."""
    found = call.site.jobs.find(call.path["id"])
    return StreamingResponse(_events(call.site, found), media_type="text/event-stream")


async def _events(site: Site, job: Job) -> AsyncIterator[str]:
    last = ""
    while not site.stopping.is_set():
        report = job.report()
        seen = json.dumps({**report, "seconds": 0})
        if seen != last:
            yield f"data: {json.dumps(report)}\n\n"
            last = seen
        if report["state"] != "running":
            return
        await asyncio.sleep(GLANCE)


def _trace(site: Site, request: TraceRequest, run: Any, job: Job) -> dict[str, Any]:
    found = run(request, job)
    job.progress("pruning")
    slug = request.slug or site.graphs.free_name(_words(found.input_string))
    exported = graph_document(
        found,
        slug,
        node_threshold=request.node_threshold,
        edge_threshold=request.edge_threshold,
        labels=site.labels,
    )
    job.progress("saving")
    site.graphs.add(slug, found, exported, request.replace)
    document = site.graphs.document(slug)
    return {"slug": slug, "nodes": len(document["nodes"]), "links": len(document["links"])}


def _whole(site: Site, slug: str) -> Any:
    return site.graphs.graph(slug) if site.graphs.whole(slug) is not None else None


def _started(found: Job) -> JobReport:
    return JobReport(**found.report())


def _words(prompt: str) -> str:
    """A name for a graph: the last words of its prompt."""
    words = re.findall(r"[a-z0-9]+", re.sub(r"<[^>]*>", " ", prompt.lower()))
    return "-".join(words[-6:])[:60] or "graph"


def _count(call: Call, name: str, default: int) -> int:
    text = call.query.get(name)
    if text is None:
        return default
    if not text.isdecimal() or not 1 <= int(text[:12]) <= 10**9:
        raise Refusal(f"{name} is {text[:50]!r}; give a number of at least 1")
    return int(text)


API = (
    Endpoint("GET", "/api/session", session, "What this server can do, and the token for changes.", Session),
    Endpoint("GET", "/api/graphs", graphs, "The graphs of the folder.", GraphList),
    Endpoint(
        "GET",
        "/api/graphs/{slug}",
        graph,
        "A graph as viewer JSON; of a large one its most important part, which metadata.part describes.",
        query={
            "nodes": f"at most so many nodes (default {MOST_NODES})",
            "links": f"at most so many links (default {MOST_LINKS})",
            "around": "node ids, separated by commas, that are to be in the part with their strongest neighbours",
        },
    ),
    Endpoint("PUT", "/api/graphs/{slug}/view", save_view, "Save pins, supernodes, places and labels.", View, View),
    Endpoint("POST", "/api/graphs/{slug}/prune", prune, "Prune the whole graph anew.", Pruned, PruneRequest),
    Endpoint(
        "POST", "/api/graphs/{slug}/intervene", intervene, "Change features on the prompt.", JobReport, InterveneRequest
    ),
    Endpoint("POST", "/api/graphs/{slug}/steer", steer, "Generate with features changed.", JobReport, SteerRequest),
    Endpoint("POST", "/api/tokens", tokens, "A prompt as the model reads it.", Tokens, PromptText),
    Endpoint("POST", "/api/traces", trace, "Trace a prompt.", JobReport, TraceRequest),
    Endpoint("GET", "/api/jobs/{id}", job, "How far a job is.", JobReport),
    Endpoint("DELETE", "/api/jobs/{id}", cancel, "Cancel a job.", JobReport),
    Endpoint(
        "GET",
        "/api/jobs/{id}/events",
        events,
        "Progress as server-sent events, each a JobReport.",
        media="text/event-stream",
    ),
)
