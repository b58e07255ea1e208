"""What the site makes of the marks in its pages (see mkdocs.yml): a block that CI does not run says why, above it."""

from __future__ import annotations

import re
from typing import Any

NOT_RUN = re.compile(r"^([ ]*)<!-- not run: (needs an? [A-Za-z]+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Marks become small remarks."""
    return NOT_RUN.sub(r'\1<p class="not-run">Not run in CI: \2.</p>\n', markdown)
