"""What graphs and dictionaries of a toy claim, in numbers that are known for the circuit itself.

Letters: L layers, N nodes of a graph or prompts, M units, F features, D width, B prompts of a pass, P positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.demo.capture import Rule, mlp_rule
from circuit_tracer.demo.probes import predictions, replacing
from circuit_tracer.demo.toys.dictionaries import contexts
from circuit_tracer.demo.toys.network import Toy, language_model, replacement_model
from circuit_tracer.graph.graph import Graph
from circuit_tracer.transcoders.base import Transcoders

ALIKE = 0.9  # correlation, over all prompts, of a feature being active and a unit being active
ON_PATH = 0.01  # share of the answer's input that runs through a node
NUDGES, NUDGE = 32, 0.02  # how many, and how far an input is moved


@dataclass(frozen=True)
class Flow:
    """How the answer's input splits over the nodes of a graph when every edge counts by its size: shares along all paths.

    through_N: share that runs through each node. depth: mean number of features on the paths from a token to the answer, those
    without any feature left out. from_P: share of these paths that begin at each token.
    """

    through_N: Tensor
    depth: float
    from_P: Tensor

    @classmethod
    def of(cls, graph: Graph) -> Flow:
        """Of the paths into the first target."""
        layout = graph.nodes.layout
        direct_NN = graph.adjacency_matrix.double().abs()
        direct_NN /= direct_NN.sum(1, keepdim=True).clamp(min=1e-30)
        paths_NN = torch.linalg.inv(torch.eye(len(direct_NN), dtype=torch.float64) - direct_NN)
        answer = layout.target_start
        through_N = paths_NN[answer]
        from_P = (through_N - direct_NN[answer])[layout.tokens]
        to_tokens_N = paths_NN[:, layout.tokens].sum(1)
        features = (through_N * to_tokens_N)[layout.features].sum()
        return cls(through_N, float(features / from_P.sum()), from_P / from_P.sum())


@torch.no_grad()
def quality(toy: Toy, transcoders: Transcoders) -> dict[str, float]:
    """Error and active features over all prompts as they are drawn in training; means of layers."""
    data = contexts(toy)
    active_LNF = transcoders.encode(data.x_LND)
    share_N1 = data.count_N[:, None]
    error_L = (share_N1 * (transcoders.decode(active_LNF) - data.y_LND).square()).sum((1, 2))
    mean_L1D = (share_N1 * data.y_LND).sum(1, keepdim=True)
    spread_L = (share_N1 * (data.y_LND - mean_L1D).square()).sum((1, 2))
    l0 = ((active_LNF > 0).sum(-1) * data.count_N).sum(1)
    return {"NMSE": float((error_L / spread_L).mean()), "active features": float(l0.sum())}


def flows(toy: Toy, transcoders: Transcoders, prompts: Sequence[int]) -> list[tuple[Graph, Flow]]:
    """The graphs of some prompts."""
    model = replacement_model(toy, transcoders)
    graphs = [attribute(toy.prompts_NP[prompt], model) for prompt in prompts]
    return [(graph, Flow.of(graph)) for graph in graphs]


@torch.no_grad()
def alike(toy: Toy, transcoders: Transcoders) -> list[Tensor]:
    """For each layer, (M, F) bool: which features are active on the prompts that a unit is active on, and no others."""
    x_LND = contexts(toy).x_LND
    found = []
    for layer, units in enumerate(toy.layers):
        unit_NM = torch.relu(x_LND[layer] @ units.read_MD.T + units.bias_M) > 0
        feature_NF = transcoders.encode_layer(x_LND[layer], layer) > 0
        columns = (unit_NM.double(), feature_NF.double())
        centred = [(one - one.mean(0)) / one.std(0).clamp(min=1e-9) for one in columns]
        found.append(centred[0].T @ centred[1] / (len(unit_NM) - 1) >= ALIKE)
    return found


def units_on_path(graph: Graph, flow: Flow, layer: int, alike_MF: Tensor) -> Tensor:
    """(M,) bool: the units of a layer that a feature on a path to the answer, at the last token, is alike."""
    nodes, count = graph.nodes, graph.nodes.layout.n_features
    here_N = (nodes.layer[:count] == layer) & (nodes.position[:count] == graph.n_pos - 1)
    here_N &= flow.through_N[:count] > ON_PATH
    return alike_MF[:, nodes.feature[:count][here_N]].any(1)


@torch.no_grad()
def response(toy: Toy, transcoders: Transcoders, prompts_BP: Tensor, layer: int, unit: int) -> tuple[float, float]:
    """Change of the answer's logit when a unit's output is taken away behind its layer: (the model's, the dictionary's).

    The dictionary's: every MLP replaced, so that later features are encoded anew. Sums over prompts that the unit is active on.
    """
    model, units = language_model(toy), toy.layers[layer]

    def without(rule: Rule) -> Rule:
        def changed(at: int, x_BPD: Tensor, y_BPD: Tensor) -> Tensor:
            result_BPD = rule(at, x_BPD, y_BPD)
            return result_BPD - units.write_MD[unit] * own_B[:, None, None] if at == layer else result_BPD

        return changed

    def watch(at: int, x_BPD: Tensor, y_BPD: Tensor) -> Tensor:
        if at == layer:
            active_BPM = torch.relu(x_BPD @ units.read_MD.T + units.bias_M)
            own_B.copy_(active_BPM[:, -1, unit])
        return y_BPD

    own_B = torch.zeros(len(prompts_BP))
    answer_B1 = predictions(model, prompts_BP, watch).argmax(1, keepdim=True)
    changes = []
    for rule in (lambda at, x_BPD, y_BPD: y_BPD, replacing(transcoders)):
        moved_BV = predictions(model, prompts_BP, without(rule)) - predictions(model, prompts_BP, rule)
        changes.append(float(moved_BV.gather(1, answer_B1).sum()))
    return changes[0], changes[1]


@torch.no_grad()
def derivative_agreement(toy: Toy, transcoders: Transcoders, prompts: Sequence[int]) -> float:
    """Mean cosine between the model's and the dictionary's changes of all MLP outputs when the given inputs move a little."""
    model, chance = language_model(toy), torch.Generator().manual_seed(0)

    def outputs(embedded_BPD: Tensor, rule: Rule) -> Tensor:
        seen: list[Tensor] = []

        def watch(at: int, x_BPD: Tensor, y_BPD: Tensor) -> Tensor:
            seen.append(rule(at, x_BPD, y_BPD))
            return seen[-1]

        with mlp_rule(model, watch):
            model.model(inputs_embeds=embedded_BPD, use_cache=False)
        return torch.cat([y_BPD[:, -1] for y_BPD in seen], 1)

    found = []
    for prompt in prompts:
        embedded_1PD = model.model.embed_tokens(toy.prompts_NP[prompt : prompt + 1])
        scale_BP1 = 1 + NUDGE * torch.randn(NUDGES, embedded_1PD.shape[1], 1, generator=chance)
        own, dictionary = (
            outputs(embedded_1PD * scale_BP1, rule) - outputs(embedded_1PD, rule)
            for rule in (lambda at, x_BPD, y_BPD: y_BPD, replacing(transcoders))
        )
        found.append(torch.cosine_similarity(own, dictionary, dim=1).mean())
    return float(torch.stack(found).mean())
