"""Groups taken out at once: measured over predicted, beside the sum of their members and random groups; the whole circuit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.explanations.explained import Explained
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.graph.validation import CircuitTest, GroupEffect, GroupTest
from circuit_tracer.interventions import measure_groups

RANDOM_GROUPS = 3  # for each group; over all prompts they are many
MATTERS = 0.5  # of the first target's logit: groups of which the graph predicts less have no ratio worth a number
QUARTILES = (0.25, 0.5, 0.75)


def effects(cases: Sequence[Explained], model: Traceable) -> dict[str, Any]:
    """Over all groups of all prompts."""
    tests = [measure_groups(case.graph, model, case.groups, random_groups=RANDOM_GROUPS) for case in cases]
    every = [effect for test in tests for effect in test.effects]
    found = {
        "prompts whose groups are taken out": len(cases),
        "groups taken out": len(every),
        "all frozen: worst difference from the edges": max(
            _number(test.agreement["constrained"].worst) for test in tests
        ),
        "measured / predicted": _ratios(every),
        "together / sum of members": _quartiles(
            [
                (effect.measured["live"] or 0) / effect.singles
                for effect in every
                if effect.n_features > 1 and effect.singles is not None and abs(effect.singles) >= MATTERS
            ]
        ),
        "effect on the answer, Spearman": _mean([test.agreement["live"].spearman for test in tests]),
        "effect on other groups, Spearman": _mean([test.links["live"].spearman for test in tests]),
        "effect on other groups, slope": _mean([test.links["live"].slope for test in tests]),
    }
    for condition in ("live", "constrained"):
        found[f"circuit, {condition}"] = _circuit([test.circuit[condition] for test in tests])
    return found | {"the entity's group": _entity(cases, tests)}


def _ratios(every: Sequence[GroupEffect]) -> dict[str, float | int]:
    matters = [each for each in every if abs(each.predicted["paths"]) >= MATTERS and each.calibration is not None]
    signs = [each.calibration > 0 for each in matters if each.calibration is not None]
    same = {"of the same sign": round(sum(signs) / max(1, len(signs)), 4)}
    return _quartiles([each.calibration for each in matters if each.calibration is not None]) | same


def _entity(cases: Sequence[Explained], tests: Sequence[GroupTest]) -> dict[str, float | int]:
    """What taking out the largest of the entity's groups does."""
    rows = []
    for case, test in zip(cases, tests, strict=True):
        names = {group.name for group in case.entity_groups}
        own = [each for each in test.effects if each.name in names and each.measured["live"] is not None]
        if own:
            rows.append((test, min(own, key=lambda each: each.measured["live"] or 0)))
    drawn = [effect.random for _, effect in rows if effect.random is not None]
    return {
        "prompts": len(rows),
        "probability with it": _mean([test.clean for test, _ in rows]),
        "without it": _mean([effect.left["live"] for _, effect in rows]),
        "the answer is another": _mean([float(effect.top["live"] != test.top) for test, effect in rows]),
        "without random groups of its size": _mean([each.left for each in drawn]),
        "the answer is another without those": _mean([each.flips for each in drawn]),
    }


def _circuit(circuits: Sequence[CircuitTest]) -> dict[str, float]:
    """Means of probabilities; necessity in points, sufficiency as a share."""
    names = ("clean", "without", "without_others", "only", "only_others", "nothing")
    found = {name: _mean([getattr(each, name) for each in circuits]) for name in names}
    found["necessity, points"] = round(100 * (found["clean"] - found["without"]), 1)
    return found | {"sufficiency": _mean([each.sufficiency for each in circuits])}


def _quartiles(values: Sequence[float]) -> dict[str, float | int]:
    if not values:
        return {"count": 0}
    column = torch.tensor(values, dtype=torch.float64)
    low, middle, high = torch.quantile(column, torch.tensor(QUARTILES, dtype=torch.float64)).tolist()
    return {"count": len(values), "median": round(middle, 3), "25 %": round(low, 3), "75 %": round(high, 3)}


def _mean(values: Sequence[float | None]) -> float:
    there = [value for value in values if value is not None]
    return round(sum(there) / max(1, len(there)), 4)


def _number(value: float | None) -> float:
    return 0.0 if value is None else value
