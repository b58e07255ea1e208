"""The same prompts traced with a dictionary that means nothing: what a fingerprint owes to the method and not to features.

The dictionary has the sizes of the real one, random directions, and as many active features in each layer; its thresholds,
one scale a layer and the bias of each layer are fitted to what the model does on these prompts (labels take no part).

Letters: P positions, N tokens, S layers of the dictionary, D d_model.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.graph.balance import ReconstructionWarning
from circuit_tracer.graph.graph import Graph
from circuit_tracer.models.run import read
from circuit_tracer.transcoders.random_dictionary import random_baseline

Trace = Callable[[Traceable, Mapping[str, Tensor]], Iterable[tuple[str, Graph]]]

FITTED_ON = 4096  # tokens, of the first prompts


def with_random_dictionary(model: Traceable, prompts: Mapping[str, Tensor], seed: int = 0) -> Traceable:
    """The model with a random dictionary fitted on prompts (ids (P,) by row)."""
    inputs, outputs, count = list[Tensor](), list[Tensor](), 0
    for ids in prompts.values():
        x_PSD, y_PSD = _mlps(model, ids)
        counted = torch.ones(len(ids), dtype=torch.bool)
        counted[model.left_out(ids)] = False
        inputs.append(x_PSD[counted])
        outputs.append(y_PSD[counted])
        count += int(counted.sum())
        if count >= FITTED_ON:
            break
    made = random_baseline(model.transcoders, (torch.cat(inputs), torch.cat(outputs)), seed)
    found = Traceable(model.parts, made, model.tokenizer)
    found.prepend_bos = model.prepend_bos
    return found


def random_graphs(
    model: Traceable, prompts: Mapping[str, Tensor], trace: Trace | None = None, seed: int = 0
) -> Iterator[tuple[str, Graph]]:
    """A graph a prompt (ids (P,) by row). trace: how the graphs that they stand beside were traced; None: by `attribute`."""
    made_up = with_random_dictionary(model, prompts, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReconstructionWarning)  # that it rebuilds nothing is what it is for
        yield from (trace or _traced)(made_up, prompts)


def _traced(model: Traceable, prompts: Mapping[str, Tensor]) -> Iterator[tuple[str, Graph]]:
    return ((one, attribute(ids, model)) for one, ids in prompts.items())


@torch.no_grad()
def _mlps(model: Traceable, ids: Tensor) -> tuple[Tensor, Tensor]:
    """What the dictionary reads and writes (P, S, D) of all layers, in the compute dtype."""
    parts, hooks = model.parts, (model.transcoders.feature_input_hook, model.transcoders.feature_output_hook)
    layers = range(model.transcoders.n_layers)
    found = read(parts, ids, [(hook, layer) for hook in dict.fromkeys(hooks) for layer in layers])
    x_PSD, y_PSD = (
        torch.stack([found[hook, layer][0] for layer in layers], 1).to(parts.compute_dtype) for hook in hooks
    )
    return x_PSD, y_PSD
