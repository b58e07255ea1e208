"""The server: graphs of a folder, and a model to trace and test with, for this machine's browsers."""

from circuit_tracer.viewer.server.running import Server, serve

__all__ = ["Server", "serve"]
