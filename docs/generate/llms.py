"""llms.txt: every page with a line, for whoever reads the documentation by machine."""

from __future__ import annotations

from typing import Any

import yaml

from docs.generate.text import PAGES, summary_of, title_of
from docs.hooks import paths, with_commands

HEAD = """# circuit-tracing

> Attribution graphs for language models, with cross-layer transcoders: how did the model get from this prompt to its
> next token?

The distribution is called `circuit-tracing`; it imports as `circuit_tracer` and installs the command `circuit-tracer`.
The small model and dictionary that ship with it (`--demo`) need no network. Links lead to Markdown, beside this file.
"""


def index() -> str:
    """All of docs/llms.txt, in the order of the site."""
    lines = [HEAD.rstrip()]
    for title, below in (next(iter(part.items())) for part in with_commands(navigation())):
        lines += ["", f"## {title}", ""]
        lines += [f"- [{title_of(PAGES / page)}]({page}): {summary_of(PAGES / page)}" for page in paths(below)]
    return "\n".join(lines) + "\n"


def navigation() -> list[Any]:
    """`nav` of mkdocs.yml, as it stands there."""
    settings = yaml.load((PAGES.parent / "mkdocs.yml").read_text(encoding="utf-8"), yaml.BaseLoader)
    nav: list[Any] = settings["nav"]
    return nav
