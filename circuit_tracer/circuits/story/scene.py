"""The numbers that a story is made of: groups of a graph with their titles, shares of each other's input, and influence.

Letters: N nodes, G groups.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from circuit_tracer.circuits.naming.titles import node_numbers, titles, whereabouts
from circuit_tracer.circuits.supernodes import Grouping, Supernode
from circuit_tracer.errors import InputError
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.influence import edge_influence, node_influence
from circuit_tracer.graph.shares import group_shares

LEAST_INFLUENCE = 0.03  # of the total: groups that pass on less are not spoken of
MOST_GROUPS = 12  # groups of features that are spoken of
LEAST_SHARE = 0.05  # of a group's input: sources of less are not named
MOST_SOURCES = 3
MOST_CHAINS = 3
LEAST_DETOUR = 0.25
LEAST_CHAIN = 0.2  # of the strongest chain's weight


_SPECIAL = re.compile(r"(<[^<>\s]+>\s*)+")  # <s>, <bos>, <|begin_of_text|>


@dataclass(frozen=True)
class Link:
    """A group, by place, that gives another this share of its input."""

    source: int
    share: float


class _Way(NamedTuple):
    weight: float
    places: tuple[int, ...]


class Scene:
    """A graph with its groups, by place. Tokens and outputs that are in no group get one each. Raises InputError for a group
    of nodes that the graph does not have.
    """

    def __init__(self, graph: Graph, grouping: Grouping) -> None:
        self.graph, self.numbers = graph, node_numbers(graph)
        if missing := [node for group in grouping for node in group.members if node not in self.numbers]:
            raise InputError(
                f"the groups name node {missing[0]!r}, which this graph does not have; group its nodes anew"
            )
        grouping = _with_ends(graph, grouping)
        self.groups: tuple[Supernode, ...] = grouping.supernodes
        self.titles = titles(graph, grouping)
        self.nodes = [torch.tensor([self.numbers[node] for node in group.members]) for group in self.groups]
        first = graph.nodes.layout.target_start + self.first_target
        self.answer = next(place for place, nodes in enumerate(self.nodes) if first in nodes.tolist())

    @property
    def prompt(self) -> str:
        """The prompt without a special token in front."""
        special = _SPECIAL.match(self.graph.input_string)
        return self.graph.input_string[special.end() if special else 0 :].strip()

    @property
    def first_target(self) -> int:
        """Row of the target table of which the story is told: the first token, as `validate` takes it."""
        return next((row for row, kind in enumerate(self.graph.targets.kind) if kind == "logit"), 0)

    @cached_property
    def share_GG(self) -> Tensor:
        """(G, G) signed share of the input of each group (row) that comes from each other one (column)."""
        return group_shares(self.graph.edges, [nodes.tolist() for nodes in self.nodes]).cpu()

    @cached_property
    def influence(self) -> list[float]:
        """What each group passes on to the targets, out of it, as a share of all that reaches them."""
        graph, edges = self.graph, self.graph.edges
        weights = graph.target_weights
        flow = edge_influence(edges, node_influence(edges, graph.blocks, weights), weights).cpu()
        owner = torch.full((graph.n_nodes,), -1, dtype=torch.int64)
        for place, nodes in enumerate(self.nodes):
            owner[nodes] = place
        source, target = owner[edges.source.cpu()], owner[edges.target.cpu()]
        out = (source >= 0) & (source != target)
        passed = torch.bincount(source[out], weights=flow[out], minlength=len(self.groups))
        found: list[float] = (passed / weights.sum().cpu().clamp(min=1e-30)).tolist()
        return found

    @cached_property
    def spoken(self) -> list[int]:
        """Groups of features that the story speaks of, from the input up."""
        features = [place for place, group in enumerate(self.groups) if self._is_of_features(group)]
        ranked = sorted(features, key=lambda place: -self.influence[place])
        chosen = [place for place in ranked if self.influence[place] >= LEAST_INFLUENCE][:MOST_GROUPS]
        return sorted(chosen, key=self._height)

    def sources(self, place: int) -> list[Link]:
        """Where a group's input comes from: the largest shares first, of groups that are tokens, spoken of, or errors."""
        row = self.share_GG[place].tolist()
        known = {*self.spoken, *(other for other, group in enumerate(self.groups) if group.role in ("token", "error"))}
        links = [Link(source, share) for source, share in enumerate(row) if source in known and source != place]
        links.sort(key=lambda link: -abs(link.share))
        return [link for link in links if abs(link.share) >= LEAST_SHARE][:MOST_SOURCES]

    @cached_property
    def chains(self) -> list[list[int]]:
        """The strongest ways from tokens to the answer through groups spoken of, at most one a token, the longest first.

        Places, the token's first.
        The weight of a way is the product of its shares; those that work against the answer are left out. Of a token's ways
        with ``LEAST_DETOUR`` of its best weight the one through most groups is taken, which tells most.
        """
        tokens = [place for place, group in enumerate(self.groups) if group.role == "token"]
        best: dict[int, dict[tuple[int, int], _Way]] = {token: {(token, 0): _Way(1.0, (token,))} for token in tokens}
        for place in [*self.spoken, self.answer]:
            mine: dict[tuple[int, int], _Way] = {}  # the best by token and length
            for source, ways in best.items():
                share = float(self.share_GG[place, source])
                if share < LEAST_SHARE or (place == self.answer and source in tokens):
                    continue
                for (token, length), way in ways.items():
                    longer = _Way(way.weight * share, (*way.places, place))
                    mine[token, length + 1] = max(longer, mine.get((token, length + 1), longer))
            best[place] = mine
        chosen = []
        for token in tokens:
            ways = [way for (start, _), way in best[self.answer].items() if start == token]
            top = max((way.weight for way in ways), default=0.0)
            told = [way for way in ways if way.weight >= LEAST_DETOUR * top]
            chosen += sorted(told, key=lambda way: (-len(way.places), -way.weight))[:1]
        top = max((way.weight for way in chosen), default=0.0)
        chosen.sort(key=lambda way: (-len(way.places), -way.weight))
        return [list(way.places) for way in chosen if way.weight >= LEAST_CHAIN * top][:MOST_CHAINS]

    def where(self, place: int) -> str:
        """Such as "2 features of layer 0 at “Dallas”"."""
        return whereabouts(self.graph, self.groups[place], self.numbers)

    def ids(self, places: Sequence[int]) -> tuple[str, ...]:
        """The nodes of groups, each once."""
        return tuple(dict.fromkeys(node for place in places for node in self.groups[place].members))

    def _is_of_features(self, group: Supernode) -> bool:
        return any(self.numbers[node] < self.graph.nodes.layout.n_features for node in group.members)

    def _height(self, place: int) -> tuple[float, float, int]:
        nodes, table = self.nodes[place], self.graph.nodes
        layer, position = table.layer.cpu()[nodes].double(), table.position.cpu()[nodes].double()
        return float(layer.mean()), float(position.mean()), place


def _with_ends(graph: Graph, grouping: Grouping) -> Grouping:
    """The grouping with a group of one for each token and output that is in none: a story begins and ends there."""
    layout, ids = graph.nodes.layout, graph.nodes.ids()
    grouped = {node for group in grouping for node in group.members}
    alone = [
        Supernode("", role, (ids[number],))
        for role, places in (("token", layout.tokens), ("logit", layout.targets))
        for number in range(places.start, places.stop)
        if ids[number] not in grouped
    ]
    return Grouping((*grouping.supernodes, *alone), grouping.settings, grouping.score)
