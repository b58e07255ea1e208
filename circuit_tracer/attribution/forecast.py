"""The memory plan of a trace that has not begun: from configurations and file headers, no weights.

Letters: L layers, P positions.
"""

from __future__ import annotations

import torch

from circuit_tracer.attribution.memory import free_bytes, held_bytes
from circuit_tracer.attribution.neuron_choice import DEFAULT_NEURONS
from circuit_tracer.attribution.plan import MemoryPlan, plan_memory
from circuit_tracer.attribution.prompt import paired
from circuit_tracer.attribution.trace_sizes import TraceSizes
from circuit_tracer.errors import InputError
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.models.surroundings import fitting_threads
from circuit_tracer.transcoders.activations import TopK
from circuit_tracer.transcoders.base import Transcoders
from circuit_tracer.transcoders.neurons import Neurons
from circuit_tracer.workers import workers_on

ACTIVE_IF_UNKNOWN = 50  # features a layer and token


def forecast(
    outlined: ModelParts,
    transcoders: Transcoders,
    n_pos: int,
    *,
    device: torch.device,
    dtype: torch.dtype,
    active: float | None = None,
    max_feature_nodes: int | None = None,
    n_targets: int = 10,
    batch_size: int = 512,
    memory: int | None = None,
    may_keep_rows: bool = True,
    lazy_encoder: bool = False,
    lazy_decoder: bool = True,
    processes: int = 1,
) -> MemoryPlan:
    """The plan that `attribute` would make on this machine for a prompt of `n_pos` tokens.

    outlined: a model on the meta device (models/outline.py). transcoders: opened lazily. active: features active a layer and
    token; None for the k of TopK dictionaries, `ACTIVE_IF_UNKNOWN` for others; of neurons, those that become nodes count.
    Raises CompatibilityError when the two do not belong together, InputError for a prompt that is too short or too long,
    ResourceError when the trace would not fit.
    """
    transcoders = paired(outlined, transcoders)
    limit = outlined.context_length
    if n_pos < 2 or (limit is not None and n_pos > limit):
        raise InputError(
            f"a prompt of {n_pos} tokens cannot be traced; the model takes 2 to {limit or 'any number of'}"
        )
    counts = torch.zeros(transcoders.n_layers, n_pos, dtype=torch.float64)
    if isinstance(transcoders, Neurons):  # as many as become nodes
        counts += -(-(max_feature_nodes or DEFAULT_NEURONS) // transcoders.n_layers) / (n_pos - 1)
    else:
        counts[list(transcoders.layers)] = active_features(transcoders, active)
    counts[:, 0] = 0  # position 0 is left out
    # whole numbers that add up: of 1.5 every other position has one more
    counts_LP = counts.cumsum(1).round().diff(dim=1, prepend=torch.zeros(len(counts), 1, dtype=torch.float64)).long()
    work = TraceSizes.of(
        outlined.config,
        transcoders,
        counts_LP,
        n_targets=n_targets,
        n_rows=max_feature_nodes,
        item=8 if dtype is torch.float64 else 4,
        processes=processes,
        on_gpu=device.type == "cuda",
    )
    held = loaded_bytes(outlined, transcoders, dtype, lazy_encoder, lazy_decoder)
    now = held_bytes(device)
    budget = memory or max(now + free_bytes(device) // processes, held)
    with fitting_threads(outlined.config.d_model):
        workers = workers_on(device)
    return plan_memory(work, now + held, budget, batch_size, may_keep_rows, workers=workers)


def active_features(transcoders: Transcoders, active: float | None) -> float:
    """Features active a layer and token, as given, as the activation function says, or as assumed."""
    if active is not None:
        if not 0 < active <= transcoders.d_transcoder:
            raise InputError(f"{active} active features a layer and token; expected 1 to {transcoders.d_transcoder}")
        return active
    function = transcoders.activation(transcoders.layers[0])
    return float(function.k) if isinstance(function, TopK) else float(min(ACTIVE_IF_UNKNOWN, transcoders.d_transcoder))


def loaded_bytes(
    outlined: ModelParts, transcoders: Transcoders, dtype: torch.dtype, lazy_encoder: bool, lazy_decoder: bool
) -> int:
    """What the weights of both take once they are loaded; decoders that stay in their files take none."""
    numbers = sum(parameter.numel() for parameter in outlined.model.parameters())
    for layer in () if isinstance(transcoders, Neurons) else transcoders.layers:
        encoder, decoder = transcoders.encoder(layer).shape, transcoders.decoder(layer).shape
        numbers += 2 * encoder.numel() // encoder[1] + transcoders.d_model  # biases, thresholds
        numbers += 0 if lazy_encoder else encoder.numel()
        numbers += 0 if lazy_decoder else decoder.numel()
        numbers += transcoders.d_model**2 if transcoders.skip_connection else 0
    return int(numbers * dtype.itemsize)
