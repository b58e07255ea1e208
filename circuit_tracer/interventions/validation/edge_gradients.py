"""Edges of a graph, estimated by gradients of the model: attribution patching and integrated gradients, for comparison.

With every kept feature times a multiplier m_s, an edge is estimated as the derivative of its target's pre-activation,

    estimate(t <- s) = mean over points m of d pre_t / d m_s

taken at the prompt itself (m = 1, attribution patching), or at points on the way from all kept features off to all on
(integrated gradients), whose estimates into a target add up to what taking all of them out does to it. What may react is
named by the semantics; with everything frozen the derivative is the edge.

Letters: B points of a pass, P positions, D d_model, n kept features, T targets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from circuit_tracer.arguments import typed
from circuit_tracer.attribution.belonging import require_attention_as_it_is
from circuit_tracer.errors import InputError
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.pruning import PrunePolicy, prune_graph
from circuit_tracer.graph.validation import Agreement
from circuit_tracer.interventions.features.clean import CleanRun
from circuit_tracer.interventions.features.passes import Freeze
from circuit_tracer.interventions.features.semantics import Kind, Semantics, semantics_of
from circuit_tracer.interventions.validation.statistics import agreement
from circuit_tracer.interventions.validation.target_reads import Seen, TargetReads, measurable_targets
from circuit_tracer.models.run import ModelRun, in_turn
from circuit_tracer.models.surroundings import plain_torch

if TYPE_CHECKING:
    from circuit_tracer.attribution.traceable import Traceable

LIVE = Semantics("direct", freeze_attention=False)
POINTS_AT_ONCE = 8


@dataclass(frozen=True)
class EdgeEstimates:
    """Kept edges between kept features, and into targets, column by column (n,).

    Attributes:
        weight: The graph's.
        estimate: By gradients, in the same units.
    """

    source: Tensor
    target: Tensor
    weight: Tensor
    estimate: Tensor
    steps: int
    semantics: Semantics

    @property
    def agreement(self) -> Agreement:
        """Of estimates with the graph's weights."""
        return agreement(self.weight, self.estimate)


@typed
@plain_torch()
def approximate_edges(
    model: Traceable,
    graph: Graph,
    *,
    steps: int = 1,
    semantics: Semantics | Kind = LIVE,
    node_threshold: float = 0.8,
    edge_threshold: float = 0.98,
    policy: PrunePolicy = "circuit-tracer",
) -> EdgeEstimates:
    """Estimates of the edges that pruning keeps.

    Cost: a pass for every 8 steps, and a backward pass of it for each kept feature and target.

    Args:
        model: The replacement model that the graph was traced with.
        graph: The attribution graph.
        steps: 1 for the gradient at the prompt, n for the mean over n points (midpoints) on the way from all kept features
            off to on.
        semantics: What reacts; by default everything.
        node_threshold: Share of the influence that kept nodes hold, 0 to 1 (`prune_graph`).
        edge_threshold: Share of the influence that kept edges hold, 0 to 1 (`prune_graph`).
        policy: How nodes are kept: "circuit-tracer" or "paper" (`prune_graph`).

    Returns:
        Edges (n,) with the graph's weight and the estimate.

    Raises:
        InputError: For no step, iterative semantics, or a graph that does not keep what its targets read.
        CompatibilityError: For a graph of another model.
    """
    meaning = semantics_of(semantics)
    if steps < 1:
        raise InputError(f"steps is {steps}; at least 1 is needed")
    if meaning.kind == "iterative":
        raise InputError("iterative semantics have no gradient here; use direct or constrained")
    pruned, layout = prune_graph(graph, node_threshold, edge_threshold, policy), graph.nodes.layout
    kept = torch.nonzero(pruned.node_mask.cpu()[layout.features]).flatten()
    rows = measurable_targets(graph)
    targets, way = layout.target_start + rows, _Way(model, graph, kept, rows, meaning)
    points = torch.ones(1) if steps == 1 else (torch.arange(steps) + 0.5) / steps
    total = torch.zeros(len(kept) + len(targets), len(kept), dtype=torch.float64)
    for piece in points.split(POINTS_AT_ONCE):
        total += way.gradients(piece).double().cpu()
    place = torch.full((graph.n_nodes,), -1)
    place[kept], place[targets] = torch.arange(len(kept)), len(kept) + torch.arange(len(targets))
    edges = pruned.pruned_edges.to("cpu")
    target, source = edges.target, edges.source
    inside = (source < layout.n_features) & (place[target] >= 0)
    target, source = target[inside], source[inside]
    estimate = total[place[target], place[source]] / steps
    return EdgeEstimates(source, target, edges.weight[inside].double(), estimate, steps, meaning)


