"""What all routes share: a body is JSON, a problem is words, a large answer is packed; and what opens a route.

FastAPI reads, checks and documents requests and answers. Ours are the words of problems, and JSON of numbers that are not
finite (refused, where FastAPI would write null) and of halves of surrogate pairs (escaped, where it fails).
"""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Security
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from circuit_tracer.errors import CircuitTracerError, FileFormatError, ResourceError
from circuit_tracer.files import parse_json
from circuit_tracer.viewer.server.guard import READING, SECRET_HEADER, TOKEN_HEADER
from circuit_tracer.viewer.server.problems import Refusal
from circuit_tracer.viewer.server.site import Site

COMPRESSED_FROM = 2**20  # bytes
LEVEL = 3
PROBLEMS_SHOWN = 5
PROBLEM = {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
_STATUSES: dict[int | str, str] = {
    400: "the request cannot be used",
    403: "a host, origin, token or secret that does not fit",
    404: "not there",
    409: "contradicts what is there, or needs a model that this server does not have",
    413: "the body is too large",
    500: "a failure of ours",
    503: "the model is at work on something else",
    507: "out of memory, or of another resource of this machine",
    "default": "any other refusal",  # without it FastAPI documents a 422 that is never answered
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": PROBLEM} for status, text in _STATUSES.items()
}
# For the documentation alone: the guard has checked them before a route is reached.
TOKEN = Security(APIKeyHeader(name=TOKEN_HEADER, scheme_name="token", auto_error=False))
SECRET = Security(APIKeyHeader(name=SECRET_HEADER, scheme_name="secret", auto_error=False))
logger = logging.getLogger("circuit_tracer.server")


async def _site(request: Request) -> Site:
    found: Site = request.app.state.site
    return found


Served = Annotated[Site, Depends(_site)]


class Json(JSONResponse):
    """An answer of finite numbers and of any text."""

    def render(self, content: Any) -> bytes:
        """The bytes; FileFormatError for a number that JSON cannot carry."""
        try:
            return json.dumps(content, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
        except UnicodeEncodeError:  # halves of surrogate pairs, which files can hold as escapes, stay escapes
            return json.dumps(content, separators=(",", ":")).encode()
        except ValueError as error:
            raise FileFormatError(
                f"a file here holds a number that is not finite, which JSON cannot carry: {error}"
            ) from error


class Route(APIRoute):
    """A route that is documented by its function's docstring, and answers whatever happens in words."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        summary, _, description = (endpoint.__doc__ or "").partition("\n\n")
        options["summary"] = options["response_description"] = summary
        options["operation_id"] = options["operation_id"] or endpoint.__name__
        options["responses"] = {**REFUSALS, **(options["responses"] or {})}
        options["openapi_extra"] = {"parameters": []}  # also where there are none
        if not options["dependencies"] and not set(options["methods"]) <= set(READING):
            options["dependencies"] = [TOKEN]
        super().__init__(path, endpoint, **options)
        self.description = description

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers a request."""
        answer = super().get_route_handler()

        async def respond(request: Request) -> Response:
            headers = [each for each in request.scope["headers"] if each[0] != b"content-type"]
            read = Request({**request.scope, "headers": headers}, request.receive)  # JSON, whatever its header says
            try:
                body = await read.body()  # kept for FastAPI, which would hide what goes wrong here
                if body:
                    parse_json(body, "the body", halves=True)  # under limits that FastAPI does not have
                found = await answer(read)
            except ClientDisconnect:
                return Response(status_code=400)
            except Exception as error:  # whatever it is, the page gets words
                return await in_words(request, error)
            return await _packed(found, request)

        return respond


def router(tag: str, **options: Any) -> APIRouter:
    """An empty set of routes, under one heading of the documentation."""
    return APIRouter(tags=[tag], route_class=Route, default_response_class=Json, strict_content_type=False, **options)


async def in_words(request: Request, error: Exception) -> Response:
    """The answer for what went wrong."""
    status, message = 400, str(error)
    if isinstance(error, RequestValidationError):
        message = f"this request cannot be used: {_problems(error)}"
    elif isinstance(error, HTTPException):  # no such route, or a body that cannot even be parsed
        status, message = error.status_code, error.detail
        if status == 400:
            message = f"this request cannot be used: {message}"
    elif isinstance(error, Refusal):
        status = error.status
    elif isinstance(error, ResourceError):
        status = 507
    elif not isinstance(error, CircuitTracerError):
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        status, message = 500, f"{type(error).__name__}: {error} (a failure of ours)"
    return JSONResponse({"error": message}, status)


def _problems(error: RequestValidationError) -> str:
    """What is wrong with a request, each with its place."""
    found = error.errors()
    shown = "; ".join(f"{_place(each)}: {each['msg']}" for each in found[:PROBLEMS_SHOWN])
    return shown + (f"; and {len(found) - PROBLEMS_SHOWN} more" if len(found) > PROBLEMS_SHOWN else "")


def _place(problem: dict[str, Any]) -> str:
    _, *parts = problem["loc"]  # behind body, query or path
    return ".".join(str(part) for part in parts) or "the body"


async def _packed(answer: Response, request: Request) -> Response:
    """Large JSON compressed, if the browser takes that; files and streams as they are."""
    data = getattr(answer, "body", b"")
    if (
        len(data) < COMPRESSED_FROM
        or answer.media_type != "application/json"
        or "gzip" not in request.headers.get("accept-encoding", "")
    ):
        return answer
    packed = await run_in_threadpool(gzip.compress, data, LEVEL)
    return Response(
        packed, media_type=answer.media_type, headers={"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
    )
