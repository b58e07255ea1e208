"""Which neurons are nodes: one backward pass of the frozen network from the targets ranks them all (README.md §9).

In the frozen network every neuron is linear in what it reads, so rows of gradients go on through all MLPs at once, and what a
row is at a neuron's output is the neuron's total effect on the target, over all paths. Nothing of the size of all neurons is
kept: of each layer its largest, and of all layers the largest of these.

Letters: T targets, L layers, P positions, D d_model, F neurons of a layer (of an expert), m tokens that they get.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from circuit_tracer.attribution.read_out import ReadOut
from circuit_tracer.errors import InputError
from circuit_tracer.models.frozen import FrozenNetwork
from circuit_tracer.models.mlps import Firing
from circuit_tracer.progress import told
from circuit_tracer.transcoders.active import ActiveFeatures
from circuit_tracer.transcoders.neurons import Neurons

DEFAULT_NEURONS = 2000  # nodes, where no number is given
PIECE = 2**24  # gradients at neurons that exist at once
Seen = Callable[[int, Firing, Tensor], None]


@dataclass(frozen=True)
class RankedNeurons:
    """Neurons with the largest effects. effect (n,): sum over targets of |weight · activation · total effect of a unit|, of
    each of `active`; share: of the sum over all neurons; count: how many neurons there are that are not zero.
    """

    active: ActiveFeatures
    effect: Tensor
    share: float
    count: int


def rank_neurons(
    network: FrozenNetwork, neurons: Neurons, targets: ReadOut, weight_T: Tensor, keep_P: Tensor, most: int
) -> RankedNeurons:
    """The `most` neurons by their total effects on the targets, at the kept positions, in a graph's order; of some layers, if
    `neurons` are.

    Raises InputError if no neuron at all is active there.
    """
    layers = [_Largest(most) for _ in range(network.n_layers)]
    weight = weight_T.abs()

    def seen(layer: int, firing: Firing, effect_TmF: Tensor) -> None:
        if layer not in neurons.layers:
            return
        value = firing.held.value
        there = (value != 0) & keep_P.to(value.device)[firing.token][:, None]
        unit = torch.einsum("t,tmf->mf", weight.to(effect_TmF), effect_TmF.abs())
        report("ranking neurons", network.n_layers - 1 - layer, network.n_layers)
        layers[layer].add(firing.token, firing.start, value, torch.where(there, unit * value.abs(), -1.0))

    with told() as report:
        total_effects(network, neurons, targets, seen)
    layer = torch.arange(len(layers)).repeat_interleave(torch.tensor([len(each.score) for each in layers]))
    columns = ([getattr(each, name) for each in layers] for name in ("position", "neuron", "value", "score"))
    position, neuron, value, score = (torch.cat(column) for column in columns)
    count, total = sum(each.count for each in layers), sum(each.total for each in layers)
    if count == 0:
        raise InputError(
            f"no neuron is active on any of the {int(keep_P.sum())} attributed positions; give a longer prompt"
        )
    best = score.argsort(descending=True, stable=True)[:most]
    key = (layer[best] * len(keep_P) + position[best]) * neurons.d_transcoder + neuron[best]
    best = best[key.argsort()]
    index = 2 * neuron[best] + (value[best] < 0)
    active = ActiveFeatures(layer[best], position[best], index, value[best].abs())
    return RankedNeurons(active, score[best], float(score[best].sum()) / total if total > 0 else 1.0, count)


def total_effects(network: FrozenNetwork, neurons: Neurons, targets: ReadOut, seen: Seen) -> None:
    """Rows of gradients of the targets (T,) through the whole frozen network, every neuron linear as it is held on the prompt.

    seen(layer, firing, effect (T, m, F)) is shown, from the top layer down, what a unit of each neuron of the firing adds to
    each target. Costs 2 (T + 1) passes of the MLPs, and T of attention.
    """
    n_layers, n_pos = network.n_layers, network.captured.n_pos
    vector = targets.vector.to(network.captured.final)
    g_TPD = vector.new_zeros(len(targets), n_pos, vector.shape[1])

    def join(layer: int) -> None:
        row = torch.nonzero(targets.layer == layer).flatten()
        position = targets.position[row].to(vector.device)
        read = vector[row.to(vector.device)]
        last = layer == n_layers
        at = network.final_norm.adjoint_at(read, position) if last else network.read_adjoint(layer, read, position)
        g_TPD.index_put_((row.to(vector.device), position), at, accumulate=True)

    def join_stream(layer: int, entering: bool) -> None:
        if targets.stream is not None and len(here := targets.stream.at(layer, entering)):
            here = here.to(vector.device, vector.dtype)
            g_TPD.index_put_((here.row, here.position), here.vector, accumulate=True)

    join(n_layers)
    join_stream(n_layers, True)
    for layer in reversed(range(n_layers)):
        g_TPD *= network.layers[layer].parts.multiplier
        gained = _through_mlp(network, neurons, layer, g_TPD, seen)
        if network.parallel:
            network.layers[layer].attend_back_(g_TPD)
        g_TPD += gained
        join(layer)
        join_stream(layer, False)
        if not network.parallel:
            network.layers[layer].attend_back_(g_TPD)
        join_stream(layer, True)


def _through_mlp(network: FrozenNetwork, neurons: Neurons, layer: int, g_TPD: Tensor, seen: Seen) -> Tensor:
    """What rows (T, P, D) above a layer gain through its neurons."""
    mlp, x_PD = neurons.mlp(layer), network.transcoder_input(layer)
    n_targets, n_pos, width = g_TPD.shape
    gained = torch.zeros_like(g_TPD)
    for firing in mlp.firing(x_PD, max(1, PIECE // (n_targets * max(len(units) for units in mlp.units)))):
        place, held = firing.token, firing.held
        at_output = network.write_adjoint(layer, g_TPD[:, place].reshape(-1, width), place.repeat(n_targets))
        effect = (at_output @ firing.units.write.to(at_output.dtype).T).unflatten(0, (n_targets, -1))
        seen(layer, firing, effect)
        back = (effect * held.first) @ firing.units.first.weight.to(effect.dtype)
        if firing.units.second is not None and held.second is not None:
            back += (effect * held.second) @ firing.units.second.weight.to(effect.dtype)
        gained.index_add_(1, place, back if firing.into is None else back * firing.into)
    every = torch.arange(n_pos, device=g_TPD.device).repeat(n_targets)
    return network.read_adjoint(layer, gained.view(-1, width), every).view_as(g_TPD)


@dataclass
class _Largest:
    """The largest neurons of a layer so far, and the sum of all scores; scores below zero do not count."""

    most: int
    position: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    neuron: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    value: Tensor = field(default_factory=lambda: torch.empty(0))
    score: Tensor = field(default_factory=lambda: torch.empty(0))
    total: float = 0.0
    count: int = 0

    def add(self, place_m: Tensor, start: int, value_mF: Tensor, score_mF: Tensor) -> None:
        counts = score_mF >= 0
        self.total += float(score_mF.clamp_min(0).double().sum())
        self.count += int(counts.sum())
        score = score_mF.flatten()
        top = torch.topk(score, min(self.most, len(score))).indices
        top = top[score[top] >= 0]
        row, column = top // score_mF.shape[1], top % score_mF.shape[1]
        new = (place_m[row].cpu(), (column + start).cpu(), value_mF.flatten()[top].cpu(), score[top].cpu())
        old = (self.position, self.neuron, self.value.to(new[2]), self.score.to(new[3]))
        joined = [torch.cat(pair) for pair in zip(old, new, strict=True)]
        best = joined[3].argsort(descending=True, stable=True)[: self.most]
        self.position, self.neuron, self.value, self.score = (column[best] for column in joined)
