"""Features that separate labels: found on one half of the rows, tested on the other.

On the first half every feature that enough graphs have is tested for every label: Mann-Whitney on its influence, which unlike
its attribution does not cancel where it speaks now for the answer, now against it; Benjamini-Hochberg over all. Those found,
`MOST` a label at most, are tested anew on the second half, which took no part in their choice, and corrected for their own
number only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from circuit_tracer.errors import InputError
from circuit_tracer.many.aggregate.incidence import Collected
from circuit_tracer.many.aggregate.labels import FEWEST_GRAPHS, benjamini_hochberg, large_enough, separating
from circuit_tracer.many.report.halves import Halves

RATE = 0.05  # false discovery rate, on either half
MOST = 40  # features a label that go to the second half, those of the most distant AUC


@dataclass(frozen=True)
class Separator:
    """A feature found on the first half. item: its place among the features collected. auc, its interval, p, q and
    frequencies: on the second half; auc_found, q_found: on the first. holds: q is at most `RATE`, on the same side of 1/2.
    """

    item: int
    layer: int
    index: int
    name: str
    label: str
    auc_found: float
    q_found: float
    auc: float
    auc_low: float
    auc_high: float
    p: float
    q: float
    frequency_with: float
    frequency_without: float

    @property
    def holds(self) -> bool:
        """Whether the second half says the same."""
        return self.q <= RATE and (self.auc > 0.5) == (self.auc_found > 0.5)

    @property
    def called(self) -> str:
        """Layer and index, and its label if it has one."""
        return f"{self.layer}/{self.index} {self.name}".rstrip()


def compared(labels: Mapping[str, str], parts: Halves) -> list[str]:
    """The labels that both halves can tell from the others. Raises InputError if there are none."""
    both = [name for name in large_enough(labels, parts.found) if name in large_enough(labels, parts.tested)]
    if labels and not both:
        counts = Counter(labels[id] for ids in parts for id in ids).most_common(5)
        shown = ", ".join(f"{name!r} ({count})" for name, count in counts)
        raise InputError(
            f"labels of the rows with a graph: {shown or 'none'}; expected two labels of at least {2 * FEWEST_GRAPHS} rows, "
            f"{FEWEST_GRAPHS} in either half (rows of one group stay in one). Name another column, or leave labels out (none)."
        )
    return both


def separators(collected: Collected, labels: Mapping[str, str], parts: Halves) -> list[Separator]:
    """Those more frequent with a label than without it, by label, the most distant AUC on the first half first.

    Raises InputError if a half has no label with two rows, and two others.
    """
    first, second = (_tested(collected, labels, ids) for ids in parts)
    more = (first["q"] <= RATE) & (first["frequency_with"] > first["frequency_without"])
    chosen: list[tuple[str, int, int]] = []  # label, item, its row in the first half
    for label in np.unique(first["label"]):
        rows = np.where(more & (first["label"] == label))[0]
        order = np.lexsort((first["items"][rows], first["p"][rows], -np.abs(first["auc"][rows] - 0.5)))
        chosen += [(str(label), int(first["items"][row]), int(row)) for row in rows[order[:MOST]]]
    place = {key: row for row, key in enumerate(zip(second["label"], second["items"].tolist(), strict=True))}
    there = [(*each, place[each[:2]]) for each in chosen if each[:2] in place]
    q = benjamini_hochberg(second["p"][[row for *_, row in there]]) if there else np.empty(0)
    return [
        _separator(
            collected, label, item, {name: first[name][one] for name in ("auc", "q")}, _at(second, two), float(q[n])
        )
        for n, (label, item, one, two) in enumerate(there)
    ]


def _tested(collected: Collected, labels: Mapping[str, str], ids: list[str]) -> dict[str, np.ndarray]:
    chosen = set(ids)
    return separating(
        collected.of_features, collected.ids, {id: labels[id] for id in labels if id in chosen}, "influence"
    )


def _at(columns: Mapping[str, np.ndarray], row: int) -> dict[str, Any]:
    return {name: column[row] for name, column in columns.items()}


def _separator(
    collected: Collected, label: str, item: int, found: Mapping[str, Any], tested: Mapping[str, Any], q: float
) -> Separator:
    feature = collected.features[item]
    named = ("auc", "auc_low", "auc_high", "p", "frequency_with", "frequency_without")
    return Separator(
        item=item,
        layer=feature.layer,
        index=feature.index,
        name=collected.names.get((feature.layer, feature.index), ""),
        label=label,
        auc_found=float(found["auc"]),
        q_found=float(found["q"]),
        q=q,
        **{name: float(tested[name]) for name in named},
    )
