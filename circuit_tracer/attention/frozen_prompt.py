"""The frozen network of a graph's prompt, made again: a graph keeps neither patterns nor weights.

What it does keep, tokens and activations, decides: features write what they wrote in the trace. The prompt of the graph that
a model was last asked about stays in memory while both are there, so that the next edge costs no pass.

Letters: L layers, P positions, D d_model, N active features, n nodes, K targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor

from circuit_tracer.attention.stream_terms import StreamTerms
from circuit_tracer.attention.stretch import Stretch
from circuit_tracer.attribution.belonging import require_attention_as_it_is, require_traced_with
from circuit_tracer.attribution.decoder_rows import CHUNK_BYTES, DecoderRows
from circuit_tracer.attribution.prompt import left_over
from circuit_tracer.attribution.read_out import ReadOut
from circuit_tracer.attribution.sources import SourceTable
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.errors import InputError
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.nodes import NodeTable
from circuit_tracer.graph.stream_reads import StreamReads
from circuit_tracer.models.capture import capture
from circuit_tracer.models.frozen import FrozenNetwork
from circuit_tracer.models.surroundings import plain_torch
from circuit_tracer.transcoders.active import ActiveFeatures
from circuit_tracer.transcoders.base import Transcoders

KEPT_PATTERNS = 2**28  # bytes; patterns of longer prompts are made again, layer by layer, where they are needed


@dataclass(frozen=True)
class FrozenPrompt:
    """One prompt as the linear network that its graph describes, and what the graph's nodes write and read there.

    same_weights: whether fingerprints say that it is the model and the transcoders of the trace.
    """

    network: FrozenNetwork
    transcoders: Transcoders
    made_for: NodeTable  # the graph's own
    nodes: NodeTable  # the same on the CPU
    active: ActiveFeatures  # all of the graph
    kinds: Sequence[str]  # (K,) of the targets
    labels: list[str]
    kept_reads: StreamReads | None  # of targets that are no logits
    same_weights: bool

    @classmethod
    def of(cls, graph: Graph, model: Traceable) -> FrozenPrompt:
        """The graph's prompt on the model. Raises CompatibilityError if the graph was not traced with it."""
        require_attention_as_it_is(graph, "explaining edges and scores by heads")
        model.ensure_tokenized(graph.input_tokens)  # from here on the parts are those of the weights as they are now
        now = (model.parts, model.transcoders, graph.nodes)
        graph_of, made = _LATEST.get(model, (None, None))
        if made is not None and graph_of is not None and graph_of() is graph and made.made_of(*now):
            return made
        made = _make(graph, model)
        _LATEST[model] = ref(graph), made
        return made

    def made_of(self, parts: object, transcoders: object, nodes: object) -> bool:
        """Whether it is of these."""
        return self.network.parts is parts and self.transcoders is transcoders and self.made_for is nodes

    @cached_property
    def skips(self) -> list[Tensor | None]:
        """L x (D, D) skip connections."""
        parts = self.network.parts
        stored = [self.transcoders.skip_matrix(layer) for layer in range(self.network.n_layers)]
        return [None if skip is None else skip.to(device=parts.device, dtype=parts.compute_dtype) for skip in stored]

    def stretch(self, start: int, stop: int) -> Stretch:
        """Positions start .. stop - 1."""
        return Stretch(self.network, self.skips, start, stop)

    @plain_torch()
    def writes(self, nodes: Tensor) -> StreamTerms:
        """What nodes (n,) write into the stream: features, errors and tokens; rows are places in `nodes`."""
        layout = self.nodes.layout
        rows = torch.arange(len(nodes))
        feature, token = nodes < layout.error_start, nodes >= layout.token_start
        parts = [self._tokens(nodes, rows[token]), *self._features(nodes, rows[feature])]
        return StreamTerms.joined([*parts, *self._errors(nodes, rows[~feature & ~token])])

    @plain_torch()
    def reads(self, nodes: Tensor) -> StreamTerms:
        """What nodes (n,) read of the stream: features and targets; rows are places in `nodes`."""
        layout = self.nodes.layout
        rows, parts = torch.arange(len(nodes)), []
        if bool((features := nodes < layout.error_start).any()):
            parts.append(self._read_features(nodes, rows[features]))
        if bool((targets := nodes >= layout.target_start).any()):
            parts.append(self._read_targets(nodes[targets] - layout.target_start, rows[targets]))
        return StreamTerms.joined(parts)

    # ---- sources

    def _terms(self, rows: Tensor, place: int, position: Tensor, vector: Tensor) -> StreamTerms:
        device = self.network.parts.device
        return StreamTerms(rows.to(device), torch.full_like(rows, place).to(device), position.to(device), vector)

    def _tokens(self, nodes: Tensor, rows: Tensor) -> StreamTerms:
        position = self.nodes.position[nodes[rows]]
        return self._terms(rows, 0, position, self.network.captured.embedding[position])

    def _features(self, nodes: Tensor, rows: Tensor) -> list[StreamTerms]:
        found, of_rows = [], nodes[rows]
        for layer in self.nodes.layer[of_rows].unique().tolist():
            here = rows[self.nodes.layer[of_rows] == layer]
            position, index = self.nodes.position[nodes[here]], self.nodes.feature[nodes[here]]
            decoder = self.transcoders.decoder_rows(layer, index).to(self.network.captured.embedding)
            decoder = decoder * self.nodes.activation[nodes[here]].to(decoder)[:, None, None]
            for slot, above in enumerate(self.transcoders.target_layers(layer)):
                written = self.network.write_at(above, decoder[:, slot], position.to(decoder.device))
                found.append(self._terms(here, 2 * above + 2, position, written))
        return found

    def _errors(self, nodes: Tensor, rows: Tensor) -> list[StreamTerms]:
        found, of_rows = [], nodes[rows]
        for layer in self.nodes.layer[of_rows].unique().tolist():
            here = rows[self.nodes.layer[of_rows] == layer]
            position = self.nodes.position[nodes[here]]
            at = position.to(self.network.parts.device)
            rebuilt = torch.stack([self._decoder.at_hook(layer, p, p + 1).sum(0) for p in position.tolist()])
            skip, y = self.skips[layer], self.network.transcoder_output(layer)[at]
            bias = self.transcoders.output_bias(layer, partial(self.network.transcoder_input, layer)).to(y)
            by_skip = torch.zeros_like(y) if skip is None else self.network.transcoder_input(layer)[at] @ skip
            error = left_over(y, rebuilt, bias if bias.ndim == 1 else bias[at], by_skip)
            found.append(self._terms(here, 2 * layer + 2, position, self.network.write_at(layer, error, at)))
        return found

    @cached_property
    def _decoder(self) -> DecoderRows:
        table = SourceTable.of(self.active, self.transcoders, self.nodes.layout.n_pos)
        return DecoderRows(table, self.transcoders, self.network, CHUNK_BYTES)

    # ---- targets

    def _read_features(self, nodes: Tensor, rows: Tensor) -> StreamTerms:
        chosen = nodes[rows]
        features = ActiveFeatures(*(column[chosen] for column in self._columns))
        every = torch.arange(len(features))
        read_out = ReadOut.of_features(self.transcoders, self.network, features, every)
        return self._renamed(StreamTerms.of_read_out(read_out, self.network), rows)

    @property
    def _columns(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.nodes.layer, self.nodes.position, self.nodes.feature, self.nodes.activation

    def _read_targets(self, targets: Tensor, rows: Tensor) -> StreamTerms:
        """Logits by the unembedding, others as the trace kept them."""
        logits = torch.tensor([self.kinds[target] == "logit" for target in targets.tolist()])
        parts = []
        if bool(logits.any()):
            at = targets[logits] + self.nodes.layout.target_start
            unembed, mean = self.network.parts.unembed.weight, self._mean_unembedding
            vector = unembed[self.nodes.feature[at].to(unembed.device)].to(mean.dtype) - mean
            nothing = torch.zeros(len(at))
            read_out = ReadOut(self.nodes.layer[at], self.nodes.position[at], vector, nothing)
            parts.append(self._renamed(StreamTerms.of_read_out(read_out, self.network), rows[logits]))
        if not bool(logits.all()):
            others = targets[~logits]
            known = set() if self.kept_reads is None else set(self.kept_reads.row.tolist())
            if self.kept_reads is None or not known.issuperset(others.tolist()):
                label = next(self.labels[target] for target in others.tolist() if target not in known)
                raise InputError(
                    f"what target {label!r} reads is not in this graph: only tokens can be read again from the model, and the "
                    "graph was made, or its file written, without the vectors of other targets. Trace the prompt again"
                )
            kept = StreamTerms.of_targets(self.kept_reads, self.network)
            parts.append(self._renamed(kept.take(others.to(kept.row.device)), rows[~logits]))
        return StreamTerms.joined(parts)

    @cached_property
    def _mean_unembedding(self) -> Tensor:
        return self.network.parts.unembed.weight.mean(0, dtype=self.network.parts.compute_dtype)

    def _renamed(self, terms: StreamTerms, rows: Tensor) -> StreamTerms:
        """Row r as row rows[r]."""
        return replace(terms, row=rows.to(terms.row.device)[terms.row])


_LATEST: WeakKeyDictionary[Traceable, tuple[ReferenceType[Graph], FrozenPrompt]] = WeakKeyDictionary()


@plain_torch()
def _make(graph: Graph, model: Traceable) -> FrozenPrompt:
    same = require_traced_with(graph, model)
    parts, transcoders = model.parts, model.transcoders
    ids = graph.input_tokens.detach().cpu().long()
    size = parts.config.n_layers * parts.config.n_heads * len(ids) ** 2 * parts.compute_dtype.itemsize
    captured = capture(parts, ids, keep_patterns=size <= KEPT_PATTERNS)
    network = FrozenNetwork(parts, captured, transcoders.feature_input_hook, transcoders.feature_output_hook)
    layer, position, index = graph.active_features.detach().cpu().long().T.contiguous()
    active = ActiveFeatures(layer, position, index, graph.activation_values.detach().cpu())
    nodes = {name: getattr(graph.nodes, name).cpu() for name in ("kind", "layer", "position", "feature", "activation")}
    return FrozenPrompt(
        network=network,
        transcoders=transcoders,
        made_for=graph.nodes,
        nodes=replace(graph.nodes, **nodes),
        active=active,
        kinds=graph.targets.kind,
        labels=graph.targets.label,
        kept_reads=graph.targets.reads,
        same_weights=same,
    )
