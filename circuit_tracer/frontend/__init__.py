"""An import path of circuit-tracer, and nothing else (see `circuit_tracer.utils`)."""

from circuit_tracer.frontend.local_server import Server, serve

__all__ = ["Server", "serve"]
