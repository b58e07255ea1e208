"""What a request can be refused for, each with its HTTP status."""

from __future__ import annotations

from circuit_tracer.errors import CircuitTracerError


class Refusal(CircuitTracerError):
    """Bad input: 400. Subclasses name other statuses."""

    status = 400


class Forbidden(Refusal):
    """A host, an origin, a token or a secret that does not fit."""

    status = 403


class NotThere(Refusal):
    """No such graph, file or job."""

    status = 404


class Conflict(Refusal):
    """What is asked for contradicts what is there, or needs what this server does not have."""

    status = 409


class TooLarge(Refusal):
    """A body over the limit."""

    status = 413


class Busy(Refusal):
    """The model does one thing at a time."""

    status = 503
