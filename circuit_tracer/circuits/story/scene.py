"""The numbers that a story is made of: the circuit of a grouping, with titles, and what of it is spoken of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from circuit_tracer.circuits.naming.titles import titles, whereabouts
from circuit_tracer.circuits.quotient import Circuit, contract
from circuit_tracer.circuits.supernodes import Grouping
from circuit_tracer.errors import InputError
from circuit_tracer.graph.graph import Graph

LEAST_INFLUENCE = 0.05  # of the total: groups that pass on less are not spoken of
MOST_GROUPS = 12  # groups of features that are spoken of
LEAST_SHARE = 0.05  # of a group's input: sources of less are not named
MOST_SOURCES = 3
MOST_CHAINS = 3
LEAST_DETOUR = 0.25  # of the best weight of a token's ways: longer ones of so much are told
LEAST_CHAIN = 0.1  # of the strongest chain's weight

_SPECIAL = re.compile(r"(<[^<>\s]+>\s*)+")  # <s>, <bos>, <|begin_of_text|>


@dataclass(frozen=True)
class Link:
    """A group, by place, that gives another this signed share of its input."""

    source: int
    share: float


class _Way(NamedTuple):
    weight: float
    places: tuple[int, ...]


class Scene:
    """A graph with the groups of its circuit, by place in ``circuit.groups``; nodes of no group stand alone there.

    Raises InputError for a group of nodes that the graph does not have.
    """

    def __init__(self, graph: Graph, grouping: Grouping) -> None:
        self.graph = graph
        self.circuit: Circuit = contract(graph, grouping)
        self.groups = self.circuit.groups
        self.titles = titles(graph, Grouping(self.groups))
        first = graph.nodes.layout.target_start + self.first_target
        answers = [place for place, nodes in enumerate(self.circuit.nodes) if first in nodes]
        if not answers:
            raise InputError(
                f"the target {graph.targets.label[self.first_target]!r} is no node of the grouped graph, so there is nothing "
                "to tell; group its nodes anew"
            )
        self.answer = answers[0]

    @property
    def prompt(self) -> str:
        """The prompt without special tokens in front."""
        return _plain(self.graph.input_string)

    @property
    def read(self) -> str:
        """What of the prompt comes before the target: all of it, unless it is read further up."""
        last, text, end = int(self.graph.targets.position[self.first_target]), self.graph.input_string, 0
        if last == self.graph.n_pos - 1:
            return self.prompt
        for token in map(str.strip, self.graph.token_texts[: last + 1]):  # some tokenizers drop the spaces between
            found = text.find(token, end)
            end = end if found < 0 else found + len(token)
        return _plain(text[:end])

    @property
    def first_target(self) -> int:
        """Row of the target table of which the story is told: the first token, as `validate` takes it."""
        return next((row for row, kind in enumerate(self.graph.targets.kind) if kind == "logit"), 0)

    @cached_property
    def influence(self) -> list[float]:
        """What passes through each group, as a share of all that reaches the targets."""
        found: list[float] = (self.circuit.influence / self.graph.target_weights.sum().cpu()).tolist()
        return found

    @cached_property
    def spoken(self) -> list[int]:
        """Groups of features that the story speaks of, from the input up."""
        features = [place for place, nodes in enumerate(self.circuit.nodes) if min(nodes) < self._n_features]
        ranked = sorted(features, key=lambda place: -self.influence[place])
        chosen = {place for place in ranked[:MOST_GROUPS] if self.influence[place] >= LEAST_INFLUENCE}
        return [place for place in self.circuit.order if place in chosen]

    @property
    def silent(self) -> int:
        """How many groups of features are not spoken of."""
        return sum(min(nodes) < self._n_features for nodes in self.circuit.nodes) - len(self.spoken)

    def sources(self, place: int) -> list[Link]:
        """Where a group's input comes from: the largest shares first, of groups that are tokens, errors, or spoken of."""
        known = {*self.spoken, *(other for other, group in enumerate(self.groups) if group.role in ("token", "error"))}
        links = (Link(*each) for each in self.circuit.inputs(place, LEAST_SHARE))
        return [link for link in links if link.source in known][:MOST_SOURCES]

    @cached_property
    def chains(self) -> list[list[int]]:
        """The strongest ways from tokens to the answer through groups spoken of, the longest first, at most one a token.

        Places, the token's first. The weight of a way is the product of its shares; those that work against the answer are left
        out. Of a token's ways with ``LEAST_DETOUR`` of its best weight the one through most groups is taken, which tells most.
        """
        tokens = [place for place, group in enumerate(self.groups) if group.role == "token"]
        best: dict[int, dict[tuple[int, int], _Way]] = {token: {(token, 0): _Way(1.0, (token,))} for token in tokens}
        for place in [*self.spoken, self.answer]:
            reached: dict[tuple[int, int], _Way] = {}  # the best by token and length
            for source, ways in best.items():
                share = float(self.circuit.shares[place, source])
                if share < LEAST_SHARE or (place == self.answer and source in tokens):
                    continue
                for (token, length), way in ways.items():
                    longer = _Way(way.weight * share, (*way.places, place))
                    reached[token, length + 1] = max(longer, reached.get((token, length + 1), longer))
            best[place] = reached
        chosen: list[_Way] = []
        for token in tokens:
            mine = [way for (start, _), way in best[self.answer].items() if start == token]
            top = max((way.weight for way in mine), default=0.0)
            told = [way for way in mine if way.weight >= LEAST_DETOUR * top]
            chosen += sorted(told, key=lambda way: (-len(way.places), -way.weight))[:1]
        top = max((way.weight for way in chosen), default=0.0)
        chosen.sort(key=lambda way: (-len(way.places), -way.weight))
        return [list(way.places) for way in chosen if way.weight >= LEAST_CHAIN * top][:MOST_CHAINS]

    def where(self, place: int) -> str:
        """Such as "2 features of layer 0 at “Dallas”"."""
        return whereabouts(self.graph, self.groups[place])

    def ids(self, places: Sequence[int]) -> tuple[str, ...]:
        """The nodes of groups, each once."""
        return tuple(dict.fromkeys(node for place in places for node in self.groups[place].members))

    @property
    def _n_features(self) -> int:
        return self.graph.nodes.layout.n_features


def _plain(text: str) -> str:
    special = _SPECIAL.match(text)
    return text[special.end() if special else 0 :].strip()
