"""The prompt of a graph made linear again, with all features that were active: a graph keeps neither patterns nor weights.

What it does keep, tokens and activations, decides: features write what they wrote in the trace. The prompt of the graph that
was last asked about stays in memory for as long as both the graph and the model are there: the next question costs no pass.

Letters: L layers, P positions, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor

from circuit_tracer.attribution.belonging import require_traced_with
from circuit_tracer.attribution.prompt import EncodedPrompt, LinearPrompt, constant_streams, encode, linearise
from circuit_tracer.attribution.sweep import Sweep
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.errors import CompatibilityError
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.nodes import NodeTable
from circuit_tracer.models.capture import capture
from circuit_tracer.models.frozen import FrozenNetwork
from circuit_tracer.models.queries_keys import LayerScores, read_scores
from circuit_tracer.models.surroundings import plain_torch
from circuit_tracer.transcoders.active import ActiveFeatures
from circuit_tracer.transcoders.base import Transcoders

KEPT_PATTERNS = 2**28  # bytes; patterns of longer prompts are made again, layer by layer, where they are needed
KEPT_ROWS = 2**30  # bytes; more decoder rows than that are read from the dictionary's files for every question
KEPT_LAYERS = 4  # whose queries and keys stay in memory
AGREEMENT, COARSE_AGREEMENT = 1e-3, 0.05  # of activations, relative to the largest; the latter for bfloat16 and float16
FLIPPED = 0.02  # share of features that may fall on the other side of their threshold by rounding


@dataclass(frozen=True)
class TracedPrompt:
    """One prompt as the linear network that its graph describes.

    same_weights: whether fingerprints say that it is the model and the transcoders of the trace.
    """

    encoded: EncodedPrompt
    transcoders: Transcoders
    made_for: NodeTable  # the graph's own
    same_weights: bool
    _layers: dict[int, LayerScores] = field(default_factory=dict)
    _streams: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: Graph, model: Traceable) -> TracedPrompt:
        """The graph's prompt on the model. Raises CompatibilityError if the graph was not traced with it."""
        model.ensure_tokenized(graph.input_tokens)  # from here on the parts are those of the weights as they are now
        now = (model.parts, model.transcoders, graph.nodes)
        graph_of, made = _LATEST.get(model, (None, None))
        if made is not None and graph_of is not None and graph_of() is graph and made.made_of(*now):
            return made
        made = _make(graph, model)
        whose = ref(model)

        def forget(graph_gone: ReferenceType[Graph]) -> None:
            if (model := whose()) is not None and _LATEST.get(model, (None,))[0] is graph_gone:
                del _LATEST[model]

        _LATEST[model] = ref(graph, forget), made
        return made

    def made_of(self, parts: object, transcoders: object, nodes: object) -> bool:
        """Whether it is of these."""
        return self.network.parts is parts and self.transcoders is transcoders and self.made_for is nodes

    @property
    def network(self) -> FrozenNetwork:
        """The model, with what is frozen for this prompt."""
        return self.encoded.network

    @cached_property
    def linear(self) -> LinearPrompt:
        """With errors and decoder rows."""
        parts, counts = self.network.parts, self.encoded.counts_LP.sum(1).tolist()
        rows = sum(count * len(self.transcoders.target_layers(layer)) for layer, count in enumerate(counts))
        keep = rows * self.transcoders.d_model * parts.compute_dtype.itemsize <= KEPT_ROWS
        return linearise(self.encoded, self.transcoders, keep)

    @cached_property
    def sweep(self) -> Sweep:
        """Rows of everything that is read off the stream."""
        return Sweep(self.linear)

    def scores(self, layer: int) -> LayerScores:
        """Queries and keys of a layer. Raises InputError for one that does not exist."""
        return _remembered(
            self._layers, layer, lambda: read_scores(self.network.parts, self.network.captured, [layer])[layer]
        )

    def constant_streams(self, layer: int) -> dict[str, Tensor]:
        """What each kind of constant makes of the stream (P, D) that enters a layer."""
        return _remembered(self._streams, layer, lambda: constant_streams(self.linear, self.transcoders, layer))


Kept = TypeVar("Kept")
_LATEST: WeakKeyDictionary[Traceable, tuple[ReferenceType[Graph], TracedPrompt]] = WeakKeyDictionary()


def _remembered(kept: dict[int, Kept], layer: int, make: Callable[[], Kept]) -> Kept:
    """The value of a layer; the layers asked for last are kept."""
    found = kept.pop(layer) if layer in kept else make()
    while len(kept) >= KEPT_LAYERS:
        del kept[next(iter(kept))]
    kept[layer] = found
    return found


@plain_torch()
def _make(graph: Graph, model: Traceable) -> TracedPrompt:
    same = require_traced_with(graph, model)
    parts, transcoders = model.parts, model.transcoders
    ids = graph.input_tokens.detach().cpu().long()
    size = parts.config.n_layers * parts.config.n_heads * len(ids) ** 2 * parts.compute_dtype.itemsize
    captured = capture(parts, ids, keep_patterns=size <= KEPT_PATTERNS)
    network = FrozenNetwork(parts, captured, transcoders.feature_input_hook, transcoders.feature_output_hook)
    left_out = graph.provenance.get("settings", {}).get("zero_positions")
    keep = torch.ones(len(ids), dtype=torch.bool)
    keep[model.left_out(ids) if left_out is None else left_out] = False
    layer, position, index = graph.active_features.detach().cpu().long().T.contiguous()
    active = ActiveFeatures(layer, position, index, graph.activation_values.detach().cpu())
    if not same:
        _require_active(graph, active, encode(network, transcoders, keep), parts.config.dtype)
    return TracedPrompt(EncodedPrompt(network, active, keep), transcoders, graph.nodes, same)


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
