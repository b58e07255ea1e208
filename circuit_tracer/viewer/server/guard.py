"""Who may ask for what: checked before a request reaches any other code.

- Hosts: only names of this machine's loopback interface, so that no other site's name can be pointed here (DNS rebinding).
- Changes: every method but GET, HEAD and OPTIONS needs the server's token, in a header, or in the cookie of the page
  together with an Origin; and an Origin, where a browser sends one, must be this server. Other sites can read neither.
- Neuronpedia's routes need its secret instead; without one they are closed.
- Bodies: at most `MOST_BYTES`, however they are sent.
- Answers are never cached, never guessed to be of another type, and a page may load from this server alone.
"""

from __future__ import annotations

import hmac
from collections import deque
from collections.abc import Collection, Mapping
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from circuit_tracer.viewer.server.problems import Forbidden, Refusal, TooLarge

HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
MOST_BYTES = 4 * 2**20
TOKEN_HEADER, SECRET_HEADER = "x-circuit-tracer-token", "x-secret-key"
COOKIE = "circuit-tracer-token"
READING = ("GET", "HEAD", "OPTIONS")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
ANSWER_HEADERS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "x-frame-options": "DENY",
}


class Guard:
    """ASGI middleware; see above.

    secret_paths: routes that need `secret`. policy: the Content-Security-Policy of all answers, None for a page of others.
    log: one line for each request.
    """

    def __init__(
        self,
        app: ASGIApp,
        token: str,
        secret: str | None,
        secret_paths: Collection[str],
        policy: str | None,
        log: deque[str],
    ) -> None:
        self.app, self.token, self.secret, self.secret_paths = app, token, secret, frozenset(secret_paths)
        self.headers = {**ANSWER_HEADERS, **({"content-security-policy": policy} if policy else {})}
        self.log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            return

        method = scope["method"]

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                # before it is sent: who has an answer finds it in the log
                self.log.append(f"{method} {scope['path']} {message['status']}")
                headers = MutableHeaders(scope=message)
                for name, value in self.headers.items():
                    headers[name] = value
            await send(message)

        try:
            self._check(method, scope["path"], Headers(scope=scope))
        except Refusal as refusal:
            await JSONResponse({"error": str(refusal)}, refusal.status)(scope, receive, answer)
        else:
            if method == "HEAD":  # a GET whose body the server leaves out
                scope = {**scope, "method": "GET"}
            await self.app(scope, bounded(receive), answer)

    def _check(self, method: str, path: str, headers: Headers) -> None:
        host = require_own_host(headers)
        if path in self.secret_paths:
            self._check_secret(headers)
        elif method not in READING:
            self._check_change(headers, host)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MOST_BYTES:
            raise too_large()

    def _check_secret(self, headers: Headers) -> None:
        if self.secret is None:
            raise Forbidden("Neuronpedia's protocol is off; start the server with --neuronpedia-secret")
        if not _equal(headers.get(SECRET_HEADER, ""), self.secret):
            raise Forbidden(f"the header {SECRET_HEADER} does not hold this server's secret")

    def _check_change(self, headers: Headers, host: str) -> None:
        origin = require_own_origin(headers, host)
        if _equal(headers.get(TOKEN_HEADER, ""), self.token):
            return
        if origin is None or not _equal(_cookies(headers).get(COOKIE, ""), self.token):
            raise Forbidden(f"changes need the header {TOKEN_HEADER}; GET /api/session tells the token")


def require_own_host(headers: Headers) -> str:
    """The Host of a request. Raises Forbidden unless there is one, and it is a name of this machine's loopback interface."""
    hosts = headers.getlist("host")
    if len(hosts) != 1 or host_name(hosts[0]) not in HOSTS:
        raise Forbidden(f"this server answers to {', '.join(sorted(HOSTS))}, not to {', '.join(hosts)[:100]!r}")
    return hosts[0]


def require_own_origin(headers: Headers, host: str) -> str | None:
    """The Origin of a request, if it has one. Raises Forbidden for that of another server."""
    origin = headers.get("origin")
    if origin is not None and origin != f"http://{host}":
        raise Forbidden(f"a page of {origin[:100]!r} may not change anything here")
    return origin


def host_name(host: str) -> str:
    """The name in a Host header, without its port; empty for what is no host."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # raises for what is no port
    except ValueError:
        return ""
    return "" if parts.netloc != host or "@" in host else parts.hostname or ""


def bounded(receive: Receive) -> Receive:
    """`receive` that raises TooLarge once a body is over the limit."""
    received = 0

    async def counted() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > MOST_BYTES:
            raise too_large()
        return message

    return counted


def too_large() -> TooLarge:
    """The refusal of a body over the limit."""
    return TooLarge(f"the body is larger than {MOST_BYTES // 2**20} MiB, or its length is no number")


def _equal(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())


def _cookies(headers: Headers) -> Mapping[str, str]:
    try:
        return {name: morsel.value for name, morsel in SimpleCookie(headers.get("cookie", "")).items()}
    except CookieError:
        return {}
