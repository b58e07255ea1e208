"""The code blocks of the documentation: where they stand, what marks them, and the commands inside."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
RUN = ("python", "bash")
SHOWN = (
    "text",
    "json",
    "jsonl",
    "yaml",
    "toml",
    "ini",
    "csv",
    "html",
    "css",
    "javascript",
    "diff",
    "dockerfile",
    "bibtex",
)
REASONS = ("needs a hub", "needs a GPU", "needs a cluster", "needs an endpoint")

FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,}) *(?P<language>[\w-]*)(?P<rest>.*)$")
TITLE = re.compile(r'title="(?P<title>[^"]*)"')
MARK = re.compile(r"^ *<!-- not run: (?P<reason>.*?) -->$")
# what CI has done before it runs anything here
INSTALLATION = re.compile(r"^(pip install|make|git clone|python3? -m venv|source|cd) ")
SNIPPET = re.compile(r'^--8<-- "(?P<path>[^"]+)"$')
HEREDOC = re.compile(r"<<-?\s*(['\"]?)(\w+)\1")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its lines without their indentation, and what stands on the line before."""

    page: Path
    line: int  # of the opening fence, from 1
    language: str
    text: str
    reason: str | None  # of a mark that says why it is not run
    title: str = ""  # "Printed": what the Python before it prints

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def snippet(self) -> Path | None:
        """The file that the site puts in its place; blocks with one are run as that file."""
        found = SNIPPET.match(self.text.strip())
        return ROOT / found["path"] if found else None

    @property
    def is_run(self) -> bool:
        return self.language in RUN and self.reason is None and self.snippet is None


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, from top to bottom."""
    lines, found, number = page.read_text(encoding="utf-8").split("\n"), [], 0
    while number < len(lines):
        opened = FENCE.match(lines[number])
        if opened:
            end = next(
                (n for n in range(number + 1, len(lines)) if lines[n].strip() == opened["fence"]),
                None,
            )
            assert end is not None, f"{page}:{number + 1}: a block that does not end"
            mark = MARK.match(lines[number - 1]) if number else None
            text = dedent("\n".join(lines[number + 1 : end]))
            title = TITLE.search(opened["rest"])
            found.append(
                Block(
                    page,
                    number + 1,
                    opened["language"],
                    text,
                    mark["reason"] if mark else None,
                    title["title"] if title else "",
                )
            )
            number = end
        number += 1
    return found


def commands(block: Block) -> Iterator[str]:
    """The lines of a shell block, those that go on in the next one joined; comments and empty lines are left out."""
    lines = iter(block.text.split("\n"))
    for line in lines:
        while line.endswith("\\") or not _closed(line):
            line = line.removesuffix("\\") + ("" if line.endswith("\\") else "\n") + next(lines).lstrip(" ")
        if ending := HEREDOC.search(line):
            for inner in lines:
                line += f"\n{inner}"
                if inner.strip() == ending[2]:
                    break
        if line.strip() and not line.lstrip().startswith("#"):
            yield line


def _closed(line: str) -> bool:
    """Whether no quotation is open at the end of a line."""
    try:
        shlex.split(line, comments=True)
    except ValueError as error:
        return "quotation" not in str(error)
    return True


def program(command: str) -> list[str] | None:
    """The words behind `circuit-tracer` in a command, of torchrun and the like too; up to a pipe or a redirection."""
    if HEREDOC.search(command):
        return None
    words = shlex.split(command, comments=True)
    for number, word in enumerate(words):
        if word == "circuit-tracer" or (word == "circuit_tracer" and words[number - 1] == "-m"):
            behind = words[number + 1 :]
            end = next(
                (n for n, each in enumerate(behind) if re.fullmatch(r"[|;&]+|[12]?>>?.*|<.*", each)), len(behind)
            )
            return behind[:end]
    return None


def not_printed(shown: Block, printed: str) -> list[str]:
    """Lines of a block of text that are no part of what was printed, however wide the terminal was; "..." ends a line early."""
    whole = " ".join(printed.split())
    lines = (" ".join(line.removesuffix("...").split()) for line in shown.text.splitlines())
    return [line for line in lines if line not in whole]
