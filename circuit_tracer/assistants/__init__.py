"""Tools for assistants: a folder of graphs and a model over the Model Context Protocol.

The protocol's own Python package is called `mcp`, so this one is not. It is imported in server.py and serving.py alone.
"""
