"""Files: the page, graphs and features, and circuit-tracer's addresses for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from starlette.responses import FileResponse, HTMLResponse, Response

from circuit_tracer.errors import FileFormatError
from circuit_tracer.files import LARGEST_JSON, parse_json, read_bytes, unpack
from circuit_tracer.graph.files.read_json import require_as_written, typed_q_params
from circuit_tracer.viewer.bundle import STATIC
from circuit_tracer.viewer.server.folders import file_inside
from circuit_tracer.viewer.server.guard import COOKIE
from circuit_tracer.viewer.server.messages import SavedGraph, View
from circuit_tracer.viewer.server.problems import NotThere
from circuit_tracer.viewer.server.routing import Served, router
from circuit_tracer.viewer.server.site import Site

_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".json": "application/json"}
_IMAGES = {".svg": "image/svg+xml", ".png": "image/png", ".ico": "image/x-icon"}
OCTETS: dict[str, Any] = {"content": {"application/octet-stream": {}}}
FILES = router("files")
_START = '<script type="module" src="main.js">'


@FILES.get("/data/{path:path}")
@FILES.get("/graph_data/{path:path}", operation_id="graph_file_at_circuit_tracers_address")
def graph_file(path: str, site: Served) -> Response:
    """A JSON file of the folder of graphs as it is, such as graph-metadata.json."""
    file = file_inside(site.graphs.folder, path)
    if not file.name.endswith((".json", ".json.gz")):
        raise NotThere(f"no file {path[:200]!r} here")
    data = read_bytes(file, LARGEST_JSON)
    data = unpack(data, file.name) if file.suffix == ".gz" else data
    require_as_written(data, file.name)
    return Response(data, media_type="application/json")


@FILES.get("/features/{path:path}", response_class=Response, responses={200: OCTETS, 206: OCTETS})
def feature_file(path: str, site: Served) -> Response:
    """A file of features: a record each, an index, or a range of a file of many (206). Never with a Content-Encoding."""
    if site.features is None:
        raise NotThere("this server has no folder of features; start it with --features-dir")
    file = file_inside(site.features, path)
    return FileResponse(file, media_type="application/json" if file.suffix == ".json" else "application/octet-stream")


@FILES.post("/save_graph/{slug}")
def save_graph(slug: str, site: Served, saved: SavedGraph) -> View:
    """Save a view as circuit-tracer's page sends it; strings and nulls become the types that a file needs."""
    view = typed_q_params(saved.qParams)
    clerps = view.get("clerps")
    if isinstance(clerps, str):
        try:
            view["clerps"] = parse_json(clerps, "qParams.clerps", halves=True) if clerps else []
        except FileFormatError as error:
            raise FileFormatError(f"qParams.clerps is a string but no JSON: {error}") from error
    return View.of(site.graphs.save_view(slug, View.of(view).model_dump(mode="json")))


@FILES.get("/{path:path}", response_class=HTMLResponse)
def page(path: str, site: Served) -> Response:
    """The page, and the files that it is made of."""
    name = path or "index.html"
    file = file_inside(site.frontend, name)
    if name != "index.html":
        return FileResponse(file, media_type=_media(file))
    text = file.read_text(encoding="utf-8")
    if site.frontend == STATIC:
        text = text.replace(_START, f"{_configuration(site)}\n{_START}")
    answer = HTMLResponse(text)
    answer.set_cookie(COOKIE, site.token, httponly=True, samesite="strict")
    return answer


def _configuration(site: Site) -> str:
    """What `main.js` reads; `<` is escaped, so that nothing in it can end the element."""
    features = "features" if site.has_features else None
    value = {"graphs": "api/graphs", "graph": "api/graphs/{slug}", "features": features, "token": site.token}
    value |= {"run": "api/run"} if site.run else {}
    text = json.dumps(value).replace("<", "\\u003c")
    return f'<script type="application/json" id="viewer-config">{text}</script>'


def _media(file: Path) -> str:
    return {**_TYPES, **_IMAGES}.get(file.suffix, "application/octet-stream")
