"""The web application of a site: its routes behind the guard."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from circuit_tracer.viewer.bundle import STATIC
from circuit_tracer.viewer.server.api import API
from circuit_tracer.viewer.server.endpoint import Call, Endpoint, json_response, refused
from circuit_tracer.viewer.server.guard import POLICY, Guard
from circuit_tracer.viewer.server.neuronpedia import NEURONPEDIA
from circuit_tracer.viewer.server.openapi import openapi_document
from circuit_tracer.viewer.server.pages import FILES, PAGE
from circuit_tracer.viewer.server.site import Site

SECRET_PATHS = tuple(each.path for each in NEURONPEDIA)


def openapi(call: Call) -> Response:
    """The documentation of all routes."""
    return json_response(openapi_document(ENDPOINTS, SECRET_PATHS), call.headers)


ENDPOINTS = (
    Endpoint("GET", "/api/openapi.json", openapi, "This document."),
    *API,
    *NEURONPEDIA,
    *FILES,
    PAGE,
)


def make_app(site: Site) -> Starlette:
    """The ASGI application; nothing is reached around the guard."""
    guard = Middleware(
        Guard,
        token=site.token,
        secret=site.secret,
        secret_paths=SECRET_PATHS,
        policy=POLICY if site.frontend == STATIC else None,
        log=site.log,
    )
    return Starlette(
        routes=[each.route(site) for each in ENDPOINTS],
        middleware=[guard],
        exception_handlers={HTTPException: _not_answered},
    )


def _not_answered(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refused(error.detail, error.status_code)
