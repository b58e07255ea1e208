"""`families.json`: what the page of a run reads of its aggregate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TypedDict

import numpy as np

from circuit_tracer.many.aggregate.families import Families
from circuit_tracer.many.aggregate.incidence import Collected
from circuit_tracer.many.aggregate.statistics import Columns

VERSION = 1
SHOWN_FEATURES = 12  # of a family


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
    """A family of graphs. members: ids, nearest to the medoid first (which is the first). silhouette: mean of its members',
    None for one family. labels: how many members have each label. features: those with most influence, first.
    """

    family: int
    size: int
    medoid: str
    silhouette: float | None
    members: list[str]
    labels: dict[str, int]
    features: list[FamilyFeature]


class Overview(TypedDict):
    """The file. settings: how it was made. silhouettes: mean silhouette by number of families that was tried. order: ids so
    that like graphs are neighbours. families: largest first.
    """

    version: int
    settings: dict[str, object]
    n_graphs: int
    n_features: int
    n_edges: int
    silhouettes: dict[str, float]
    order: list[str]
    families: list[FamilyJson]


def overview(
    collected: Collected, families: Families, labels: Mapping[str, str], settings: dict[str, object]
) -> Overview:
    """The file's content."""
    ids = collected.ids
    return Overview(
        version=VERSION,
        settings=settings,
        n_graphs=len(ids),
        n_features=int((collected.of_features.n_graphs_with > 0).sum()),
        n_edges=int((collected.of_edges.n_graphs_with > 0).sum()),
        silhouettes={str(number): value for number, value in families.tried.items()},
        order=[ids[graph] for graph in families.order],
        families=[_family(collected, families, labels, number) for number in range(len(families))],
    )


def _family(collected: Collected, families: Families, labels: Mapping[str, str], number: int) -> FamilyJson:
    members = families.members(number)
    ids = [collected.ids[graph] for graph in members]
    mean = float(families.silhouette[members].mean())
    return FamilyJson(
        family=number,
        size=len(members),
        medoid=ids[0],
        silhouette=None if np.isnan(mean) else mean,
        members=ids,
        labels=dict(sorted(Counter(labels[id] for id in ids if id in labels).items())),
        features=_features(collected, families.family == number),
    )


def _features(collected: Collected, mine: np.ndarray) -> list[FamilyFeature]:
    found = collected.of_features
    inside = mine[found.graph]
    size, others = int(mine.sum()), int((~mine).sum())
    influence = np.bincount(found.item, weights=found.influence * inside, minlength=len(found)) / size
    count = np.bincount(found.item, weights=inside, minlength=len(found))
    rows = np.argsort(-influence, kind="stable")[:SHOWN_FEATURES]
    features = []
    for row in rows[influence[rows] > 0].tolist():
        item = collected.features[row]
        features.append(
            FamilyFeature(
                item=str(item),
                layer=item.layer,
                index=item.index,
                role=item.role,
                name=collected.names.get((item.layer, item.index), ""),
                frequency=float(count[row] / size),
                elsewhere=float((found.n_graphs_with[row] - count[row]) / others) if others else None,
                influence=float(influence[row]),
            )
        )
    return features


def family_columns(collected: Collected, families: Families, labels: Mapping[str, str]) -> Columns:
    """`families.parquet`, a row a graph."""
    graphs = np.arange(len(collected.ids))
    medoid = families.medoid[families.family]
    return {
        "id": np.array(collected.ids, dtype=object),
        "family": families.family,
        "medoid": medoid == graphs,
        "silhouette": families.silhouette,
        "distance": families.distance[graphs, medoid],
        "label": np.array([labels.get(id) for id in collected.ids], dtype=object),
    }
