"""An endpoint: what it is called with, what it answers, and how that becomes a route and an entry of the documentation."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from circuit_tracer.errors import CircuitTracerError, FileFormatError, ResourceError
from circuit_tracer.viewer.server.problems import Refusal
from circuit_tracer.viewer.server.site import Site

COMPRESSED_FROM = 2**20  # bytes
LEVEL = 3
PROBLEMS_SHOWN = 5
logger = logging.getLogger("circuit_tracer.server")


@dataclass(frozen=True)
class Call:
    """One request, read and checked. body: of the endpoint's type, None if it has none."""

    site: Site
    path: Mapping[str, str]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any


@dataclass(frozen=True)
class Endpoint:
    """A method and a path, and the function that answers: with a model, which must be of type `answer`, or a response.

    query: names and what they mean. media: what is answered if not JSON.
    """

    method: str
    path: str
    call: Callable[[Call], BaseModel | Response]
    summary: str
    answer: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    query: Mapping[str, str] | None = None
    media: str = "application/json"

    def route(self, site: Site) -> Route:
        """The route for a server."""

        async def respond(request: Request) -> Response:
            try:
                body = None if self.body is None else _read(self.body, await request.body())
                call = Call(site, request.path_params, request.query_params, request.headers, body)
                found = await run_in_threadpool(self._answer, call)
            except ClientDisconnect:
                return Response(status_code=400)
            except Refusal as error:
                return refused(str(error), error.status)
            except ResourceError as error:
                return refused(str(error), 507)
            except CircuitTracerError as error:
                return refused(str(error), 400)
            except Exception as error:  # whatever it is, the page gets words
                logger.exception("%s %s failed", self.method, self.path)
                return refused(f"{type(error).__name__}: {error} (a failure of ours)", 500)
            return found

        return Route(self.path, respond, methods=[self.method])

    def _answer(self, call: Call) -> Response:
        found = self.call(call)
        return found if isinstance(found, Response) else json_response(found.model_dump(mode="json"), call.headers)


def refused(message: str, status: int) -> Response:
    """A problem in words."""
    return JSONResponse({"error": message}, status)


def json_response(value: Any, headers: Mapping[str, str]) -> Response:
    """JSON, compressed where it is large and the browser takes that."""
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    except ValueError as error:
        raise FileFormatError(
            f"a file here holds a number that is not finite, which JSON cannot carry: {error}"
        ) from error
    try:
        data = text.encode()
    except UnicodeEncodeError:  # halves of surrogate pairs, which files can hold as escapes, stay escapes
        data = json.dumps(value, separators=(",", ":")).encode()
    return bytes_response(data, headers)


def bytes_response(data: bytes, headers: Mapping[str, str], media: str = "application/json") -> Response:
    """JSON that is bytes already, compressed where it is large and the browser takes that."""
    if len(data) < COMPRESSED_FROM or "gzip" not in headers.get("accept-encoding", ""):
        return Response(data, media_type=media)
    return Response(
        gzip.compress(data, LEVEL), media_type=media, headers={"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
    )


def _read(kind: type[BaseModel], data: bytes) -> BaseModel:
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        shown = "; ".join(
            f"{'.'.join(str(part) for part in each['loc']) or 'the body'}: {each['msg']}"
            for each in found[:PROBLEMS_SHOWN]
        )
        more = f"; and {len(found) - PROBLEMS_SHOWN} more" if len(found) > PROBLEMS_SHOWN else ""
        raise Refusal(f"this request cannot be used: {shown}{more}") from error
