"""circuit-tracer's `circuit_tracer.frontend.local_server`."""

from circuit_tracer.viewer.server import Server, serve

__all__ = ["Server", "serve"]
