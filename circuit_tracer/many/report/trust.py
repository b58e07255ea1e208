"""How far the graphs of a run can be trusted: sums, scores, and a sample of them tested by intervention."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.graph.validation import ValidationReport
from circuit_tracer.interventions import validate
from circuit_tracer.many.report.rates import Mean, Rate
from circuit_tracer.many.runs.opened import Run


@dataclass(frozen=True)
class Tested:
    """A graph tested by intervention. spearman: of its edges with what ablations do to their targets in the real model.
    necessity, sufficiency: of the kept circuit, live and with attention frozen. distrust: what speaks against it, in words.
    """

    id: str
    spearman: float | None
    necessity: float | None
    sufficiency: float | None
    distrust: list[str]


@dataclass(frozen=True)
class Trust:
    """residual: of the sum rule, the worst and the median one. tested: a random sample. sound: those of it that nothing speaks
    against.
    """

    rows: int
    worst_residual: float | None
    median_residual: float | None
    replacement: Mean
    completeness: Mean
    tested: list[Tested]
    sound: Rate


def trust(
    run: Run, model: Traceable, sample: int, seed: int, progress: Callable[[int, int], None] = lambda done, total: None
) -> Trust:
    """Of all rows that are done, and of `sample` of them by intervention."""
    done = [row for row in run.table if row["status"] == "done"]
    residuals = _numbers(done, "residual")
    tested = []
    chosen = np.random.default_rng(seed).permutation(len(run.ids))[:sample]
    for number, place in enumerate(sorted(chosen.tolist())):
        progress(number, len(chosen))
        id = run.ids[place]
        tested.append(_tested(id, validate(run.graph(id), model, random_control=False, seed=seed)))
    return Trust(
        rows=len(done),
        worst_residual=max(residuals, default=None),
        median_residual=float(np.median(residuals)) if residuals else None,
        replacement=Mean.of(_numbers(done, "replacement"), seed),
        completeness=Mean.of(_numbers(done, "completeness"), seed),
        tested=tested,
        sound=Rate.of([not each.distrust for each in tested]),
    )


def _tested(id: str, report: ValidationReport) -> Tested:
    live, held = report.graph.circuit["live"], report.graph.circuit["constrained"]
    return Tested(id, report.graph.effects["live"].edges.spearman, live.necessity, held.sufficiency, report.distrust)


def _numbers(rows: Sequence[Mapping[str, Any]], column: str) -> list[float]:
    return [row[column] for row in rows if row[column] is not None]
