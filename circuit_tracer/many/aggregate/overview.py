"""`families.json`: what the page of a run reads of its aggregate."""

from __future__ import annotations

from typing import TypedDict


class FamilyFeature(TypedDict):
    """A feature that a family uses. item: "3/41" (or "3/41@-1" with roles). name: its label, or "". frequency: share of the
    family's graphs that have it; elsewhere: of the others', None if there are none. influence: mean over the family.
    """

    item: str
    layer: int
    index: int
    role: str
    name: str
    frequency: float
    elsewhere: float | None
    influence: float


class FamilyJson(TypedDict):
    """A family of graphs. members: ids, nearest to the medoid first (which is the first). silhouette: mean of its members', None
    for one family. labels: how many members have each label. features: those with most influence, first.
    """

    family: int
    size: int
    medoid: str
    silhouette: float | None
    members: list[str]
    labels: dict[str, int]
    features: list[FamilyFeature]


class Overview(TypedDict):
    """The file. settings: how it was made. silhouettes: mean silhouette by number of families that was tried. order: ids so that
    like graphs are neighbours. families: largest first.
    """

    version: int
    settings: dict[str, object]
    n_graphs: int
    n_features: int
    n_edges: int
    silhouettes: dict[str, float]
    order: list[str]
    families: list[FamilyJson]
