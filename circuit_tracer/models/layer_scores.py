"""Scores of one layer's attention on one prompt, and the queries and keys behind them as affine maps of the stream.

`models/queries_keys.py` makes these. Letters: P positions, D d_model, H heads, K key/value heads, d d_head, n cotangents.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from circuit_tracer.errors import InputError
from circuit_tracer.models.followed import Leaf
from circuit_tracer.models.indices import require_head, require_position
from circuit_tracer.models.norms import FrozenNorm
from circuit_tracer.models.surroundings import plain_torch

BYTES_IN_FLIGHT = 256 * 2**20  # of gradients that are made at once
TINY = 1e-30  # all weights may be zero


@dataclass(frozen=True)
class FrozenReads:
    """Queries, or keys, of one layer as affine maps of the stream that enters it, position by position."""

    what: str
    made: Tensor  # (H or K, P, d) with autograd's graph of one attention module, down to the leaves
    at_zero: Tensor  # (H or K, P, d) of an input of zeros, norms frozen
    leaves: list[Leaf]  # what enters the module, and what its projections make of that
    norm: FrozenNorm | None  # between the stream and the attention module

    @plain_torch()
    def read(self, head: int, position: int, cotangents_nd: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (n, D) and constants (n,): cotangent . made[head, position] = vector . x[position] + constant."""
        cotangents = self._checked(cotangents_nd)
        per_row = self.made[0].numel() * len(self.made) * self.made.element_size()
        with torch.enable_grad():
            made = self.made[head, position]
            chunks = cotangents.split(max(1, BYTES_IN_FLIGHT // per_row))
            vectors = torch.cat([self._gradients(made, each, position) for each in chunks])
        return self._through_norm(vectors, position, cotangents @ self.at_zero[head, position])

    @plain_torch()
    def read_each(self, head: int, positions: list[int], cotangents_nd: Tensor) -> tuple[Tensor, Tensor]:
        """The same of one cotangent for each of n positions, all different."""
        cotangents = self._checked(cotangents_nd)
        with torch.enable_grad():
            vectors = self._gradients(self.made[head, positions], cotangents[None], positions)[0]
        constants = (cotangents * self.at_zero[head, positions]).sum(1)
        return self._through_norm(vectors, torch.tensor(positions), constants)

    def residuals(self, stream_PD: Tensor) -> float:
        """How far positions are from vector . x + constant of their own x, relative to its terms; cotangents are random."""
        generator = torch.Generator().manual_seed(0)
        cotangents = torch.randn(self.made.shape, generator=generator, dtype=torch.float64).to(self.made)
        every = torch.arange(len(stream_PD))
        vectors = self._gradients(self.made, cotangents[None], every)[0]
        vectors, constants = self._through_norm(vectors, every, (cotangents * self.at_zero).sum((0, 2)))
        terms, expected = vectors * stream_PD, (cotangents * self.made.detach()).sum((0, 2))
        sizes = (terms.abs().sum(1) + constants.abs()).clamp_min(TINY)
        return float(((terms.sum(1) + constants - expected).abs() / sizes).max())

    def _gradients(self, made: Tensor, cotangents: Tensor, position: int | list[int] | Tensor) -> Tensor:
        """Rows (n, D) of gradients by what enters the module, (n, m, D) of m positions; cotangents: n of the shape of made."""
        several = len(cotangents) > 1  # one is cheaper without vmap
        found = torch.autograd.grad(
            made,
            [leaf.value for leaf in self.leaves],
            cotangents if several else cotangents[0],
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=several,
        )
        total = self.at_zero.new_zeros(())
        for leaf, gradient in zip(self.leaves, found, strict=True):
            if gradient is not None:
                rows = (gradient if several else gradient[None])[:, 0, position]
                total = total + (rows if leaf.weight is None else rows @ leaf.weight)
        return total

    def _through_norm(self, vectors_nD: Tensor, position: int | Tensor, constants_n: Tensor) -> tuple[Tensor, Tensor]:
        """From what enters the module to the stream."""
        if self.norm is None:
            return vectors_nD, constants_n
        if self.norm.shift is not None:
            constants_n = constants_n + vectors_nD @ self.norm.shift
        positions = torch.as_tensor(position, device=vectors_nD.device).expand(len(vectors_nD))
        return self.norm.adjoint_at(vectors_nD, positions), constants_n

    def _checked(self, cotangents_nd: Tensor) -> Tensor:
        d_head = self.made.shape[2]
        if cotangents_nd.ndim != 2 or cotangents_nd.shape[1] != d_head or not len(cotangents_nd):
            raise InputError(
                f"cotangents have shape {tuple(cotangents_nd.shape)}; expected is (n, {d_head}), one row a read"
            )
        return cotangents_nd.to(self.made)


@dataclass(frozen=True)
class LayerScores:
    """Scores of one layer on one prompt, and reads of the queries and keys behind them. All in the compute dtype.

    raw = scaling * <query, key>; score = softcap * tanh(raw / softcap), or raw; pattern = softmax over the keys from
    first[query] to query, and the head's sink where there is one. Raises InputError for a head or position that does not exist,
    a key behind its query, and one outside the window.
    """

    layer: int
    n_layers: int
    stream: Tensor  # (P, D) the residual stream that enters the layer
    query: Tensor  # (H, P, d) after rotary embedding and norms
    key: Tensor  # (K, P, d) the same
    scaling: float
    softcap: float | None
    sinks: Tensor | None  # (H,)
    first: Tensor  # (P,) int64: the first key that each query sees
    queries: FrozenReads = field(repr=False)
    keys: FrozenReads = field(repr=False)

    @property
    def n_heads(self) -> int:
        """H."""
        return int(self.query.shape[0])

    @property
    def n_pos(self) -> int:
        """P."""
        return int(self.query.shape[1])

    def key_head(self, head: int) -> int:
        """The key/value head that a head reads."""
        return self._head(head) // (self.n_heads // int(self.key.shape[0]))

    def require(self, head: int, query: int, key: int | None = None) -> None:
        """Refuse a head, query or key that does not exist, and a key that the query does not see."""
        self._head(head)
        query = self._position(query, "query")
        if key is None:
            return
        key, first = self._position(key, "key"), int(self.first[query])
        if key > query:
            raise InputError(
                f"key {key} is behind query {query}, which sees nothing later; give a key from {first} to {query}"
            )
        if key < first:
            raise InputError(
                f"key {key} is outside the window of layer {self.layer}, whose query {query} sees keys {first} to {query}; "
                "give one of these, or a layer that sees the whole prompt"
            )

    def raw(self, head: int, query: int, key: int | None = None) -> Tensor:
        """The scaled score before the cap: of one key (), or of all (P,), -inf where the query does not look."""
        self.require(head, query, key)
        keys = self.key[self.key_head(head)]
        if key is not None:
            return torch.dot(self.query[head, query], keys[key]) * self.scaling
        seen = slice(int(self.first[query]), query + 1)
        row = keys.new_full((self.n_pos,), -torch.inf)
        row[seen] = keys[seen] @ self.query[head, query] * self.scaling
        return row

    def score(self, head: int, query: int, key: int | None = None) -> Tensor:
        """What the softmax is taken of: of one key (), or of all (P,), -inf where the query does not look."""
        raw = self.raw(head, query, key)
        if not self.softcap:
            return raw
        return torch.where(raw.isinf(), raw, torch.tanh(raw / self.softcap) * self.softcap)

    def log_pattern(self, head: int, query: int) -> Tensor:
        """Logarithms (P,) of what the query gives to each key; -inf where it does not look."""
        row = self.score(head, query)
        total = torch.logsumexp(row, 0)
        return row - (total if self.sinks is None else torch.logaddexp(total, self.sinks[head]))

    def query_reads(self, head: int, position: int, cotangents_nd: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (n, D) and constants (n,): cotangent . query[head, position] = vector . stream[position] + constant."""
        self._position(position)
        head = self._head(head)
        return self.queries.read(head, position, cotangents_nd)

    def key_reads(self, head: int, position: int, cotangents_nd: Tensor) -> tuple[Tensor, Tensor]:
        """The same of the key at a position that `head`, a head of queries, reads."""
        self._position(position)
        return self.keys.read(self.key_head(head), position, cotangents_nd)

    def keys_reads(self, head: int, positions: list[int], cotangents_nd: Tensor) -> tuple[Tensor, Tensor]:
        """The same of keys at several positions, each at most once: one cotangent, vector and constant for each."""
        for position in positions:
            self._position(position)
        return self.keys.read_each(self.key_head(head), positions, cotangents_nd)

    def _head(self, head: int) -> int:
        return require_head(self.layer, head, self.n_layers, self.n_heads)[1]

    def _position(self, position: int, name: str = "position") -> int:
        return require_position(position, self.n_pos, name)
