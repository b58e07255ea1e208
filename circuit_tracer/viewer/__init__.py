"""Graphs for people: the page that shows one, as a folder of static files and as a single HTML file."""

from circuit_tracer.viewer.page import empty_page, graph_frame, graph_page, write_page

__all__ = ["empty_page", "graph_frame", "graph_page", "write_page"]
