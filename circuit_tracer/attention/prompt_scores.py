"""What scores of a graph's prompt are explained with: all features that were active, errors, constants, queries and keys.

The prompt that was asked about last stays in memory for as long as its graph is there: the next question costs no pass.

Letters: L layers, P positions, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from threading import RLock
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from circuit_tracer.attention.frozen_prompt import FrozenPrompt
from circuit_tracer.attribution.prompt import EncodedPrompt, LinearPrompt, constant_streams, encode, linearise
from circuit_tracer.attribution.sweep import Sweep
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.errors import CompatibilityError
from circuit_tracer.graph.graph import Graph
from circuit_tracer.models.frozen import FrozenNetwork
from circuit_tracer.models.layer_scores import LayerScores
from circuit_tracer.models.queries_keys import read_scores
from circuit_tracer.transcoders.active import ActiveFeatures
from circuit_tracer.transcoders.base import Transcoders

KEPT_ROWS = 2**30  # bytes; more decoder rows than that are read from the dictionary's files for every question
KEPT_LAYERS = 4  # whose queries and keys stay in memory
TOGETHER = 2**26  # bytes; if those of all layers are fewer, they are made in one pass
AGREEMENT, COARSE_AGREEMENT = 1e-3, 0.05  # of activations, relative to the largest; the latter for bfloat16 and float16
FLIPPED = 0.02  # share of features that may fall on the other side of their threshold by rounding


@dataclass(frozen=True)
class PromptScores:
    """One frozen prompt, with rows of everything that its scores are read from."""

    frozen: FrozenPrompt
    keep: Tensor  # (P,) positions that have features and errors
    _layers: dict[int, LayerScores] = field(default_factory=dict)
    _streams: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    _lock: RLock = field(default_factory=RLock)  # of what is remembered

    @classmethod
    def of(cls, graph: Graph, model: Traceable) -> PromptScores:
        """The graph's prompt on the model. Raises CompatibilityError if the graph was not traced with it."""
        frozen = FrozenPrompt.of(graph, model)
        made = _LATEST.get(graph)
        if made is None or made.frozen is not frozen:
            _LATEST.clear()
            made = _LATEST[graph] = _make(graph, model, frozen)
        return made

    @property
    def network(self) -> FrozenNetwork:
        """The model, with what is frozen for this prompt."""
        return self.frozen.network

    @property
    def transcoders(self) -> Transcoders:
        """Those of the model."""
        return self.frozen.transcoders

    @cached_property
    def linear(self) -> LinearPrompt:
        """With errors and decoder rows."""
        parts, encoded = self.network.parts, EncodedPrompt(self.network, self.frozen.active, self.keep)
        rows = sum(
            count * len(self.transcoders.target_layers(layer))
            for layer, count in enumerate(encoded.counts_LP.sum(1).tolist())
        )
        keep = rows * self.transcoders.d_model * parts.compute_dtype.itemsize <= KEPT_ROWS
        return linearise(encoded, self.transcoders, keep)

    @cached_property
    def sweep(self) -> Sweep:
        """Rows of everything that is read off the stream."""
        return Sweep(self.linear)

    def scores(self, layer: int) -> LayerScores:
        """Queries and keys of a layer. Raises InputError for one that does not exist."""
        parts, captured = self.network.parts, self.network.captured
        with self._lock:
            return _remembered(self._layers, layer, lambda: read_scores(parts, captured, self._with(layer)))

    def constant_streams(self, layer: int) -> dict[str, Tensor]:
        """What each kind of constant makes of the stream (P, D) that enters a layer."""
        make = partial(constant_streams, self.linear, self.transcoders)
        with self._lock:
            return _remembered(self._streams, layer, lambda: make(self._with(layer)))

    def _with(self, layer: int) -> list[int]:
        """The layers that are made together with one: all of a short prompt, whose passes cost more than what is kept."""
        config, n_pos = self.network.parts.config, self.network.captured.n_pos
        # numbers of a position: constants, and queries and keys with what goes into them
        width = 4 * config.d_model + 4 * config.n_heads * config.d_head
        n_bytes = config.n_layers * n_pos * width * self.network.parts.compute_dtype.itemsize
        return list(range(config.n_layers)) if n_bytes <= TOGETHER and layer in range(config.n_layers) else [layer]


Kept = TypeVar("Kept")
_LATEST: WeakKeyDictionary[Graph, PromptScores] = WeakKeyDictionary()


def _remembered(kept: dict[int, Kept], layer: int, make: Callable[[], dict[int, Kept]]) -> Kept:
    """The value of a layer; what was made last stays, with the layers asked for before it."""
    if layer not in kept:
        made = make()
        while kept and len(kept) >= max(KEPT_LAYERS, len(made)):
            del kept[next(iter(kept))]
        kept.update(made)
    return kept[layer]


def _make(graph: Graph, model: Traceable, frozen: FrozenPrompt) -> PromptScores:
    left_out = graph.provenance.get("settings", {}).get("zero_positions")
    keep = torch.ones(graph.n_pos, dtype=torch.bool)
    keep[model.left_out(frozen.network.captured.ids) if left_out is None else left_out] = False
    if not frozen.same_weights:
        found = encode(frozen.network, frozen.transcoders, keep)
        _require_active(graph, frozen.active, found, model.parts.config.dtype)
    return PromptScores(frozen, keep)


def _require_active(graph: Graph, there: ActiveFeatures, here: ActiveFeatures, dtype: str | None) -> None:
    """Raise CompatibilityError unless the graph's features are active here as they are there."""
    width = int(max(there.index.max(), here.index.max())) + 1 if len(there) else 1
    keys = [(each.layer * graph.n_pos + each.position) * width + each.index for each in (there, here)]
    place = torch.searchsorted(keys[1], keys[0]).clamp(max=len(here) - 1)
    found = torch.where(keys[1][place] == keys[0], here.value[place].double(), 0.0)
    expected = there.value.double()
    coarse = {graph.cfg.dtype, dtype} & {"bfloat16", "float16"}
    allowed = (COARSE_AGREEMENT if coarse else AGREEMENT) * expected.abs().max() if len(there) else 0.0
    off = (found - expected).abs() > allowed
    if len(there) and float(off.double().mean()) > FLIPPED:
        worst = int((found - expected).abs().argmax())
        raise CompatibilityError(
            f"the graph was made with another model or other transcoders: {int(off.sum())} of its {len(off)} active features "
            f"have other activations here, such as layer {int(there.layer[worst])}, position {int(there.position[worst])}, "
            f"feature {int(there.index[worst])}: {float(expected[worst]):.4g} in the graph, {float(found[worst]):.4g} here. "
            "Load those it was traced with."
        )
