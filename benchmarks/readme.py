"""Writes the numbers of README.md and docs/ from the records in `results/`; none is typed by hand.

python -m benchmarks.readme            # after any benchmark
python -m benchmarks.readme --check    # status 1 if they do not say what the records say
"""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from pathlib import Path
from typing import Any

from benchmarks.common.places import RESULTS, ROOT
from benchmarks.tables import agreement, explanations
from benchmarks.tables.markdown import table
from benchmarks.tables.pages import PAGES, Page

README = ROOT / "README.md"
PLACE = ROOT / "docs" / "results"
DOUBTS = ROOT / "docs" / "concepts" / "doubts.md"
BEGIN, END = "<!-- benchmarks:begin (written by benchmarks/readme.py; do not edit) -->", "<!-- benchmarks:end -->"
WRITTEN = "<!-- written by python -m benchmarks.readme from benchmarks/results; do not edit -->"


def written(results: Path) -> dict[Path, str]:
    """Every text that comes from the records."""
    pages = {PLACE / f"{page.name}.md": text(page, results) for page in PAGES}
    marked = {README: headline(results), DOUBTS: doubts(results)}
    return pages | {PLACE / "index.md": index(results)} | {path: _between(path, made) for path, made in marked.items()}


def text(page: Page, results: Path) -> str:
    """A page of docs/results: a section a record that is there."""
    lines = [f"# {page.title}", "", WRITTEN, "", page.about, ""]
    for name, title, lines_of in page.sections:
        if (results / f"{name}.json").exists():
            record = _read(results, name)
            lines += [f"## {title}", "", *lines_of(record), "", _conditions(record, name), ""]
    return _spaced(lines)


def index(results: Path) -> str:
    """docs/results/index.md: the pages, and the numbers that are asked for first."""
    rows = [[f"[{page.title}]({page.name}.md)", re.split(r"(?<=[.?]) ", page.about)[0]] for page in PAGES]
    return _spaced([
        "# Results",
        "",
        WRITTEN,
        "",
        "What was measured, on which machine, by which command. Each table names its record in `benchmarks/results` and the",
        "command that makes it again; what is measured and how: `benchmarks/README.md`.",
        "",
        headline(results),
        "",
        *table(["page", "what it answers"], rows),
    ])  # fmt: skip


def headline(results: Path) -> str:
    """Speed and agreement in a few words, with their conditions."""
    found, trained = _read(results, "speed")["against_peer"], _read(results, "training_speed")
    peer, ours = found["peer"], found["ours"]
    steps = [case["times_faster"]["trainer"] for case in trained["cases"]]
    edges = agreement.worst_edge(_read(results, "agreement"))
    slowest = f"{max(ours['all_seconds']):.1f} s the first time in a process"
    other = f"{ours['warm_seconds']:.1f} s once a process has traced" if "warm_seconds" in ours else slowest
    return textwrap.fill(
        f"A whole trace of 25 tokens of SmolLM2-135M, {found['rows']} features expanded, takes two CPU cores "
        f"**{ours['seconds']:.1f} s and {ours['peak_gb']:.1f} GB** ({other}), where circuit-tracer 0.5.0 takes {peer['seconds']:.0f} s "
        f"and {peer['peak_gb']:.0f} GB; edges agree to {edges:.0e}. A training step of a cross-layer transcoder is "
        f"{min(steps):.0f} to {max(steps):.0f} times as fast as decode-clt 0.0.1's.",
        width=125,
        break_on_hyphens=False,
    )


def doubts(results: Path) -> str:
    """The numbers and stories of docs/concepts/doubts.md."""
    record = _read(results, "doubts")
    parts = ["", *explanations.doubts(record), "", _conditions(record, "doubts"), ""]
    for name, story in explanations.stories(record).items():
        parts += [f"### {name[0].upper()}{name[1:]}", "", "```text", *story, "```", ""]
    return "\n".join(parts)


def _read(results: Path, name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((results / f"{name}.json").read_text())
    return record


def _conditions(record: dict[str, Any], name: str) -> str:
    """When, of which commit, where and by which command a record was made."""
    machine = record["machine"]
    versions = record.get("versions") or record.get("against_peer", {}).get("ours", {}).get("versions", {})
    torch = versions.get("ours", versions).get("torch")
    busy = machine.get("others_busy_cores")
    where = [machine["cpu"], f"{machine['cores']} cores", *([f"torch {torch}"] if torch else [])]
    where += [] if busy is None else [f"others busy on {busy:.1f} of them"]
    made = f"{record['date']}, commit {record['commit']}, {', '.join(where)}"
    return f"`benchmarks/results/{name}.json`, {made}: `{record['command']}`"


def _between(path: Path, made: str) -> str:
    """A page with other text between its two marks."""
    page = path.read_text()
    if BEGIN not in page or END not in page:
        raise SystemExit(f"{path.name} has no place for its numbers: put {BEGIN} and {END} where they belong")
    before, rest = page.split(BEGIN)
    return before + BEGIN + "\n" + made.strip("\n") + "\n" + END + rest.split(END)[1]


def _spaced(lines: list[str]) -> str:
    """A text that ends with one line end and has no two empty lines in a row."""
    kept = [line for number, line in enumerate(lines) if line or not number or lines[number - 1]]
    return "\n".join(kept).rstrip("\n") + "\n"


def stale(results: Path = RESULTS) -> list[str]:
    """Names of texts that do not say what the records say."""
    return [path.name for path, made in written(results).items() if not path.exists() or path.read_text() != made]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    if not args.check:
        for path, made in written(args.results).items():
            path.write_text(made)
    elif found := stale(args.results):
        raise SystemExit(f"{', '.join(found)}: not what the records say; run python -m benchmarks.readme")


if __name__ == "__main__":
    main()
