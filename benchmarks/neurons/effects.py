"""What MLP outputs and neurons are said to do to a read-out, by RelP's rules and by plain gradients.

Letters: L layers, P positions, D d_model, F neurons of a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from circuit_tracer.attribution.neuron_choice import total_effects
from circuit_tracer.attribution.read_out import ReadOut
from circuit_tracer.models.capture import capture, logits_at
from circuit_tracer.models.frozen import FrozenNetwork
from circuit_tracer.models.mlps import Firing, Mlp, read_mlp
from circuit_tracer.models.run import ModelRun
from circuit_tracer.transcoders.neurons import Neurons

if TYPE_CHECKING:
    from circuit_tracer.replacement_model import ReplacementModel

Read = Callable[[Tensor], Tensor]  # logits (B, V) at the last position -> (B,)


def network_of(model: ReplacementModel, ids_P: Tensor) -> FrozenNetwork:
    """The frozen network of a prompt, at the places of its neurons."""
    return FrozenNetwork(model.parts, capture(model.parts, ids_P), "mlp.hook_in", "mlp.hook_out")


def mlps_of(model: ReplacementModel) -> list[Mlp]:
    """The neurons of each layer, of a model without experts."""
    return [read_mlp(model.parts, layer) for layer in range(model.parts.config.n_layers)]


def activations(model: ReplacementModel, network: FrozenNetwork) -> list[Tensor]:
    """(P, F) of each layer."""
    return [mlp.activations(network.transcoder_input(layer)) for layer, mlp in enumerate(mlps_of(model))]


def last_logits(model: ReplacementModel, final_BPD: Tensor) -> Tensor:
    """(B, V) before a softcap."""
    return logits_at(model.parts, final_BPD[:, -1], softcap=False)


def by_relp(model: ReplacementModel, network: FrozenNetwork, vector_D: Tensor) -> list[Tensor]:
    """(P, F) of each layer: what a unit of each neuron adds, over all paths, to a vector times the final norm's output at the
    last position.
    """
    n_pos, last = network.captured.n_pos, network.n_layers
    target = ReadOut(torch.tensor([last]), torch.tensor([n_pos - 1]), vector_D[None], torch.zeros(1))
    found = [torch.zeros(n_pos, model.transcoders.n_features(layer) // 2) for layer in range(last)]

    def seen(layer: int, firing: Firing, effect_TmF: Tensor) -> None:
        found[layer][firing.token, firing.start : firing.start + len(firing.units)] = effect_TmF[0]

    with torch.no_grad():
        total_effects(network, Neurons(model.parts, checked=False), target, seen)
    return found


def gradients(model: ReplacementModel, ids_P: Tensor, read: Read) -> Tensor:
    """(L, P, D) plain gradients of what is read, at the MLPs' outputs: norms, attention and activation functions react."""
    n_layers, d_model = model.parts.config.n_layers, model.parts.config.d_model
    added = torch.zeros(n_layers, len(ids_P), d_model, requires_grad=True)

    def add(layer: int, y_BPD: Tensor) -> Tensor:
        return y_BPD + added[layer]

    final = ModelRun(model.parts, {"mlp.hook_out": add})(ids_P, gradients=True).final
    with torch.enable_grad():
        (found,) = torch.autograd.grad(read(last_logits(model, final)).sum(), added)
    return found


def changed(
    model: ReplacementModel,
    ids_P: Tensor,
    changes: list[tuple[int, int, Tensor]],
    read: Read,
    batch_size: int = 32,
) -> Tensor:
    """(n,) what is read when a vector (D,) is added to an MLP's output at a (layer, position), each by itself; all else
    reacts.
    """
    found = []
    for start in range(0, len(changes), batch_size):
        batch = changes[start : start + batch_size]

        def add(layer: int, y_BPD: Tensor, batch: list[tuple[int, int, Tensor]] = batch) -> Tensor:
            y_BPD = y_BPD.clone()
            for number, (at, position, vector_D) in enumerate(batch):
                if at == layer:
                    y_BPD[number, position] += vector_D.to(y_BPD.dtype)
            return y_BPD

        final = ModelRun(model.parts, {"mlp.hook_out": add})(ids_P, copies=len(batch)).final
        found.append(read(last_logits(model, final)))
    return torch.cat(found)
