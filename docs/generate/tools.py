"""The table of tools for assistants, inside of a page that is written by hand."""

from __future__ import annotations

import re
from pathlib import Path

from circuit_tracer.assistants.tools import TOOLS, Tool
from docs.generate.text import escaped, table

BEGIN, END = "<!-- tools: written by python -m docs.generate -->", "<!-- /tools -->"


def page(path: Path) -> str:
    """The page, with its table as the code says it."""
    rows = [
        [f"`{tool.name}`", escaped(tool.description), ", ".join(tool.question.model_fields), _needs(tool)]
        for tool in TOOLS
    ]
    lines = "\n".join(table(["tool", "what it does", "asks for", "needs"], rows))
    text = path.read_text(encoding="utf-8")
    return re.sub(rf"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{lines}\n{END}", text, flags=re.DOTALL)


def _needs(tool: Tool) -> str:
    return "the model; writes a graph" if tool.writes else "the model" if tool.tests else ""
