"""Tables on neurons as nodes (see pages.py)."""

from __future__ import annotations

from typing import Any

from benchmarks.tables.markdown import table

Record = dict[str, Any]


def cost(record: Record) -> list[str]:
    """A trace of each model."""
    rows = [
        [
            "model",
            "tokens",
            "neurons",
            "nodes",
            "share of all effects",
            "edges",
            "worst residual",
            "seconds",
            "peak memory",
        ]
    ]
    for name, found in record["models"].items():
        rows.append(
            [
                name,
                str(found["tokens"]),
                f"{found['neurons']:,}",
                f"{found['nodes']:,}",
                f"{found['share_of_effect']:.1%}",
                f"{found['edges']:,}",
                f"{found['residual']:.0e}",
                f"{found['seconds']:.1f}",
                f"{found['peak_gb']:.1f} GB",
            ]
        )
    return table(rows[0], rows[1:])


def ablation(record: Record) -> list[str]:
    """Correlations of what is predicted with what is measured."""
    said = [
        "RelP is how graphs of neurons are made: each activation function is held at its ratio of output to input. A gradient",
        "takes its slope instead. Each predicts what patching and ablating does; Pearson and rank correlation of the two:",
        "",
    ]
    head = ["model", "changed", "RelP: Pearson, rank", "gradient: Pearson, rank"]
    rows = []
    for name, found in record["models"].items():
        for what, methods in found["mean"].items():
            cells = [
                f"{methods[method]['pearson']:.2f}, {methods[method]['spearman']:.2f}"
                for method in ("RelP", "gradient")
            ]
            rows.append([f"{name}, {len(found['pairs'])} pairs", what, *cells])
    return [*said, *table(head, rows)]


def agreement(record: Record) -> list[str]:
    """The share of the difference by the number of neurons."""
    methods = record["methods"]
    counts = list(methods["RelP"]["shares"])
    rows = [
        [f"ranked by {name}", *(f"{found['shares'][count]:.0%}" for count in counts)] for name, found in methods.items()
    ]
    return table(
        ["share of the difference that the first ... neurons bring back", *(f"{int(c):,}" for c in counts)], rows
    )
