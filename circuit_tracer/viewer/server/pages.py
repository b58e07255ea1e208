"""Files: the page, graphs and features, and circuit-tracer's addresses for them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from starlette.responses import FileResponse, HTMLResponse, Response

from circuit_tracer.errors import FileFormatError
from circuit_tracer.graph.files.read_json import typed_q_params
from circuit_tracer.viewer.bundle import STATIC
from circuit_tracer.viewer.server.endpoint import Call, Endpoint, bytes_response
from circuit_tracer.viewer.server.folders import file_inside
from circuit_tracer.viewer.server.guard import COOKIE
from circuit_tracer.viewer.server.messages import SavedGraph, View
from circuit_tracer.viewer.server.problems import NotThere

_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".json": "application/json"}
_IMAGES = {".svg": "image/svg+xml", ".png": "image/png", ".ico": "image/x-icon"}
_START = '<script type="module" src="main.js">'


def page(call: Call) -> Response:
    """The page, or a file of it."""
    name = call.path.get("path") or "index.html"
    file = file_inside(call.site.frontend, name)
    if name != "index.html":
        return FileResponse(file, media_type=_media(file))
    text = file.read_text(encoding="utf-8")
    if call.site.frontend == STATIC:
        text = text.replace(_START, f"{_configuration(call)}\n{_START}")
    answer = HTMLResponse(text)
    answer.set_cookie(COOKIE, call.site.token, httponly=True, samesite="strict")
    return answer


def graph_file(call: Call) -> Response:
    """A file of the folder of graphs, as it is."""
    file = file_inside(call.site.graphs.folder, call.path["path"])
    if file.suffix == ".json":
        return bytes_response(file.read_bytes(), call.headers)
    if file.name.endswith(".json.gz"):
        return bytes_response(_unpacked(file), call.headers)
    raise NotThere(f"no file {call.path['path'][:200]!r} here")


def feature_file(call: Call) -> Response:
    """A file of features: a record each, an index, or a range of a file of many. Never with a Content-Encoding."""
    if call.site.features is None:
        raise NotThere("this server has no folder of features; start it with --features-dir")
    file = file_inside(call.site.features, call.path["path"])
    return FileResponse(file, media_type="application/json" if file.suffix == ".json" else "application/octet-stream")


def save_graph(call: Call) -> View:
    """Save a view as circuit-tracer's page sends it; strings and nulls become the types that a file needs."""
    view = {name: value for name, value in typed_q_params(call.body.qParams).items() if name in View.model_fields}
    clerps = view.get("clerps")
    if isinstance(clerps, str):
        try:
            clerps = json.loads(clerps) if clerps else []
        except json.JSONDecodeError as error:
            raise FileFormatError(f"qParams.clerps is a string but no JSON: {error}") from error
        view["clerps"] = clerps
    checked = View.model_validate(view)
    return View.model_validate(_known(call.site.graphs.save_view(call.path["slug"], checked.model_dump(mode="json"))))


def _known(view: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in view.items() if name in View.model_fields}


def _configuration(call: Call) -> str:
    """What `main.js` reads; `<` is escaped, so that nothing in it can end the element."""
    features = "features" if call.site.features is not None and call.site.features.is_dir() else None
    value = {"graphs": "api/graphs", "graph": "api/graphs/{slug}", "features": features, "token": call.site.token}
    text = json.dumps(value).replace("<", "\\u003c")
    return f'<script type="application/json" id="viewer-config">{text}</script>'


def _media(file: Path) -> str:
    return {**_TYPES, **_IMAGES}.get(file.suffix, "application/octet-stream")


def _unpacked(file: Path) -> bytes:
    try:
        return gzip.decompress(file.read_bytes())
    except (OSError, EOFError) as error:
        raise FileFormatError(f"{file.name} is no gzip file, or it is cut short: {error}") from error


FILES = (
    Endpoint(
        "GET", "/data/{path:path}", graph_file, "A JSON file of the folder of graphs, such as graph-metadata.json."
    ),
    Endpoint("GET", "/graph_data/{path:path}", graph_file, "The same, under circuit-tracer's other address."),
    Endpoint(
        "GET",
        "/features/{path:path}",
        feature_file,
        "A file of features; ranges of bytes are answered with 206.",
        media="application/octet-stream",
    ),
    Endpoint(
        "POST",
        "/save_graph/{slug}",
        save_graph,
        "Save a view under circuit-tracer's address.",
        answer=View,
        body=SavedGraph,
    ),
)
# Last of all routes, as it takes every path.
PAGE = Endpoint("GET", "/{path:path}", page, "The page, and the files that it is made of.", media="text/html")
