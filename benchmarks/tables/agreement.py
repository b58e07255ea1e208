"""Tables of agreement with circuit-tracer 0.5.0 (see pages.py)."""

from __future__ import annotations

from typing import Any

from benchmarks.tables.markdown import table

COLUMNS = ["activations", "logit probabilities", "edges", "influence", "scores", "viewer link weights"]


def graphs(record: dict[str, Any]) -> list[str]:
    """One line a case, one column a quantity: the worst relative difference."""
    rows = []
    for name, case in record["cases"].items():
        checks = {line["check"]: line for line in case["table"]}
        values = [_worst(checks, column) for column in COLUMNS]
        rows.append([name, str(len(case["prompts"])), *values, _mask(checks, "node mask"), _mask(checks, "edge mask")])
    return [
        "Same model (SmolLM2-135M), transcoders and prompts, each engine in an environment of its own; the worst",
        "difference over all prompts, relative as `benchmarks/README.md` defines it. Differences that are bugs or",
        "rounding of one side are listed, with reasons, in `benchmarks/comparison/known_differences.py`.",
        "",
        *table(["transcoders", "prompts", *COLUMNS, "node mask", "edge mask"], rows),
    ]


def worst_edge(record: dict[str, Any]) -> float:
    """The largest relative difference of edges, over all cases."""
    checks = [line for case in record["cases"].values() for line in case["table"]]
    return max(line["worst"] for line in checks if line["check"] == "edges")


def _worst(checks: dict[str, Any], name: str) -> str:
    return f"{checks[name]['worst']:.0e}" if name in checks else "–"


def _mask(checks: dict[str, Any], name: str) -> str:
    line = checks.get(name)
    if line is None:
        return "–"
    return "equal" if line["worst"] == 0 else f"{line['worst']:g} differ (at the threshold)"


def interventions(record: dict[str, Any]) -> list[str]:
    """The same interventions by both engines."""
    rows = []
    for dictionary, cases in record["cases"].items():
        for name, found in cases.items():
            tokens = (
                f"{found['tokens'] - found['tokens that differ']} of {found['tokens']} equal"
                if "tokens" in found
                else "–"
            )
            moved = f"{found['logits moved by']:.2f}"
            rows.append([dictionary, name, f"{found['logits']:.0e}", moved, f"{found['activations']:.0e}", tokens])
    head = [
        "dictionary",
        "intervention",
        "logits differ by",
        "logits moved by",
        "activations differ by",
        "generated tokens",
    ]
    return table(head, rows)


def upstream(record: dict[str, Any]) -> list[str]:
    """Its public names and files, here."""
    names, files = record["names"], record["files"]
    largest = max(each["largest difference of the scores"] for each in files)
    rows = [[reason, str(count)] for reason, count in sorted(names["reasons"].items(), key=lambda each: -each[1])]
    return [
        f"Of the public names of circuit-tracer {names['of']}, {names['same']} are here with their parameters, "
        f"{names['adapted']} are adapted, {names['absent']} are absent, {len(names['missing'])} are missing without a reason.",
        f"Graph files written here were read, scored and written again by it: {sum(each['same'] for each in files)} of "
        f"{len(files)} came back the same, their scores within {largest:.0e}.",
        "",
        *table(["absent or adapted because", "names"], rows),
    ]
