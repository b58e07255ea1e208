"""How the server is reached: standard input and output, or HTTP of this machine's loopback interface. Nothing else."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterable
from contextlib import suppress
from typing import Any

import anyio
import uvicorn
from anyio.abc import ObjectSendStream
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.server.transport_security import TransportSecuritySettings
from mcp.shared.message import SessionMessage
from mcp_types import INVALID_REQUEST, PARSE_ERROR, ErrorData, JSONRPCError
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from circuit_tracer.errors import FileFormatError
from circuit_tracer.files import parse_json
from circuit_tracer.viewer.server.guard import MOST_BYTES, require_own_host, require_own_origin
from circuit_tracer.viewer.server.problems import Refusal
from circuit_tracer.viewer.server.running import ANSWERS_SECONDS, HOST
from circuit_tracer.viewer.server.slow_connections import ImpatientProtocol

PATH = "/mcp"
MOST_SESSIONS = 16
IDLE_SECONDS = 1800.0


def serve_stdio(server: Server) -> None:
    """Answer on standard output what comes on standard input, until that ends. What else is printed goes to standard error."""

    async def run() -> None:
        async with stdio_server() as (reading, writing), anyio.create_task_group() as group:
            passing, passed = anyio.create_memory_object_stream[SessionMessage | Exception](0)
            group.start_soon(_pass_on, reading, passing, writing)
            await server.run(passed, writing, server.create_initialization_options())
            group.cancel_scope.cancel()

    try:
        anyio.run(run)
    except* BrokenPipeError:  # whoever asked is gone
        pass


async def _pass_on(
    reading: AsyncIterable[SessionMessage | Exception],
    passing: ObjectSendStream[SessionMessage | Exception],
    writing: ObjectSendStream[SessionMessage],
) -> None:
    """Pass messages on. What is none is answered with an error: the protocol's package drops it, and a client that waits for
    its answer would wait for ever.
    """
    async with passing:
        async for message in reading:
            if not isinstance(message, ValidationError):
                await passing.send(message)
            elif (answer := unreadable(message)) is not None:
                await writing.send(SessionMessage(answer))


def unreadable(error: ValidationError) -> JSONRPCError | None:
    """What to say of a line that is no message; nothing of an empty one."""
    first, *others = error.errors(include_url=False)
    line: Any = next((each["input"] for each in (first, *others) if isinstance(each["input"], dict)), first["input"])
    if isinstance(line, str) and not line.strip():
        return None
    broken = first["type"] == "json_invalid"
    if broken:  # JSON to Python, perhaps, such as half a surrogate pair
        with suppress(FileFormatError):
            line = parse_json(line, "the line", halves=True)
    number = line.get("id") if isinstance(line, dict) else None
    said = ErrorData(
        code=PARSE_ERROR if broken else INVALID_REQUEST, message=f"this is no message: {first['msg']}"[:500]
    )
    usable = type(number) is int or (type(number) is str and number.isascii())  # half a pair could not be written
    return JSONRPCError(jsonrpc="2.0", id=number if usable else None, error=said)


def serve_http(server: Server, listening: socket.socket) -> None:
    """Answer HTTP on a socket of the loopback interface, until Ctrl-C."""
    config = uvicorn.Config(
        http_app(server),
        http=ImpatientProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=ANSWERS_SECONDS,
    )
    uvicorn.Server(config).run(sockets=[listening])


def http_app(server: Server) -> ASGIApp:
    """The ASGI application: the protocol's streamable HTTP at `/mcp`, behind the page's own checks of hosts and origins."""
    app = server.streamable_http_app(
        streamable_http_path=PATH,
        host=HOST,
        max_request_body_size=MOST_BYTES,
        max_sessions=MOST_SESSIONS,
        session_idle_timeout=IDLE_SECONDS,
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),  # by `OwnAlone`, stricter
    )
    return OwnAlone(app)


class OwnAlone:
    """ASGI middleware: requests to this machine's names alone, and none that a page of another server makes."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            try:
                require_own_origin(headers, require_own_host(headers))
            except Refusal as refusal:
                await JSONResponse({"error": str(refusal)}, refusal.status)(scope, receive, send)
                return
        await self.app(scope, receive, send)
