"""Scores of attention, and how the queries and keys they are made of are read off the residual stream.

    scores = read_scores(parts, captured, [5])[5]
    scores.score(head, query, key)                                  # what the softmax is taken of
    vectors_nD, constants_n = scores.query_reads(head, query, cotangents_nd)

With the scales of norms frozen, those of queries and keys too, a query is an affine map of the stream that enters its layer, at
its own position alone: cotangent . q = vector . x + constant. Everything between is inside (norm, projection, biases, norms of
heads, rotary embedding, multipliers). No table says how: the model's own attention module runs once more, on an input that
autograd follows, and every map is verified before it is handed out. Models in bfloat16 or float16 are read in float32, their
weights as they are; what their own pass rounds, queries and keys, is then not rounded.

Letters: P positions, D d_model, H heads, K key/value heads, d d_head, n cotangents.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from circuit_tracer.arguments import whole
from circuit_tracer.errors import InputError, UnsupportedModelError
from circuit_tracer.models.attention import AttentionTape
from circuit_tracer.models.capture import PromptCapture
from circuit_tracer.models.norms import FrozenNorm, NormParameters
from circuit_tracer.models.parts import LayerParts, ModelParts
from circuit_tracer.models.plain import float_dtypes
from circuit_tracer.models.run import Call, ModelRun, Place, Stop, Visit
from circuit_tracer.models.surroundings import plain_torch

BYTES_IN_FLIGHT = 256 * 2**20  # of gradients that are made at once
# relative to the largest value: of an affine map, and of the model's own pass
_AFFINE = {torch.float64: 1e-9, torch.float32: 1e-4}
_SAME = {torch.float64: 1e-5, torch.float32: 1e-3, torch.bfloat16: 1e-1, torch.float16: 3e-2}


@dataclass(frozen=True)
class FrozenReads:
    """Queries, or keys, of one layer as affine maps of the stream that enters it, position by position."""

    what: str
    entered: Tensor  # (1, P, D) what enters the attention module, a leaf of autograd
    made: Tensor  # (H or K, P, d) with autograd's graph of one attention module
    at_zero: Tensor  # (H or K, P, d) of an input of zeros, norms frozen
    norm: FrozenNorm | None  # between the stream and the attention module

    @plain_torch()
    def read(self, head: int, position: int, cotangents_nd: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (n, D) and constants (n,): cotangent . made[head, position] = vector . x[position] + constant."""
        cotangents = self._checked(cotangents_nd)
        _, n_pos, d_model = self.entered.shape
        per_row = n_pos * (self.made.shape[0] * self.made.shape[2] + d_model) * self.made.element_size()
        with torch.enable_grad():
            made = self.made[head, position]
            rows = [self._gradients(made, each) for each in cotangents.split(max(1, BYTES_IN_FLIGHT // per_row))]
        vectors = torch.cat([each_nPD[:, position] for each_nPD in rows])
        return self._through_norm(vectors, position, cotangents @ self.at_zero[head, position])

    @plain_torch()
    def read_each(self, head: int, positions: list[int], cotangents_nd: Tensor) -> tuple[Tensor, Tensor]:
        """The same of one cotangent for each of n positions, all different."""
        cotangents = self._checked(cotangents_nd)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self.made[head, positions], self.entered, cotangents, retain_graph=True)
        constants = (cotangents * self.at_zero[head, positions]).sum(1)
        return self._through_norm(gradient[0, positions], torch.tensor(positions), constants)

    def residuals(self, stream_PD: Tensor) -> float:
        """How far positions are from vector . x + constant of their own x, relative to the largest; cotangents are random."""
        generator = torch.Generator().manual_seed(0)
        cotangents = torch.randn(self.made.shape, generator=generator, dtype=torch.float64).to(self.made)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self.made, self.entered, cotangents, retain_graph=True)
        constants = (cotangents * self.at_zero).sum((0, 2))
        vectors, constants = self._through_norm(gradient[0], torch.arange(len(stream_PD)), constants)
        expected = (cotangents * self.made.detach()).sum((0, 2))
        return float(((vectors * stream_PD).sum(1) + constants - expected).abs().max() / expected.abs().max())

    def _gradients(self, made_d: Tensor, cotangents_nd: Tensor) -> Tensor:
        if len(cotangents_nd) == 1:  # without vmap, which costs more than the products
            (found,) = torch.autograd.grad(made_d, self.entered, cotangents_nd[0], retain_graph=True)
            return found
        (found,) = torch.autograd.grad(made_d, self.entered, cotangents_nd, retain_graph=True, is_grads_batched=True)
        return found[:, 0]

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
        self._position(position, "position")
        head = self._head(head)
        return self.queries.read(head, position, cotangents_nd)

    def key_reads(self, head: int, position: int, cotangents_nd: Tensor) -> tuple[Tensor, Tensor]:
        """The same of the key at a position that `head`, a head of queries, reads."""
        self._position(position, "position")
        return self.keys.read(self.key_head(head), position, cotangents_nd)

    def keys_reads(self, head: int, positions: list[int], cotangents_nd: Tensor) -> tuple[Tensor, Tensor]:
        """The same of keys at several positions, each at most once: one cotangent, vector and constant for each."""
        for position in positions:
            self._position(position, "position")
        return self.keys.read_each(self.key_head(head), positions, cotangents_nd)

    def _head(self, head: int) -> int:
        if not 0 <= whole(head, "head") < self.n_heads:
            raise InputError(f"head {head} does not exist; layer {self.layer} has heads 0 to {self.n_heads - 1}")
        return int(head)

    def _position(self, position: int, name: str) -> int:
        if not 0 <= whole(position, name) < self.n_pos:
            raise InputError(f"{name} {position} does not exist; the prompt has positions 0 to {self.n_pos - 1}")
        return int(position)


@plain_torch()
def read_scores(parts: ModelParts, captured: PromptCapture, layers: Iterable[int]) -> dict[int, LayerScores]:
    """Scores, and reads of queries and keys, of some layers of a captured prompt.

    One pass up to the deepest of the layers, whose norms and patterns are those of the capture, and two projections a layer.
    What is kept is of these layers alone. Raises InputError for a layer that does not exist, and UnsupportedModelError where
    queries or keys are not affine in the stream once the scales of norms are frozen.
    """
    wanted = sorted({_layer(parts, layer) for layer in layers})
    if not wanted:
        return {}
    met = _pass(parts, captured, wanted)
    tape = AttentionTape(keep=False, scoring={})
    made: dict[Place, Tensor] = {}
    result = {}
    with ModelRun(parts, dict(_catching(made, wanted)), norms=None, tape=tape).active():
        for layer in wanted:
            one = _again(parts, captured, layer, met[layer], made, tape)
            _verify(parts, one, met[layer])
            result[layer] = one
    return result


@dataclass
class _Met:
    """What the pass came by at one layer, as the model computed it."""

    stream: Tensor = field(default_factory=lambda: torch.empty(0))  # (P, D)
    query: Tensor = field(default_factory=lambda: torch.empty(0))  # (H, P, d)
    key: Tensor = field(default_factory=lambda: torch.empty(0))  # (K, P, d)
    call: Call = field(default_factory=lambda: Call((), {}))


def _layer(parts: ModelParts, layer: int) -> int:
    if not 0 <= whole(layer, "layer") < len(parts.layers):
        raise InputError(f"layer {layer} does not exist; the model has layers 0 to {len(parts.layers) - 1}")
    return int(layer)


def _pass(parts: ModelParts, captured: PromptCapture, wanted: list[int]) -> dict[int, _Met]:
    """The captured pass once more, up to the deepest layer that is wanted."""
    met = {layer: _Met() for layer in wanted}

    def keep(name: str) -> Visit:
        def visit(layer: int, activation: Tensor) -> None:
            setattr(met[layer], name, activation[0].detach())

        return visit

    def stop(layer: int, activation: Tensor) -> None:
        raise Stop

    visits: dict[Place, Visit] = {("attn.hook_v", wanted[-1]): stop}
    for name, site in (("stream", "hook_resid_pre"), ("query", "attn.hook_q"), ("key", "attn.hook_k")):
        visits |= {(site, layer): keep(name) for layer in wanted}
    tape = captured.replayed() if captured.patterns else AttentionTape(recompute=True, keep=False)
    calls = {layer: (lambda call, layer=layer: setattr(met[layer], "call", call)) for layer in wanted}
    ModelRun(parts, visits, norms=captured.scales, tape=tape, attends=calls)(captured.ids)
    return met


def _catching(made: dict[Place, Tensor], wanted: list[int]) -> Iterator[tuple[Place, Visit]]:
    """Visits that take queries and keys and go no further."""

    def visit(name: str) -> Visit:
        def catch(layer: int, activation: Tensor) -> None:
            made[name, layer] = activation[0]

        return catch

    def stop(layer: int, activation: Tensor) -> None:
        raise Stop

    for layer in wanted:
        yield ("attn.hook_q", layer), visit("q")
        yield ("attn.hook_k", layer), visit("k")
        yield ("attn.hook_v", layer), stop


def _again(
    parts: ModelParts,
    captured: PromptCapture,
    layer: int,
    met: _Met,
    made: dict[Place, Tensor],
    tape: AttentionTape,
) -> LayerScores:
    """Run a layer's attention module on what it was given, followed by autograd, and on zeros, up to queries and keys."""
    dtype, scoring = parts.compute_dtype, tape.scoring
    module, norms = _own_copy(parts.layers[layer], dtype)
    call = Call(*_in_dtype(tuple(met.call), dtype))
    stream, norm = met.stream.to(dtype), parts.layers[layer].attention_norm
    frozen = None if norm is None else captured.scales(layer, "attention_norm", norm, stream)
    entered = (stream if frozen is None else frozen.forward(stream))[None].detach().clone().requires_grad_()

    def queries_and_keys(given: Tensor) -> tuple[Tensor, Tensor]:
        args, kwargs = call.on(given)
        try:
            with _Unrounded():
                module(*args, **kwargs)
        except Stop:
            return made.pop(("q", layer)), made.pop(("k", layer))
        raise UnsupportedModelError(
            f"the attention of {parts.architecture.model_type} does not call transformers' attention interface; its scores "
            "cannot be read"
        )

    with torch.enable_grad():
        query, key = queries_and_keys(entered)
    for each in norms:
        each.hold()
    with torch.no_grad():
        query_at_zero, key_at_zero = queries_and_keys(torch.zeros_like(entered))
    assert scoring is not None
    scaling, softcap, sinks, first = scoring[layer]
    return LayerScores(
        layer=layer,
        stream=stream,
        query=query.detach(),
        key=key.detach(),
        scaling=scaling,
        softcap=softcap,
        sinks=None if sinks is None else sinks.detach().to(dtype),
        first=first,
        queries=FrozenReads("queries", entered, query, query_at_zero, frozen),
        keys=FrozenReads("keys", entered, key, key_at_zero, frozen),
    )


class _Unrounded(TorchFunctionMode):
    """Leave float64 what it is where a module's own code rounds it to float32 (rotary embeddings of Cohere, Ernie, Llama 4)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Tensor.float of float64 is the tensor, and all else what it is."""
        if func is Tensor.float and args[0].dtype is torch.float64:
            return args[0]
        return func(*args, **(kwargs or {}))


class _HeldNorm(nn.Module):
    """A norm of queries or keys whose scales are constants to autograd, and to whatever enters once they are held.

    A module that is called several times a pass (for queries, then for keys) has the scales of each call.
    """

    def __init__(self, parameters: NormParameters) -> None:
        super().__init__()
        self.norm = parameters
        self.scales: list[Tensor] = []  # of each call until they are held
        self.held: Iterator[Tensor] | None = None

    def hold(self) -> None:
        """From now on, calls have the scales of those until now, one after the other."""
        self.held = iter(self.scales)

    def forward(self, x: Tensor) -> Tensor:
        """The norm, in the compute dtype."""
        if self.held is None:
            self.scales.append(self.norm.inverse_sigma(x.detach()))
        scale = self.scales[-1] if self.held is None else next(self.held)
        return self.norm.freeze(scale).forward(x)


def _own_copy(layer: LayerParts, dtype: torch.dtype) -> tuple[nn.Module, list[_HeldNorm]]:
    """A layer's attention module for this purpose alone, in the compute dtype, and its norms of queries and keys.

    Weights are shared where they have that dtype. The configuration is shared, by which the run knows the module.
    """
    attention: Any = layer.attention
    tensors = [*attention.parameters(), *attention.buffers()]
    memo: dict[int, Any] = {id(tensor): _constant(tensor, dtype) for tensor in tensors}
    module: nn.Module = copy.deepcopy(attention, memo | {id(attention.config): attention.config})
    for each in module.modules():
        vars(each).pop("forward", None)  # what other threads' runs may have put there meanwhile
    held = []
    for path, norm in layer.head_norms.items():
        held.append(_HeldNorm(norm.parameters))
        module.set_submodule(path, held[-1])
    return module, held


def _constant(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    new = tensor.detach().to(dtype) if tensor.is_floating_point() else tensor.detach()
    return nn.Parameter(new, requires_grad=False) if isinstance(tensor, nn.Parameter) else new


def _in_dtype(given: Any, dtype: torch.dtype) -> Any:
    """The tensors of a call in a dtype, where they are real numbers."""
    if isinstance(given, Tensor):
        return given.detach().to(dtype) if given.is_floating_point() else given
    if isinstance(given, tuple | list):
        return type(given)(_in_dtype(each, dtype) for each in given)
    if isinstance(given, Mapping):
        return {name: _in_dtype(each, dtype) for name, each in given.items()}
    return given


def _verify(parts: ModelParts, one: LayerScores, met: _Met) -> None:
    """Refuse queries and keys that are not those of the pass, or no affine map of the stream."""
    own = max(_SAME[dtype] for dtype in float_dtypes(parts.model))
    for reads, seen in ((one.queries, met.query), (one.keys, met.key)):
        made = reads.made.detach()
        apart = float((made - seen).abs().max() / made.abs().max())
        off = reads.residuals(one.stream)
        if not (apart <= own and off <= _AFFINE[parts.compute_dtype]):
            raise UnsupportedModelError(
                f"{reads.what} of layer {one.layer} of this {parts.architecture.model_type} are no affine map of the residual "
                f"stream at their own position, with the scales of norms frozen: they are {off:.1e} from one, and {apart:.1e} "
                "from those of the model's own pass, relative to the largest. Its scores cannot be explained; please report it "
                "with the model's config.json"
            )
