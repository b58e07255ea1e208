"""Writes the README's numbers from the records in `results/`; no number is typed by hand.

python benchmarks/readme.py            # after agreement.py, speed.py, training_speed.py and training_quality.py
python benchmarks/readme.py --check    # status 1 if the README does not say what the records say
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from training_tables import cuda, quality, speed

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
BEGIN, END = "<!-- benchmarks:begin (written by benchmarks/readme.py; do not edit) -->", "<!-- benchmarks:end -->"


def section(results: Path) -> str:
    """Everything between the two marks."""
    parts = ["## Against circuit-tracer 0.5.0", ""]
    parts += _agreement(json.loads((results / "agreement.json").read_text()))
    parts += _speed(json.loads((results / "speed.json").read_text()))
    return "\n".join(parts + _training(results))


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
    machine, torch = record["machine"], record["versions"]["ours"]["torch"]
    where = f"{machine['cpu']}, {machine['cores']} cores, torch {torch}"
    return f"{record['date']}, commit {record['commit']}, {where}: `{record['command']}`"


def _agreement(record: dict[str, Any]) -> list[str]:
    """One line a case, one column a quantity: the worst relative difference."""
    columns = ["activations", "logit probabilities", "edges", "influence", "scores", "viewer link weights"]
    lines = [
        "Same model (SmolLM2-135M), transcoders and prompts, each engine in an environment of its own; the worst",
        "difference over all prompts, relative as `benchmarks/README.md` defines it. Differences that are bugs or",
        "rounding of one side are listed, with reasons, in `benchmarks/known_differences.py`.",
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
    ours, peer = found["ours"], found["peer"]
    rows = [f"{line['rows']} rows: {line['rows_per_second']:.0f}/s, {line['fraction']:.2f}" for line in rate["rows"]]
    lines = [
        f"Whole `attribute()` call on a 25-token prompt, {found['rows']} features expanded, cross-layer transcoder",
        f"30×2048, float32, {found['threads']} threads, the two engines one after the other in the same run:",
        "",
        "| | seconds | peak memory |",
        "|---|---|---|",
        f"| circuit-tracer 0.5.0 | {peer['seconds']:.1f} | {peer['peak_gb']:.1f} GB |",
        f"| this engine | {ours['seconds']:.2f} | {ours['peak_gb']:.1f} GB |",
        f"| ratio | **{found['times_faster']:.0f}×** | {found['times_less_memory']:.1f}× |",
        "",
        "Rows a second, and the arithmetic the method needs for them as a share of the machine's own matrix products",
        f"({rate['matrix_product_gflops']:.0f} GFLOP/s): {'; '.join(rows)}.",
        "",
        "| tokens | active features | expanded | seconds | peak memory |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {line['tokens']} | {line['active']} | {line['expanded']} | {line['seconds']:.1f} | {line['peak_gb']:.1f} GB |"
        for line in record["growth"]
    ]
    return [*lines, "", _conditions(record | {"versions": {"ours": ours["versions"]}}), ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    args = parser.parse_args()
    text = README.read_text()
    before, rest = text.split(BEGIN)
    written = before + BEGIN + "\n" + section(args.results) + END + rest.split(END)[1]
    if args.check and written != text:
        raise SystemExit("README.md does not say what benchmarks/results/ says; run python benchmarks/readme.py")
    README.write_text(written)


if __name__ == "__main__":
    main()
