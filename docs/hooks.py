"""What the site makes of its pages: marks that readers see, a place for every command, Markdown for machines."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGES = Path(__file__).parent
COMMANDS = "reference/commands/index.md"
MESSAGE = re.compile(r"<td><code>(?=[^<]{24,}</code>)")  # longer than options are
NOT_RUN = re.compile(r"^( *)<!-- not run: (needs an? [A-Za-z]+) -->$", re.MULTILINE)


def on_config(config: Any) -> Any:
    """Every command gets its place behind the page that lists them."""
    config.nav = with_commands(config.nav)
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A block that CI does not run says why, above it."""
    return NOT_RUN.sub(r'\1<p class="not-run">Not run in CI: \2.</p>\n', markdown)


def on_page_content(html: str, **_: Any) -> str:
    """What is longer than an option, in the first column of a table, may be broken."""
    return MESSAGE.sub('<td><code class="message">', html)


def on_post_build(config: Any) -> None:
    """The pages as they were written, beside the site's, where llms.txt finds them; and all of them as one file."""
    site, whole = Path(config.site_dir), []
    for path in paths(config.nav):
        shutil.copy(PAGES / path, site / path)
        whole.append(f"<!-- {path} -->\n\n{(PAGES / path).read_text(encoding='utf-8')}")
    (site / "llms-full.txt").write_text("\n\n".join(whole), encoding="utf-8")


def with_commands(nav: Any) -> Any:
    """The pages of a site, with those of the commands in the order in which their list has them."""
    if isinstance(nav, dict):
        return {title: with_commands(below) for title, below in nav.items()}
    if isinstance(nav, str):
        return nav
    if COMMANDS in nav:
        listed = re.findall(r"\(([a-z-]+)\.md\)", (PAGES / COMMANDS).read_text(encoding="utf-8"))
        return [*nav, *({name: f"reference/commands/{name}.md"} for name in listed)]
    return [with_commands(each) for each in nav]


def paths(nav: Any) -> Iterator[str]:
    """The pages of a site, in its order, each once."""
    found: dict[str, None] = {}

    def walk(part: Any) -> None:
        if isinstance(part, str):
            found[part] = None
        else:
            for each in part.values() if isinstance(part, dict) else part:
                walk(each)

    walk(nav)
    yield from found
