"""Scores of attention, and how the queries and keys they are made of are read off the residual stream.

    scores = read_scores(parts, captured, [5])[5]
    scores.score(head, query, key)                                  # what the softmax is taken of
    vectors_nD, constants_n = scores.query_reads(head, query, cotangents_nd)

With the scales of norms frozen, those of queries and keys too, a query is an affine map of the stream that enters its layer, at
its own position alone: cotangent . q = vector . x + constant. Everything between is inside (norm, projection, biases, norms of
heads, rotary embedding, multipliers). No table says how: the model's own attention module runs once more, on an input that
autograd follows (`models/followed.py`), and every map is verified before it is handed out. Models in bfloat16 or float16 are
read in float32, their weights as they are; what their own pass rounds, queries and keys, is then not rounded.

Letters: P positions, D d_model, H heads, K key/value heads, d d_head, n cotangents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from circuit_tracer.errors import InputError, UnsupportedModelError
from circuit_tracer.models.attention import AttentionTape, Scoring
from circuit_tracer.models.capture import PromptCapture
from circuit_tracer.models.followed import Leaf, follow
from circuit_tracer.models.indices import require_head, require_layer, require_position
from circuit_tracer.models.norms import FrozenNorm
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.models.plain import float_dtypes
from circuit_tracer.models.run import Call, ModelRun, Place, Stop, Visit
from circuit_tracer.models.surroundings import plain_torch

BYTES_IN_FLIGHT = 256 * 2**20  # of gradients that are made at once
_TINY = 1e-30  # all weights may be zero
_AFFINE = {torch.float64: 1e-10, torch.float32: 1e-5}  # relative to the terms of the affine map
# of queries and keys of the model's own pass, relative to the largest
_SAME = {torch.float64: 1e-5, torch.float32: 1e-3, torch.bfloat16: 1e-1, torch.float16: 3e-2}


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
        sizes = (terms.abs().sum(1) + constants.abs()).clamp_min(_TINY)
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


@plain_torch()
def read_scores(parts: ModelParts, captured: PromptCapture, layers: Iterable[int]) -> dict[int, LayerScores]:
    """Scores, and reads of queries and keys, of some layers of a captured prompt.

    One pass up to the deepest of the layers, whose norms and patterns are those of the capture, and two projections a layer.
    What is kept is of these layers alone. Raises InputError for a layer that does not exist, and UnsupportedModelError where
    queries or keys are not affine in the stream once the scales of norms are frozen.
    """
    wanted = sorted({require_layer(layer, len(parts.layers)) for layer in layers})
    if not wanted:
        return {}
    met, caught = _pass(parts, captured, wanted), _Caught(wanted)
    scoring: dict[int, Scoring] = {}
    result = {}
    with ModelRun(parts, caught.visits, norms=None, tape=AttentionTape(keep=False, scoring=scoring)).active():
        for layer in wanted:
            result[layer] = _layer_scores(parts, captured, layer, met[layer], caught, scoring)
            _verify(parts, result[layer], met[layer])
    return result


@dataclass
class _Met:
    """What the pass came by at one layer, as the model computed it."""

    stream: Tensor = field(default_factory=lambda: torch.empty(0))  # (P, D)
    query: Tensor = field(default_factory=lambda: torch.empty(0))  # (H, P, d)
    key: Tensor = field(default_factory=lambda: torch.empty(0))  # (K, P, d)
    call: Call = field(default_factory=lambda: Call((), {}))


def _pass(parts: ModelParts, captured: PromptCapture, wanted: list[int]) -> dict[int, _Met]:
    """The captured pass once more, up to the deepest layer that is wanted."""
    met = {layer: _Met() for layer in wanted}

    def keep(name: str) -> Visit:
        def visit(layer: int, activation: Tensor) -> None:
            setattr(met[layer], name, activation[0].detach())

        return visit

    visits: dict[Place, Visit] = {("attn.hook_v", wanted[-1]): _stop}
    for name, site in (("stream", "hook_resid_pre"), ("query", "attn.hook_q"), ("key", "attn.hook_k")):
        visits |= {(site, layer): keep(name) for layer in wanted}
    tape = captured.replayed() if captured.patterns else AttentionTape(recompute=True, keep=False)
    calls = {layer: (lambda call, layer=layer: setattr(met[layer], "call", call)) for layer in wanted}
    ModelRun(parts, visits, norms=captured.scales, tape=tape, attends=calls)(captured.ids)
    return met


class _Caught:
    """Visits that take the queries and keys of a layer and let its attention go no further."""

    def __init__(self, wanted: Iterable[int]) -> None:
        self.found: dict[Place, Tensor] = {}
        self.visits: dict[Place, Visit] = {}
        for layer in wanted:
            for site in ("attn.hook_q", "attn.hook_k"):
                self.visits[site, layer] = self._take(site)
            self.visits["attn.hook_v", layer] = _stop

    def _take(self, site: str) -> Visit:
        def take(layer: int, activation: Tensor) -> None:
            self.found[site, layer] = activation[0]

        return take

    def of(self, layer: int, attend: Callable[[], object]) -> tuple[Tensor, Tensor]:
        """What `attend` makes: queries (H, P, d) and keys (K, P, d)."""
        with suppress(Stop):
            attend()
        return self.found.pop(("attn.hook_q", layer)), self.found.pop(("attn.hook_k", layer))


def _stop(layer: int, activation: Tensor) -> None:
    raise Stop


def _layer_scores(
    parts: ModelParts, captured: PromptCapture, layer: int, met: _Met, caught: _Caught, scoring: dict[int, Scoring]
) -> LayerScores:
    dtype, norm = parts.compute_dtype, parts.layers[layer].attention_norm
    stream = met.stream.to(dtype)
    frozen = None if norm is None else captured.scales(layer, "attention_norm", norm, stream)
    entered = stream if frozen is None else frozen.forward(stream)
    followed = follow(parts.layers[layer], met.call, entered[None], partial(caught.of, layer))
    scaling, softcap, sinks, first = scoring[layer]
    return LayerScores(
        layer=layer,
        n_layers=len(parts.layers),
        stream=stream,
        query=followed.query.detach(),
        key=followed.key.detach(),
        scaling=scaling,
        softcap=softcap,
        sinks=None if sinks is None else sinks.detach().to(dtype),
        first=first,
        queries=FrozenReads("queries", followed.query, followed.query_at_zero, followed.leaves, frozen),
        keys=FrozenReads("keys", followed.key, followed.key_at_zero, followed.leaves, frozen),
    )


def _verify(parts: ModelParts, one: LayerScores, met: _Met) -> None:
    """Refuse queries and keys that are not those of the pass, or no affine map of the stream."""
    own = max(_SAME[dtype] for dtype in float_dtypes(parts.model))
    for reads, seen in ((one.queries, met.query), (one.keys, met.key)):
        made = reads.made.detach()
        apart = float((made - seen).abs().max() / made.abs().max().clamp_min(_TINY))
        off = reads.residuals(one.stream)
        if not (apart <= own and off <= _AFFINE[parts.compute_dtype]):
            raise UnsupportedModelError(
                f"{reads.what} of layer {one.layer} of this {parts.architecture.model_type} are no affine map of the residual "
                f"stream at their own position, with the scales of norms frozen: they are {off:.1e} from one, and {apart:.1e} "
                "from those of the model's own pass (relative). Its scores cannot be explained; please report it "
                "with the model's config.json"
            )