class _Way:
    """The prompt with kept features at some share of their activation, differentiable in the shares."""

    def __init__(self, model: Traceable, graph: Graph, kept: Tensor, targets: Tensor, meaning: Semantics) -> None:
        self.model, self.parts = model, model.parts
        require_attention_as_it_is(graph, "an estimate of edges by gradients")
        clean = CleanRun(model, graph, patterns=meaning.freeze_attention)
        self.ids, self.n_pos, n_layers = clean.ids, clean.n_pos, model.parts.config.n_layers
        self.freeze = Freeze(
            model,
            clean.ids,
            meaning.held(n_layers),
            attention=meaning.freeze_attention,
            norms=meaning.norms_frozen(n_layers),
            network=clean.network,
        )
        self.targets = TargetReads(graph, model, clean.network, targets)
        self.rows = graph.active_features[graph.selected_features.cpu()[kept]].long().cpu()
        value = graph.activation_values[graph.selected_features.cpu()[kept]]
        device, dtype = self.parts.device, self.parts.compute_dtype
        self.writes: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {}  # (column, position, row (., D)) by layer
        self.encoders: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        for layer in self.rows[:, 0].unique().tolist():
            column = torch.nonzero(self.rows[:, 0] == layer).flatten()
            position, index = self.rows[column, 1].to(device), self.rows[column, 2]
            decoder = model.transcoders.decoder_rows(layer, index).to(device, dtype)
            decoder = decoder * value[column].to(device, dtype)[:, None, None]
            for slot, target in enumerate(model.transcoders.target_layers(layer)):
                if not self.freeze.layers or target in self.freeze.layers:
                    self.writes.setdefault(target, []).append((column, position, decoder[:, slot]))
            vectors, _ = model.transcoders.reads(layer, index, position, partial(clean.network.transcoder_input, layer))
            self.encoders[layer] = (column, position, vectors.to(device, dtype))

    @torch.enable_grad()
    def gradients(self, points: Tensor) -> Tensor:
        """(n + T, n) derivatives of features' pre-activations and of what targets read, summed over points (B,)."""
        shares = points[:, None].expand(-1, len(self.rows)).to(self.parts.device, self.parts.compute_dtype)
        shares = shares.clone().requires_grad_()
        gradients = []
        for read in self._read_outs(shares):
            found = (
                None  # features of the first layers depend on no share, but perhaps on weights that require gradients
            )
            if read.requires_grad:
                (found,) = torch.autograd.grad(read, shares, retain_graph=True, allow_unused=True)
            gradients.append(torch.zeros_like(shares[0]) if found is None else found.sum(0))
        return torch.stack(gradients)

    def _read_outs(self, shares: Tensor) -> Iterator[Tensor]:
        """Read-outs of one pass, summed over its points."""
        inputs: dict[int, Tensor] = {}
        seen: Seen = {}
        final = self._run(shares, inputs, seen)(self.ids, copies=len(shares), gradients=True).final
        pre: dict[int, Tensor] = {}
        for layer, (column, position, vectors) in self.encoders.items():
            totals = (inputs[layer][:, position] * vectors).sum((0, 2))
            pre |= {int(number): totals[place] for place, number in enumerate(column)}
        yield from (pre[number] for number in range(len(self.rows)))
        yield from self.targets.values(final, seen).sum(0)

    def _run(self, shares: Tensor, inputs: dict[int, Tensor], seen: Seen) -> ModelRun:
        """A run with features at their shares; `inputs` gets what the transcoders read (B, P, D), `seen` what targets do."""
        transcoders = self.model.transcoders

        def read(layer: int, x_BPD: Tensor) -> None:
            inputs[layer] = x_BPD.to(self.parts.compute_dtype)

        def write(layer: int, y_BPD: Tensor) -> Tensor:
            out = y_BPD
            if layer in self.freeze.layers:
                out = self.freeze.output(layer, inputs[layer].flatten(0, 1)).reshape(y_BPD.shape).to(y_BPD)
            for column, position, rows in self.writes.get(layer, ()):
                change = (shares[:, column] - 1)[..., None] * rows
                out = out + shares.new_zeros(y_BPD.shape).index_add(1, position, change).to(y_BPD)
            return out

        own = {transcoders.feature_input_hook: read, transcoders.feature_output_hook: write}
        looks = self.targets.visits(seen).items()
        return self.freeze.run({**own, **{site: in_turn(own.get(site), look) for site, look in looks}})
