"""A score of attention, or a difference of scores, as a linear form in either of its two sides.

Letters: P positions, D d_model, d d_head, n keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from circuit_tracer.errors import InputError
from circuit_tracer.models.indices import from_the_front
from circuit_tracer.models.layer_scores import LayerScores

REST = "rest"


@dataclass(frozen=True)
class Contrast:
    """The score of a head's query and key, less those of other keys: sum over `keys` (n,) of `weights` (n,) times raw score.

    versus: another key, or "rest" for all others that the query sees, in proportion to their attention. Where scores are
    capped, s -> cap tanh(s / cap), each weight has the secant cap tanh(s / cap) / s in it, so that the weighted sum is that of
    the capped scores.
    """

    head: int
    query: int
    key: int
    versus: int | str | None
    keys: list[int]
    weights: Tensor

    def value(self, scores: LayerScores) -> Tensor:
        """The weighted sum of scores, (): with `versus` the difference of the logs of attention."""
        return self.weights @ scores.raw(self.head, self.query)[self.keys]

    def mass(self, scores: LayerScores) -> Tensor:
        """The sum of sizes of the products of single numbers in the value, ()."""
        products = scores.key[scores.key_head(self.head)][self.keys] * scores.query[self.head, self.query]
        return self.weights.abs() @ products.abs().sum(1) * scores.scaling

    def mixed_key(self, scores: LayerScores) -> Tensor:
        """(d,) the keys, weighted and scaled: its product with the query is the value."""
        return self.weights @ scores.key[scores.key_head(self.head)][self.keys] * scores.scaling

    def key_side(self, scores: LayerScores) -> tuple[Tensor, Tensor]:
        """Vectors (n, D) and constants (n,) that read the value off the stream at the keys, with the query as it is."""
        cotangents = self.weights[:, None] * scores.query[self.head, self.query] * scores.scaling
        return scores.keys_reads(self.head, self.keys, cotangents)

    def query_side(self, scores: LayerScores) -> tuple[Tensor, Tensor]:
        """A vector (D,) and a constant () that read it off the stream at the query, with the keys as they are."""
        vectors, constants = scores.query_reads(self.head, self.query, self.mixed_key(scores)[None])
        return vectors[0], constants[0]

    def label(self, layer: int, tokens: list[str]) -> str:
        """For people: L5H3 ' is'@7 -> ' Dallas'@4 rather than ' capital'@1."""

        def token(place: int) -> str:
            return f"{tokens[place]!r}@{place}"

        text = f"L{layer}H{self.head} {token(self.query)} -> {token(self.key)}"
        if self.versus is None:
            return text
        return f"{text} rather than {'the rest' if isinstance(self.versus, str) else token(self.versus)}"


def contrast_of(scores: LayerScores, head: int, query: int, key: int, versus: int | str | None = None) -> Contrast:
    """The score that is asked for, or the difference. Positions may be counted from the end.

    Raises InputError for a head or position that does not exist, a key that the query does not see, or a key against itself.
    """
    query, key = from_the_front(query, scores.n_pos, "query"), from_the_front(key, scores.n_pos, "key")
    scores.require(head, query, key)
    keys, shares = [key], scores.query.new_ones(1)
    if versus == REST:
        others = [each for each in range(int(scores.first[query]), query + 1) if each != key]
        if not others:
            raise InputError(f"query {query} sees no key but {key}, so there is no rest to compare it with")
        keys += others
        shares = torch.cat([shares, -torch.softmax(scores.score(head, query)[others], dim=0)])
    elif isinstance(versus, str):
        raise InputError(f"versus is {versus!r}; expected another key, or {REST!r}")
    elif versus is not None:
        versus = from_the_front(versus, scores.n_pos, "versus")
        scores.require(head, query, versus)
        if versus == key:
            raise InputError(f"versus is {versus}, the key itself; name another key, or {REST!r}")
        keys, shares = [key, versus], torch.cat([shares, -shares])
    return Contrast(head, query, key, versus, keys, shares * _secants(scores, head, query)[keys])


def _secants(scores: LayerScores, head: int, query: int) -> Tensor:
    """(P,) what the cap makes of a score, over the score."""
    raw = scores.raw(head, query)
    return torch.where((raw == 0) | raw.isinf(), 1.0, scores.score(head, query) / raw)
