"""Entities swapped at the city: by their features, and by what should not do it (random features, raw neurons).

Shapes: E entities, L layers, M neurons of an MLP, B prompts, P positions, D d_model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from circuit_tracer.demo import world
from circuit_tracer.demo.capture import Rule
from circuit_tracer.demo.evaluate import STRENGTHS, answers_turned, swap_test
from circuit_tracer.demo.probes import Features, PromptBatch, batches, setting, subject_inputs, swapped
from circuit_tracer.demo.world import Entity, Statement
from circuit_tracer.transcoders import CrossLayerTranscoder

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

MANY = 10  # as many neurons again as features, given to the neurons as an advantage

Intervene = Callable[[PromptBatch, Sequence[Entity]], Rule]
Shares = dict[str, float]


def swaps(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    transcoder: CrossLayerTranscoder,
    features: Mapping[str, Features],
    statements: Sequence[Statement],
) -> dict[str, Shares]:
    """Share of the answers that become the other entity's, by intervention and strength (times the usual activation).

    "features": the entity's set to 0, the other's to their usual activation. "random features": as many other features of the
    same layers, at the same values. "own features off": only the first half, so what chance has to offer (many countries
    share a currency). "neurons": as many neurons of the same layers, those that tell the entity best from others, taken to
    where they are elsewhere, and the other's to their usual activation; "10 times as many neurons" likewise.
    """
    chance = random.Random(0)

    def by(edit: Callable[[str, str], Features]) -> Shares:
        def intervene(batch: PromptBatch, others: Sequence[Entity]) -> Rule:
            pairs = zip(batch.statements, others, strict=True)
            return setting(transcoder, batch.subject_B, [edit(str(one.entity), other.name) for one, other in pairs])

        return answers_turned(model, tokenizer, statements, intervene)

    def random_swap(strength: float) -> Callable[[str, str], Features]:
        return lambda true, other: random_features(features, true, other, strength, transcoder, chance)

    def neuron_swap(times: int) -> Shares:
        return _by_strength(
            lambda s: answers_turned(model, tokenizer, statements, neurons.swap(model, features, s, times))
        )

    neurons = Neurons.of_entities(model, tokenizer)
    off = by(lambda true, _: dict.fromkeys(features[true], 0.0))
    return {
        "features": _by_strength(lambda s: swap_test(model, tokenizer, transcoder, features, statements, s)),
        "random features": _by_strength(lambda s: by(random_swap(s))),
        "own features off": _by_strength(lambda _: off),
        "neurons": neuron_swap(1),
        f"{MANY} times as many neurons": neuron_swap(MANY),
    }


def _by_strength(test: Callable[[float], Shares]) -> Shares:
    return {str(strength): test(strength)["all"] for strength in STRENGTHS}


def random_features(
    features: Mapping[str, Features],
    true: str,
    other: str,
    strength: float,
    transcoder: CrossLayerTranscoder,
    chance: random.Random,
) -> Features:
    """The edit of `swapped` with random features of the same layers, none of them a feature of either entity."""
    taken = {*features[true], *features[other]}
    edit: Features = {}
    for (layer, feature), value in swapped(features, true, other, strength).items():
        drawn = feature
        while (layer, drawn) in taken:
            drawn = chance.randrange(transcoder.n_features(layer))
        taken.add((layer, drawn))
        edit[layer, drawn] = value
    return edit


@dataclass(frozen=True)
class Neurons:
    """MLP neurons at the cities that may be looked at: the mean on each entity's prompts and on all others', and how well a
    neuron tells them apart (difference of means, in standard deviations). All (E, L, M)."""

    usual_ELM: Tensor
    elsewhere_ELM: Tensor
    separation_ELM: Tensor

    @classmethod
    def of_entities(cls, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Neurons:
        """Measured where `entity_features` looks."""
        names = [one.name for one in world.entities()]
        rows, which = [], []
        for batch in batches(tokenizer, world.seen_two_hops()):
            x_LBD = subject_inputs(model, batch)
            rows.append(torch.stack([neurons(model, layer, x_BD) for layer, x_BD in enumerate(x_LBD)], 1))
            which += [names.index(str(one.entity)) for one in batch.statements]
        all_NLM, entity_N = torch.cat(rows), torch.tensor(which)
        count_E = torch.bincount(entity_N, minlength=len(names))[:, None, None]
        total_ELM = torch.zeros(len(names), *all_NLM.shape[1:]).index_add_(0, entity_N, all_NLM)
        usual_ELM = total_ELM / count_E
        elsewhere_ELM = (total_ELM.sum(0) - total_ELM) / (len(entity_N) - count_E)
        return cls(usual_ELM, elsewhere_ELM, (usual_ELM - elsewhere_ELM).abs() / all_NLM.std(0))

    def best(self, entity: str, features: Mapping[str, Features], times: int) -> Iterator[tuple[int, Tensor, int]]:
        """(layer, neurons, number of the entity) of each layer: ``times`` as many as the entity has features there."""
        which = [one.name for one in world.entities()].index(entity)
        for layer in sorted({layer for layer, _ in features[entity]}):
            count = times * sum(at == layer for at, _ in features[entity])
            yield layer, self.separation_ELM[which, layer].topk(count).indices, which

    def swap(self, model: LlamaForCausalLM, features: Mapping[str, Features], strength: float, times: int) -> Intervene:
        """The swap of entities by neurons."""

        def values(entity: str, mean_ELM: Tensor) -> Features:
            chosen = self.best(entity, features, times)
            return {(layer, int(m)): mean_ELM[which, layer, m].item() for layer, found, which in chosen for m in found}

        def intervene(batch: PromptBatch, others: Sequence[Entity]) -> Rule:
            pairs = zip(batch.statements, others, strict=True)
            edits = [
                values(str(one.entity), self.elsewhere_ELM) | values(other.name, strength * self.usual_ELM)
                for one, other in pairs
            ]
            return setting_neurons(model, batch.subject_B, edits)

        return intervene


@torch.no_grad()
def neurons(model: LlamaForCausalLM, layer: int, x_BD: Tensor) -> Tensor:
    """(B, M) what the MLP's output projection reads, for inputs in front of the MLP's norm."""
    block = model.model.layers[layer]
    normed_BD = block.post_attention_layernorm(x_BD)
    return block.mlp.act_fn(block.mlp.gate_proj(normed_BD)) * block.mlp.up_proj(normed_BD)


def setting_neurons(model: LlamaForCausalLM, position_B: Tensor, values: Sequence[Features]) -> Rule:
    """`setting` for neurons: ``values[b]`` are (layer, neuron) -> activation at one position of each prompt."""
    rows_B = torch.arange(len(position_B))

    def rule(layer: int, x_BPD: Tensor, y_BPD: Tensor) -> Tensor:
        active_BM = neurons(model, layer, x_BPD[rows_B, position_B])
        change_BM = torch.zeros_like(active_BM)
        for row, edit in enumerate(values):
            for (at, neuron), value in edit.items():
                if at == layer:
                    change_BM[row, neuron] = value - active_BM[row, neuron]
        y_BPD = y_BPD.clone()
        y_BPD[rows_B, position_B] += change_BM @ model.model.layers[layer].mlp.down_proj.weight.T
        return y_BPD

    return rule
