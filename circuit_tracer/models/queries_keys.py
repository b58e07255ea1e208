"""How the queries and keys of attention, and so its scores, are read off the residual stream (`LayerScores`).

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

from circuit_tracer.errors import UnsupportedModelError
from circuit_tracer.models.attention import AttentionTape, Scoring
from circuit_tracer.models.call import Call
from circuit_tracer.models.capture import PromptCapture
from circuit_tracer.models.followed import follow
from circuit_tracer.models.indices import require_layer
from circuit_tracer.models.layer_scores import TINY, FrozenReads, LayerScores
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.models.plain import float_dtypes
from circuit_tracer.models.run import ModelRun, Place, Stop, Visit
from circuit_tracer.models.surroundings import plain_torch

_AFFINE = {torch.float64: 1e-10, torch.float32: 1e-5}  # relative to the terms of the affine map
# of queries and keys of the model's own pass, relative to the largest
_SAME = {torch.float64: 1e-5, torch.float32: 1e-3, torch.bfloat16: 1e-1, torch.float16: 3e-2}


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
        apart = float((made - seen).abs().max() / made.abs().max().clamp_min(TINY))
        off = reads.residuals(one.stream)
        if not (apart <= own and off <= _AFFINE[parts.compute_dtype]):
            raise UnsupportedModelError(
                f"{reads.what} of layer {one.layer} of this {parts.architecture.model_type} are no affine map of the residual "
                f"stream at their own position, with the scales of norms frozen: they are {off:.1e} from one, and {apart:.1e} "
                "from those of the model's own pass (relative). Its scores cannot be explained; please report it "
                "with the model's config.json"
            )
