"""The API's documentation, made from the endpoints themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from circuit_tracer.viewer.server.endpoint import Endpoint
from circuit_tracer.viewer.server.guard import READING, SECRET_HEADER, TOKEN_HEADER
from circuit_tracer.viewer.server.messages import Problem

_REFUSALS = {
    "400": "the request cannot be used",
    "403": "a host, origin, token or secret that does not fit",
    "404": "not there",
    "409": "contradicts what is there, or needs a model that this server does not have",
    "413": "the body is too large",
    "503": "the model is at work on something else",
}


def openapi_document(endpoints: Iterable[Endpoint], secret_paths: Iterable[str]) -> dict[str, Any]:
    """An OpenAPI 3.1 document of the endpoints."""
    listed, closed = list(endpoints), set(secret_paths)
    kinds = {kind for each in listed for kind in (each.answer, each.body) if kind is not None} | {Problem}
    inputs = [(kind, "validation") for kind in sorted(kinds, key=lambda kind: kind.__name__)]
    _, schemas = models_json_schema(inputs, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    paths: dict[str, dict[str, Any]] = {}
    for each in listed:
        path = re.sub(r":\w+}", "}", each.path)
        paths.setdefault(path, {})[each.method.lower()] = _operation(each, path, each.path in closed)
    try:
        number = version("circuit-tracing")
    except PackageNotFoundError:
        number = "unknown"
    return {
        "openapi": "3.1.0",
        "info": {"title": "circuit-tracing", "version": number, "description": "Graphs of one folder, and one model."},
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {
                "token": {"type": "apiKey", "in": "header", "name": TOKEN_HEADER},
                "secret": {"type": "apiKey", "in": "header", "name": SECRET_HEADER},
            },
        },
    }


def _operation(endpoint: Endpoint, path: str, secret: bool) -> dict[str, Any]:
    schema: dict[str, Any] = {} if endpoint.answer is None else _reference(endpoint.answer)
    operation: dict[str, Any] = {
        "operationId": endpoint.call.__name__,
        "summary": endpoint.summary,
        "parameters": [
            *(_parameter(name, "path", True) for name in re.findall(r"{(\w+)}", path)),
            *(_parameter(name, "query", False, text) for name, text in (endpoint.query or {}).items()),
        ],
        "responses": {
            "200": {"description": endpoint.summary, "content": {endpoint.media: {"schema": schema}}},
            **{status: _refusal(text) for status, text in _REFUSALS.items()},
        },
    }
    if endpoint.body is not None:
        content = {"application/json": {"schema": _reference(endpoint.body)}}
        operation["requestBody"] = {"required": True, "content": content}
    if secret or endpoint.method not in READING:
        operation["security"] = [{"secret" if secret else "token": []}]
    return operation


def _reference(kind: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _parameter(name: str, place: str, required: bool, text: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "in": place, "required": required, "schema": {"type": "string"}}
    return {**found, "description": text} if text else found


def _refusal(text: str) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": _reference(Problem)}}}
