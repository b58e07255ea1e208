"""Writes the numbers of README.md, results/README.md and docs/ from the records in `results/`; none is typed by hand.

python -m benchmarks.readme            # after any benchmark
python -m benchmarks.readme --check    # status 1 if they do not say what the records say
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.common.places import RESULTS, ROOT
from benchmarks.tables import explanations
from benchmarks.tables.results import SECTIONS, against_peer, growth
from benchmarks.tables.training import cuda, quality, speed

README = ROOT / "README.md"
DOUBTS = ROOT / "docs" / "concepts" / "doubts.md"
BEGIN, END = "<!-- benchmarks:begin (written by benchmarks/readme.py; do not edit) -->", "<!-- benchmarks:end -->"


def section(results: Path) -> str:
    """Everything between the two marks of README.md."""
    parts = ["## Against circuit-tracer 0.5.0", ""]
    parts += _agreement(_read(results, "agreement"))
    parts += _speed(_read(results, "speed"))
    long = _read(results, "long_prompts")
    parts += [f"Longer prompts, inside {long['memory']}; *by the law*: rows × tokens × (layers + attended tokens).", ""]
    parts += [*growth(long), "", _conditions(long), ""]
    parts += _training(results)
    return "\n".join([*parts, "More, with every record: [`benchmarks/results`](benchmarks/results/README.md).", ""])


def page(results: Path) -> str:
    """All of results/README.md."""
    lines = [
        "# Measured",
        "",
        "Written by `benchmarks/readme.py` from the records beside this page; what is measured and how:",
    ]
    lines += ["`../README.md`. Agreement, speed and training stand in the project's README.", ""]
    for name, title, lines_of in SECTIONS:
        if (results / f"{name}.json").exists():
            record = _read(results, name)
            lines += [f"## {title}", "", *lines_of(record), "", _conditions(record), ""]
    return "\n".join(lines)


def doubts(results: Path) -> str:
    """The numbers and stories of docs/concepts/doubts.md."""
    record = _read(results, "doubts")
    parts = ["", *explanations.doubts(record), "", _conditions(record), ""]
    for name, story in explanations.stories(record).items():
        parts += [f"### {name[0].upper()}{name[1:]}", "", "```text", *story, "```", ""]
    return "\n".join(parts)


def _read(results: Path, name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((results / f"{name}.json").read_text())
    return record


def _training(results: Path) -> list[str]:
    """Tables on training, of the records that there are."""
    parts: list[str] = []
    for name, table in (("speed", speed), ("speed_cuda", cuda), ("quality", quality)):
        path = results / f"training_{name}.json"
        if path.exists():
            record = json.loads(path.read_text())
            parts += [*table(record), _conditions(record), ""]
    return ["## Training, against decode-clt 0.0.1", "", *parts] if parts else []


def _conditions(record: dict[str, Any]) -> str:
    machine, versions = record["machine"], record["versions"]
    where = f"{machine['cpu']}, {machine['cores']} cores, torch {versions.get('ours', versions)['torch']}"
    return f"{record['date']}, commit {record['commit']}, {where}: `{record['command']}`"


def _agreement(record: dict[str, Any]) -> list[str]:
    """One line a case, one column a quantity: the worst relative difference."""
    columns = ["activations", "logit probabilities", "edges", "influence", "scores", "viewer link weights"]
    lines = [
        "Same model (SmolLM2-135M), transcoders and prompts, each engine in an environment of its own; the worst",
        "difference over all prompts, relative as `benchmarks/README.md` defines it. Differences that are bugs or",
        "rounding of one side are listed, with reasons, in `benchmarks/comparison/known_differences.py`.",
        "",
        "| transcoders | prompts | " + " | ".join(columns) + " | node mask | edge mask |",
        "|---|---|" + "---|" * (len(columns) + 2),
    ]
    for name, case in record["cases"].items():
        checks = {line["check"]: line for line in case["table"]}
        values = [_worst(checks, column) for column in columns]
        masks = [_mask(checks, mask) for mask in ("node mask", "edge mask")]
        lines.append(f"| {name} | {len(case['prompts'])} | " + " | ".join(values + masks) + " |")
    return [*lines, "", _conditions(record), ""]


def _worst(checks: dict[str, Any], name: str) -> str:
    return f"{checks[name]['worst']:.0e}" if name in checks else "–"


def _mask(checks: dict[str, Any], name: str) -> str:
    line = checks.get(name)
    if line is None:
        return "–"
    return "equal" if line["worst"] == 0 else f"{line['worst']:g} differ (at the threshold)"


def _speed(record: dict[str, Any]) -> list[str]:
    found, rate = record["against_peer"], record["row_rate"]
    rows = [f"{line['rows']} rows: {line['rows_per_second']:.0f}/s, {line['fraction']:.2f}" for line in rate["rows"]]
    lines = [
        f"Whole `attribute()` call on a 25-token prompt, {found['rows']} features expanded, cross-layer transcoder",
        f"30×2048, float32, {found['threads']} threads, the two engines one after the other in the same run:",
        "",
        *against_peer(record),
        "",
        "Rows a second, and the arithmetic the method needs for them as a share of the machine's own matrix products",
        f"({rate['matrix_product_gflops']:.0f} GFLOP/s): {'; '.join(rows)}.",
    ]
    return [*lines, "", _conditions(record | {"versions": found["ours"]["versions"]}), ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    written = {
        README: _between(README, section(args.results)),
        DOUBTS: _between(DOUBTS, doubts(args.results)),
        args.results / "README.md": page(args.results),
    }
    for path, text in written.items():
        if args.check and (not path.exists() or path.read_text() != text):
            raise SystemExit(f"{path.name} does not say what the records say; run python -m benchmarks.readme")
        path.write_text(text)


def _between(path: Path, text: str) -> str:
    """A page with other text between its two marks."""
    before, rest = path.read_text().split(BEGIN)
    return before + BEGIN + "\n" + text + END + rest.split(END)[1]


if __name__ == "__main__":
    main()
