"""Which features and which edges are in which graphs, sparse: made of one graph after another.

Letters: G graphs, U items, n entries (an item in a graph), C settings of pruning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from circuit_tracer.errors import CompatibilityError, InputError
from circuit_tracer.graph.dictionary_parts import DictionaryPart
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.pruning import PrunePolicy
from circuit_tracer.many.aggregate.profile import Item, Part, Positions, Profile, Setting, profile, roles_of

_END = 32  # bits of an end in the key of an edge
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Incidence:
    """Items by graphs. Entries are those that the first setting keeps, sorted by item, then by graph.

    n_graphs: G. start: (U + 1,) where each item's entries begin. graph: (n,) their graphs. influence, attribution, activation:
    (n,) float64. settings: (n,) how many settings of the C keep it. counts: (U, C) graphs that have an item, by setting; items
    that only other settings keep have no entries.
    """

    n_graphs: int
    start: np.ndarray
    graph: np.ndarray
    influence: np.ndarray
    attribution: np.ndarray
    activation: np.ndarray
    settings: np.ndarray
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.start) - 1

    @property
    def item(self) -> np.ndarray:
        """(n,) the item of each entry."""
        return np.repeat(np.arange(len(self)), np.diff(self.start))

    @property
    def n_graphs_with(self) -> np.ndarray:
        """(U,) how many graphs have each item."""
        return np.diff(self.start)

    def dense(self, items: np.ndarray, values: np.ndarray) -> np.ndarray:
        """(G, m) the values (n,) of some items (m,), 0 where they are absent."""
        counts = np.diff(self.start)[items]
        column = np.repeat(np.arange(len(items)), counts)
        where = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + self.start[items][column]
        found = np.zeros((self.n_graphs, len(items)))
        found[self.graph[where], column] = values[where]
        return found


@dataclass(frozen=True)
class Collected:
    """All graphs. ids: (G,). features: items, sorted, of the rows of of_features. edges: places of source and target in
    ``ends``, (V, 2), of the rows of of_edges. names: labels that graphs keep of features, by (layer, index).
    """

    ids: list[str]
    features: list[Item]
    of_features: Incidence
    ends: list[Item]
    edges: np.ndarray
    of_edges: Incidence
    names: dict[tuple[int, int], str]


@dataclass
class _Columns:
    """Entries as they come, a graph at a time."""

    key: list[np.ndarray] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)

    def add(self, key: np.ndarray, part: Part) -> None:
        self.key.append(key)
        self.parts.append(part)

    def incidence(self, order: Callable[[np.ndarray], np.ndarray], n_settings: int) -> tuple[np.ndarray, Incidence]:
        """(U,) keys in the order that ``order`` (their ranks) says, and their entries."""
        key = np.concatenate([np.empty(0, np.int64), *self.key])
        graph = np.repeat(np.arange(len(self.key), dtype=np.int32), [len(each) for each in self.key])
        unique, item = np.unique(key, return_inverse=True)
        ranks = order(unique)
        unique, item = unique[np.argsort(ranks)], ranks[item]
        kept = np.concatenate([np.empty((0, n_settings), bool), *(part.kept for part in self.parts)])
        counts = np.stack([np.bincount(item[column], minlength=len(unique)) for column in kept.T], 1)
        first = np.where(kept[:, 0])[0]
        first = first[np.lexsort((graph[first], item[first]))]
        start = np.concatenate([[0], np.cumsum(np.bincount(item[first], minlength=len(unique)))])
        values = {
            name: np.concatenate([np.empty(0), *(getattr(part, name) for part in self.parts)])[first]
            for name in ("influence", "attribution", "activation")
        }
        found = Incidence(len(self.key), start, graph[first], **values, settings=kept[first].sum(1), counts=counts)
        return unique, found


def collect(
    graphs: Iterable[tuple[str, Graph]],
    settings: list[Setting],
    policy: PrunePolicy = "circuit-tracer",
    positions: Positions = "pooled",
    progress: Progress | None = None,
) -> Collected:
    """Read all graphs, one in memory at a time, and keep what any setting of pruning keeps of them.

    settings: the first is the one that counts. positions: what roles there are (README.md). progress: told the number of graphs
    done. Memory: about 40 bytes for each edge that is kept, of all graphs.

    Raises InputError for no graphs or one id twice, CompatibilityError for graphs of different dictionaries.
    """
    ids: list[str] = []
    known: dict[Item, int] = {}
    features, edges = _Columns(), _Columns()
    names: dict[tuple[int, int], str] = {}
    dictionary: _Dictionary | None = None
    for id, graph in graphs:
        dictionary = _same_dictionary(dictionary, id, graph)
        found = profile(graph, roles_of(id, graph, positions), settings, policy)
        _add(found, known, features, edges)
        ids.append(id)
        names |= {key: text for key, text in graph.labels.items() if key not in names}
        if progress is not None:
            progress(len(ids))
    if not ids:
        raise InputError("there are no graphs to aggregate; trace some prompts first (circuit-tracer run)")
    if len(set(ids)) < len(ids):
        twice = next(id for number, id in enumerate(ids) if id in ids[:number])
        raise InputError(f"the id {twice!r} comes twice; graphs need ids of their own")
    return _sorted(ids, known, features, edges, names, len(settings))


@dataclass(frozen=True)
class _Dictionary:
    """What features are numbered by. attention: fingerprint of the dictionary of attention outputs, if there is one."""

    scan: object
    n_layers: int
    parts: tuple[DictionaryPart, ...]
    attention: object

    def __str__(self) -> str:
        named = f"{self.scan!r} with {self.n_layers} layers"
        behind = [f"{part.name} from {part.first} on" for part in self.parts[1:]]
        own = [] if self.attention is None else [f"attention {self.attention}"]
        return ", ".join([named, *behind, *own])


def _same_dictionary(before: _Dictionary | None, id: str, graph: Graph) -> _Dictionary:
    scan = tuple(graph.scan) if isinstance(graph.scan, list) else graph.scan
    prints = graph.provenance.get("fingerprint")
    attention = prints.get("attention") if isinstance(prints, dict) else None
    mine = _Dictionary(scan, graph.n_layers, graph.parts, attention)
    if before is not None and mine != before:
        raise CompatibilityError(
            f"the graph {id!r} is of {mine}, those before it of {before}; features of different dictionaries have nothing in "
            "common, aggregate them apart"
        )
    return mine


def _add(found: Profile, known: dict[Item, int], features: _Columns, edges: _Columns) -> None:
    number = np.array([known.setdefault(item, len(known)) for item in found.items], dtype=np.int64)
    features.add(number[found.features], found.of_features)
    edges.add((number[found.edges[:, 0]] << _END) | number[found.edges[:, 1]], found.of_edges)


def _sorted(
    ids: list[str],
    known: dict[Item, int],
    features: _Columns,
    edges: _Columns,
    names: dict[tuple[int, int], str],
    n: int,
) -> Collected:
    """Items in their own order, whatever the order in which graphs had them."""
    items = list(known)
    rank = np.empty(len(items), dtype=np.int64)
    rank[sorted(range(len(items)), key=items.__getitem__)] = np.arange(len(items))
    ends = sorted(items)

    def by_ends(key: np.ndarray) -> np.ndarray:
        order = np.lexsort((rank[key & ((1 << _END) - 1)], rank[key >> _END]))
        places = np.empty(len(key), dtype=np.int64)
        places[order] = np.arange(len(key))
        return places

    def by_item(key: np.ndarray) -> np.ndarray:
        return np.argsort(np.argsort(rank[key]))

    feature_keys, of_features = features.incidence(by_item, n)
    edge_keys, of_edges = edges.incidence(by_ends, n)
    pairs = np.stack([rank[edge_keys >> _END], rank[edge_keys & ((1 << _END) - 1)]], 1)
    return Collected(ids, [items[key] for key in feature_keys], of_features, ends, pairs, of_edges, names)
