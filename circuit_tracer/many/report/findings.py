"""Groups of separating features, and what becomes of each.

| outcome | on rows that it was not found on |
|---|---|
| cause | it separates the labels, and steering it does what it is judged by (steering.py) more than random groups do |
| marker | it separates labels whose rows behave differently; steering it does not move them |
| separates only | it separates labels that behave alike, as far as is known |
| did not hold | it does not separate them |

The first two are findings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from circuit_tracer.many.aggregate.incidence import Collected
from circuit_tracer.many.report.rates import Rate
from circuit_tracer.many.report.separation import Separator
from circuit_tracer.many.report.steering import Members, Steered

TOGETHER = 0.5  # mean Jaccard distance of the graphs that have them, up to which features make one group

Outcome = Literal["cause", "marker", "separates only", "did not hold"]
FINDINGS: tuple[Outcome, ...] = ("cause", "marker")


@dataclass(frozen=True)
class Group:
    """Separating features of one label that occur in the same graphs, the most distant AUC first."""

    name: str
    label: str
    members: tuple[Separator, ...]

    @property
    def counted(self) -> list[Separator]:
        """Those that held on the second half, the strongest on the first half first; all, if none did."""
        return [each for each in self.members if each.holds] or list(self.members)

    @property
    def features(self) -> Members:
        """(layer, feature) of those."""
        return frozenset((each.layer, each.index) for each in self.counted)


@dataclass(frozen=True)
class Finding:
    """A group and what was measured. coverage, elsewhere: rows of the second half with and without the label that have one of
    its features. towards: how the others behave (`behaviour.towards_others`). steered: by strength, on rows of the second half
    with the label.
    """

    group: Group
    coverage: Rate
    elsewhere: Rate
    towards: int | None
    steered: list[Steered]

    @property
    def outcome(self) -> Outcome:
        """What may be said of it."""
        if not any(each.holds for each in self.group.members):
            return "did not hold"
        if any(each.steers for each in self.steered):
            return "cause"
        return "marker" if self.towards else "separates only"

    @property
    def is_finding(self) -> bool:
        """Whether there is something to say to who decides."""
        return self.outcome in FINDINGS


def grouped(collected: Collected, found: Sequence[Separator], ids: Sequence[str]) -> list[Group]:
    """Features of a label, joined where the graphs of `ids` that have them are the same ones (average linkage of 1 - Jaccard,
    cut at `TOGETHER`). Named by label and strongest member.
    """
    wanted = set(ids)
    rows = np.array([id in wanted for id in collected.ids])
    groups = []
    for label in dict.fromkeys(each.label for each in found):
        members = [each for each in found if each.label == label]
        items = np.array([each.item for each in members])
        there = collected.of_features.dense(items, np.ones(len(collected.of_features.graph)))[rows] > 0
        for number in _clusters(there.T):
            chosen = tuple(members[row] for row in number)
            groups.append(Group(f"{label}: {chosen[0].called}", label, chosen))
    return groups


def covered(
    collected: Collected, group: Group, labels: Mapping[str, str], ids: Sequence[str]
) -> tuple[Rate, Rate, list[str]]:
    """How many of the ids with the label, and without it, have a feature of the group; and those with both."""
    has = having(collected, group)
    mine = [id for id in ids if labels[id] == group.label]
    others = [id for id in ids if labels[id] != group.label]
    return Rate.of([id in has for id in mine]), Rate.of([id in has for id in others]), [id for id in mine if id in has]


def having(collected: Collected, group: Group) -> set[str]:
    """The graphs that have a feature of the group."""
    items = np.array([each.item for each in group.counted])
    there = collected.of_features.dense(items, np.ones(len(collected.of_features.graph)))
    return {collected.ids[row] for row in np.where(there > 0)[0].tolist()}


def _clusters(there_UG: np.ndarray) -> list[list[int]]:
    """Rows that are alike, each cluster in the order of its rows, by its first row."""
    if len(there_UG) == 1:
        return [[0]]
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import pdist

    number = fcluster(linkage(pdist(there_UG, "jaccard"), "average"), TOGETHER, "distance")
    return [np.where(number == each)[0].tolist() for each in dict.fromkeys(number.tolist())]
