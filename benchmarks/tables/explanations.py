"""Tables on explanations: docs/results/explanations.md and docs/concepts/doubts.md (see pages.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.tables.markdown import table

Record = dict[str, Any]

# (table of the record, number) -> what it is called; those of ratios and counts as they are, all others in percent
WORLD = {
    ("found", "prompts"): "prompts",
    ("found", "the entity's group is found"): "a group named after the entity",
    ("found", "the answer's group is found"): "a group that says the answer",
    ("found", "purity by influence"): "purity of groups, by influence",
    ("found", "mixed features, of the pruned graph's influence"): "influence through mixed features",
    (
        "found",
        "features of several answers, of the same",
    ): "influence through features of several answers to one relation",
    ("swaps", "the answer turns, 1x"): "the entity's group swapped: the answer is the other's",
    ("swaps", "the answer turns, 2x"): "the same, at twice the other's activation",
    ("swaps", "random groups, 1x"): "random groups of its size swapped",
    ("swaps", "random groups, 2x"): "the same, at twice the activation",
    ("effects", "the entity's group", "the answer is another"): "the entity's group taken out: the answer is another",
    ("effects", "the entity's group", "the answer is another without those"): "random groups of its size taken out",
    ("effects", "measured / predicted", "median"): "effect of a group, measured ÷ predicted: median",
    ("effects", "measured / predicted", "25 %"): "the same: lower quartile",
    ("effects", "measured / predicted", "75 %"): "the same: upper quartile",
    ("effects", "measured / predicted", "of the same sign"): "measured in the direction predicted",
    ("effects", "together / sum of members", "median"): "a group at once ÷ the sum of its members: median",
    ("effects", "circuit, constrained", "clean"): "probability of the answer",
    ("effects", "circuit, constrained", "without"): "without all groups, attention frozen",
    ("effects", "circuit, constrained", "without_others"): "without as many other features",
    ("effects", "circuit, constrained", "only"): "with the groups alone",
    ("effects", "circuit, constrained", "only_others"): "with as many other features alone",
    ("effects", "circuit, live", "without"): "without all groups, everything live",
    ("effects", "circuit, live", "only"): "with the groups alone",
}
PLAIN = ("prompts", "median", "25 %", "75 %")

DOUBTS = {
    ("found", "the entity's group is found"): "a group named after the entity",
    ("found", "the answer's group is found"): "a group that says the answer",
    ("found", "purity by influence"): "purity of groups by true labels, by influence",
    ("found", "say-groups that promote what they are called"): "say-groups that promote what they are called",
    ("found", "influence from errors"): "influence from errors",
    ("found", "a warning that the dictionary does not fit"): "traces that warn that the dictionary does not fit",
    ("swaps", "the answer turns, 1x"): "the entity's group swapped: the answer is the other's",
    ("sentences", "chains"): "chains that hold",
    ("sentences", "reads"): "sentences on inputs that hold",
    ("sentences", "carries"): "sentences on what a group carries that hold",
    ("sentences", "contrast"): "contrasts that hold",
}


def world(record: Record) -> list[str]:
    """One column a kind of prompts."""
    lines = _rows(record["world"], WORLD)
    missed = record["missed"]
    return [*lines, "", f"Aims that are missed: {'; '.join(missed)}." if missed else "No aim is missed."]


def doubts(record: Record) -> list[str]:
    """One column a doubt."""
    return _rows(record["doubts"], DOUBTS)


def stories(record: Record) -> dict[str, list[str]]:
    """What the stories say in short and at the end, by doubt or prompt."""
    told = {name: each["story"] for name, each in record["doubts"].items()}
    told |= {each["prompt"]: each["story"] for each in record["wrong prompts"]}
    return {name: [line for part in _parts(story) if _in_short(part) for line in part] for name, story in told.items()}


def _parts(story: list[str]) -> list[list[str]]:
    """The title, the numbered sentences with their evidence, and what is left out, each with the lines that belong to it."""
    parts: list[list[str]] = []
    for line in story:
        goes_on = line.startswith("     ") and not line.lstrip().startswith(("What ", "Groups ", "A share "))
        if parts and goes_on:
            parts[-1].append(line)
        else:
            parts.append([line])
    return parts


def _in_short(part: list[str]) -> bool:
    first = part[0].strip()
    numbered = first.partition(". ")
    return (
        first.startswith(("Why ", "What the dictionary"))
        or numbered[0] in ("1", "2")
        or numbered[2].startswith("With ")
    )


def _rows(columns: Mapping[str, Record], names: Mapping[tuple[str, ...], str]) -> list[str]:
    rows = [[title, *(_shown(column, place) for column in columns.values())] for place, title in names.items()]
    return table(["", *columns], rows)


def _shown(column: Any, place: tuple[str, ...]) -> str:
    value = column
    for name in place:
        value = value.get(name)
        if value is None:
            return "–"
    return f"{value:.3g}" if place[-1] in PLAIN else f"{value:.1%}"
