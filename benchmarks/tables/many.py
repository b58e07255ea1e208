"""The tables on many prompts, of `results/README.md` (see ../readme.py)."""

from __future__ import annotations

from typing import Any

from benchmarks.tables.markdown import table

ORDERS = {"difference": "by edges onto the target", "carried": "along all paths"}


def moved_city(record: dict[str, Any]) -> list[str]:
    """In how many fine-tunes the comparison of graphs finds what has moved."""
    found, top = record["summary"], record["settings"]["top"]
    count = found["fine_tunes"]
    rows = []
    for whose, name in (("found", "the city and its two states"), ("two_others", "two other states, drawn")):
        for order, title in ORDERS.items():
            one = found[whose][order]
            rows.append([name, title, f"{one['first']} of {count}", f"{one['any']} of {count}", f"{one['share']:.0%}"])
    return [
        f"{count} fine-tunes in which a city lies in another state, {found['learnt']} of which answer so; "
        f"{found['conclusive']} comparisons are conclusive (errors carry {found['unexplained']:.0%} of what changes, mean); "
        f"the largest gap of an account is {found['largest_gap']:.0e}.",
        "",
        *table(
            ["features called after", "nodes ranked", "first", f"among the first {top}", f"share of the {top}"], rows
        ),
    ]
