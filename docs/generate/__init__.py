"""Pages that are written from the code: the commands with their options, what `--json` prints, the tools
for assistants, the architectures that are read, and llms.txt.

python -m docs.generate            # after a change of a command, an option, an architecture, or a page's first sentence
python -m docs.generate --check    # status 1 if they do not say what the code says

The pages are checked in, so that they can be read where no site is built, and a change of an option is seen in review. The code
stands beside the pages, and not in the package, which needs none of it.
"""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).parents[1]


def pages() -> dict[Path, str]:
    """What is written where."""
    from docs.generate import architectures, commands, json_lines, llms, tools

    written = {DOCS / "reference" / "commands" / name: text for name, text in commands.pages().items()}
    reference = DOCS / "reference"
    written |= {reference / "json.md": json_lines.page()}
    by_hand = {reference / "mcp.md": tools, reference / "reads.md": architectures}  # with tables from the code
    written |= {path: within.page(path) for path, within in by_hand.items()}
    return written | {DOCS / "llms.txt": llms.index()}


def stale() -> list[str]:
    """What would be written otherwise, or removed."""
    wanted = pages()
    there = set((DOCS / "reference" / "commands").glob("*.md"))
    changed = {path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text}
    return sorted(path.relative_to(DOCS).as_posix() for path in changed | there - set(wanted))


def write() -> list[str]:
    """Write what is stale, and say what that was; llms.txt is made of pages that are written before it."""
    found: list[str] = []
    while changed := stale():
        wanted = pages()
        for path in (DOCS / name for name in changed):
            if path in wanted:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(wanted[path], encoding="utf-8")
            else:
                path.unlink()
        found += changed
    return list(dict.fromkeys(found))
