"""The web application of a site: its routes behind the guard."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from circuit_tracer.version import package_version
from circuit_tracer.viewer.bundle import STATIC
from circuit_tracer.viewer.server.api import API
from circuit_tracer.viewer.server.guard import POLICY, Guard
from circuit_tracer.viewer.server.monitoring import MONITOR
from circuit_tracer.viewer.server.neuronpedia import NEURONPEDIA
from circuit_tracer.viewer.server.pages import FILES
from circuit_tracer.viewer.server.routing import Json, in_words
from circuit_tracer.viewer.server.runs import RUNS
from circuit_tracer.viewer.server.site import Site

SECRET_PATHS = tuple(each.path for each in NEURONPEDIA.routes)  # type: ignore[attr-defined]  # routes of a router have paths


@API.get("/api/openapi.json")
def openapi(request: Request) -> Response:
    """This document."""
    return Json(request.app.openapi())


# The page comes last, as it takes every path.
ENDPOINTS = (*API.routes, *RUNS.routes, *MONITOR.routes, *NEURONPEDIA.routes, *FILES.routes)


def make_app(site: Site) -> FastAPI:
    """The ASGI application; nothing is reached around the guard, and nothing is measured or sent anywhere."""
    guard = Middleware(
        Guard,
        token=site.token,
        secret=site.secret,
        secret_paths=SECRET_PATHS,
        policy=POLICY if site.frontend == STATIC else None,
        log=site.log,
    )
    app = FastAPI(
        title="circuit-tracing",
        version=package_version(),
        description="Graphs of one folder, and one model.",
        routes=list(ENDPOINTS),
        middleware=[guard],
        exception_handlers={HTTPException: in_words},
        separate_input_output_schemas=False,
        openapi_url=None,  # documented above; and no page that loads scripts of others
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.site = site
    return app
