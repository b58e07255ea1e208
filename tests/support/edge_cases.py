"""Edges to explain, and what the frozen network itself says of them: its source is run forward, with patterns set to zero."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.attribution.prompt import LinearPrompt, encode_prompt, linearise
from circuit_tracer.graph.graph import Graph
from circuit_tracer.replacement_model import ReplacementModel
from tests.support.tiny import CONFIGS, FAMILIES, NO_HEADS, NO_SCORES, tiny_model, tiny_transcoder
from tests.support.tracing_cases import IDS, Case, build

Test = Callable[..., Any]
Patterns = Callable[[int, Tensor], Tensor]  # layer, (H, P, P) -> what attention does instead


def all_of(layer: int, pattern: Tensor) -> Tensor:
    """As it is."""
    return pattern


def only(*heads: tuple[int, int]) -> Patterns:
    """These heads alone; every other pattern is zero."""

    def patterns(layer: int, pattern: Tensor) -> Tensor:
        kept = torch.zeros_like(pattern)
        for at, head in heads:
            if at == layer:
                kept[head] = pattern[head]
        return kept

    return patterns


def without(*heads: tuple[int, int]) -> Patterns:
    """All but these heads."""
    return lambda layer, pattern: pattern - only(*heads)(layer, pattern)


def between(first: int, last: int) -> Patterns:
    """All heads of layers first .. last - 1; those of other layers are zero."""
    return lambda layer, pattern: pattern if first <= layer < last else torch.zeros_like(pattern)


def together(*patterns: Patterns) -> Patterns:
    """Sums of patterns."""
    return lambda layer, pattern: sum((one(layer, pattern) for one in patterns), torch.zeros_like(pattern))


def scaled(factor: float) -> Patterns:
    """All patterns times a number."""
    return lambda layer, pattern: factor * pattern


def at_entries(*entries: tuple[int, int, int, int]) -> Patterns:
    """Nothing but these entries: layer, head, query, key."""

    def patterns(layer: int, pattern: Tensor) -> Tensor:
        kept = torch.zeros_like(pattern)
        for at, head, query, key in entries:
            if at == layer:
                kept[head, query, key] = pattern[head, query, key]
        return kept

    return patterns


SEQUENTIAL = Case("gemma2", "clt", True, "mlp.hook_in", "mlp.hook_out")
PARALLEL = Case("gpt_neox", "clt", True, "ln2.hook_normalized", "hook_mlp_out")
PLAIN = Case("llama", "plt", False, "hook_resid_mid", "hook_mlp_out")
THREE = (SEQUENTIAL, PARALLEL, PLAIN)


@lru_cache
def traced(case: Case, dtype: torch.dtype = torch.float64) -> tuple[ReplacementModel, Graph]:
    """A tiny model and its graph, which tests must not change."""
    model = build(case, dtype)
    return model, attribute(IDS, model, max_n_logits=2)


def any_architecture(name: str, number: int, dtype: torch.dtype = torch.float64) -> tuple[ReplacementModel, Graph]:
    """A tiny model of any row of the table, with a transcoder whose kind, skip and hooks take turns, and a small graph."""
    hooks: dict[str, Any] = {"input_hook": "hook_resid_mid" if number % 3 else "mlp.hook_in", "skip": number % 2 == 0}
    kind, output = ("clt", "plt")[number // 2 % 2], ("hook_mlp_out", "mlp.hook_out")[number % 2]
    model = tiny_model(name, dtype)
    transcoders = tiny_transcoder(
        kind, dtype, n_features=4, output_hook=output, n_layers=model.config.num_hidden_layers, **hooks
    )
    bound = ReplacementModel.from_model(model, transcoders, None, name)
    return bound, attribute(IDS, bound, max_n_logits=2, max_feature_nodes=6)


def _each(*without: Sequence[str], step: int = 1) -> Callable[[Test], Test]:
    left_out = {name for names in without for name in names}
    cases = list(enumerate((*CONFIGS, *(name for name in FAMILIES if name not in left_out))))[::step]
    each = pytest.mark.parametrize(("number", "name"), cases, ids=[name for _, name in cases])
    return lambda test: pytest.mark.few(each(test))


every_fifth = _each(NO_HEADS, step=5)
every_architecture = _each(NO_HEADS)  # whose edges are split by attention head
with_scores = _each(NO_HEADS, NO_SCORES)  # and whose attention scores are explained


def some_edges(graph: Graph, count: int) -> list[tuple[int, int]]:
    """(source, target) of edges of every kind, spread over the graph, and the one that spans most."""
    edges, nodes = graph.edges, graph.nodes
    span = (nodes.layer[edges.target] - nodes.layer[edges.source]) * 100 + (
        nodes.position[edges.target] - nodes.position[edges.source]
    )
    chosen = [int(span.argmax()), *range(0, len(edges), max(1, len(edges) // count))][:count]
    target = edges.target
    return [(int(edges.source[place]), int(target[place])) for place in chosen]


class FrozenEdge:
    """One edge by running its source through the frozen network, forwards, with patterns as they are or others."""

    def __init__(self, model: ReplacementModel, graph: Graph, source: int, target: int) -> None:
        self.prompt: LinearPrompt = linearise(
            encode_prompt(model.parts, model.transcoders, graph.input_tokens, [0]), model.transcoders, True
        )
        self.tokens, self.writes = self._written(model, graph, source)
        self.read = self._reads(model, graph, target)

    def effect(self, patterns: Patterns = all_of) -> float:
        """What the target reads of the source."""
        network = copy(self.prompt.network)
        network.layers = [
            replace(layer, mixing=replace(layer.mixing, pattern=patterns(number, layer.mixing.pattern)))
            for number, layer in enumerate(network.layers)
        ]

        def output(layer: int, x: Tensor) -> Tensor:
            skip = self.prompt.skips[layer]
            return self.writes[layer] if skip is None else self.writes[layer] + x @ skip

        return float(self.read(*network.propagate(self.tokens, output, constants=False)))

    def _written(self, model: ReplacementModel, graph: Graph, node: int) -> tuple[Tensor, Tensor]:
        layout, nodes = graph.nodes.layout, graph.nodes
        tokens, writes = torch.zeros_like(self.prompt.captured.embedding), torch.zeros_like(self.prompt.error)
        layer, position = int(nodes.layer[node]), int(nodes.position[node])
        if node < layout.error_start:
            for above in model.transcoders.target_layers(layer):
                row = model.transcoders.decoder_rows(layer, nodes.feature[node : node + 1], target_layer=above)[0]
                writes[above, position] = nodes.activation[node] * row
        elif node < layout.token_start:
            writes[layer, position] = self.prompt.error[layer, position]
        else:
            tokens[position] = self.prompt.captured.embedding[position]
        return tokens, writes

    @staticmethod
    def _reads(model: ReplacementModel, graph: Graph, node: int) -> Callable[[list[Tensor], Tensor], Tensor]:
        nodes = graph.nodes
        layer, position, index = int(nodes.layer[node]), int(nodes.position[node]), int(nodes.feature[node])
        if node < nodes.layout.error_start:
            row = model.transcoders.encoder_rows(layer, torch.tensor([index]))[0][0]
            return lambda inputs, final: inputs[layer][position] @ row
        unembed = model.parts.unembed.weight
        return lambda inputs, final: final[position] @ (unembed[index] - unembed.mean(0))
