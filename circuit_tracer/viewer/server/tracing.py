"""A prompt that somebody asks for becomes a graph of the folder."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from circuit_tracer.graph.files.viewer_json import graph_document
from circuit_tracer.viewer.server.graphs import GraphFolder
from circuit_tracer.viewer.server.jobs import Job
from circuit_tracer.viewer.server.messages import TraceRequest

if TYPE_CHECKING:
    from circuit_tracer.graph.files.viewer_json import Labels
    from circuit_tracer.graph.graph import Graph


def trace_into(
    graphs: GraphFolder,
    request: TraceRequest,
    run: Callable[[TraceRequest, Job], Graph],
    job: Job,
    labels: Labels | None = None,
) -> dict[str, Any]:
    """Trace a prompt (``run``), prune the graph and save it in the folder, whole and for the page; its name and sizes."""
    found = run(request, job)
    job.progress("pruning")
    slug = request.slug or graphs.free_name(_words(found.input_string))
    exported = graph_document(
        found,
        slug,
        node_threshold=request.node_threshold,
        edge_threshold=request.edge_threshold,
        labels=labels,
        keep=graphs.chosen(slug),
    )
    job.progress("saving")
    graphs.add(slug, found, exported, request.replace)
    document = graphs.document(slug)
    return {"slug": slug, "nodes": len(document["nodes"]), "links": len(document["links"])}


def _words(prompt: str) -> str:
    """A name for a graph: the last words of its prompt."""
    words = re.findall(r"[a-z0-9]+", re.sub(r"<[^>]*>", " ", prompt.lower()))
    return "-".join(words[-6:])[:60] or "graph"
