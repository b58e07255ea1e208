"""Small pieces of Markdown, read and written."""

from __future__ import annotations

import re
from pathlib import Path

PAGES = Path(__file__).parents[1]
MARKED = re.compile(r"<!--.*?-->|^```.*?^```$", re.DOTALL | re.MULTILINE)


def title_of(path: Path) -> str:
    """The first heading of a page."""
    return next(line[2:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# "))


def summary_of(path: Path) -> str:
    """The first sentence of a page, without its marks and links."""
    blocks = MARKED.sub("", path.read_text(encoding="utf-8")).split("\n\n")
    prose = (" ".join(block.split()) for block in blocks)
    first = next(block for block in prose if block and not re.match(r"[#<|!*:-]|\d+\. ", block))
    return first_sentence(re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", first))


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends one."""
    return re.split(r"(?<=[^.][.?!])\s+(?=[A-Z`*\"(])|\n\n", text.strip())[0].strip()


def code(text: str) -> str:
    """As code, in a cell of a table too."""
    return f"`{text}`".replace("|", "\\|")


def escaped(text: str) -> str:
    """Plain text of help, with options and names_of_code as code and nothing that Markdown reads otherwise."""
    parts = re.split(r"(`[^`]*`|(?<![\w-])--?[a-z][\w.-]*\b|[\w./]*\w_\w[\w./]*\b)", text)
    return "".join(_plain(part) if number % 2 == 0 else f"`{part.strip('`')}`" for number, part in enumerate(parts))


def _plain(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return text.replace("*", "\\*")


def table(headings: list[str], rows: list[list[str]]) -> list[str]:
    """A table, a line a row; columns that are empty throughout are left out."""
    kept = [number for number in range(len(headings)) if any(row[number] for row in rows)]
    lines = [[headings[number] for number in kept], ["---"] * len(kept), *([row[n] for n in kept] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]
