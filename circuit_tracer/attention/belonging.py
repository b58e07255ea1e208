"""Do the heads of an edge add up to the edge? If not, the graph is not of this model, or was changed."""

from __future__ import annotations

import torch
from torch import Tensor

from circuit_tracer.attention.frozen_prompt import FrozenPrompt
from circuit_tracer.errors import CompatibilityError, NumericalError
from circuit_tracer.graph.balance import PROMISED_RESIDUAL
from circuit_tracer.graph.graph import Graph


def require_sums(
    graph: Graph, prompt: FrozenPrompt, pairs_2E: Tensor, weight_E: Tensor, sums_nE: Tensor, mass_E: Tensor
) -> float:
    """The worst residual of E edges (source, target): by how much sums (n, E) miss their weights, relative to the mass of what
    they are sums of. Raises CompatibilityError or NumericalError if it is above what is promised for the dtypes of
    the model, of the trace and of the edges.
    """
    gap_E = (sums_nE - weight_E).abs().amax(0)
    residual_E = gap_E / torch.maximum(mass_E, weight_E.abs()).clamp_min(torch.finfo(torch.float64).tiny)
    worst = int(residual_E.argmax())
    dtypes = (graph.cfg.dtype, prompt.network.parts.config.dtype, graph.edges.weight.dtype)
    promised = max(PROMISED_RESIDUAL.get(str(dtype).removeprefix("torch."), 0.0) for dtype in dtypes)
    if bool((residual_E <= promised).all()):
        return float(residual_E[worst])
    names = graph.nodes.ids(pairs_2E[:, worst].to(graph.device))
    found = (
        f"the edge from {names[0]} to {names[1]} is {float(weight_E[worst]):.6g} in the graph, and here the paths through all "
        f"heads add up to {float(sums_nE[0, worst]):.6g}: off by {float(residual_E[worst]):.1e} of their mass, promised is "
        f"{promised:.0e}. "
    )
    if graph.edited:
        raise CompatibilityError(
            found + "The graph's edges were changed after its trace; explain the graph as it was traced"
        )
    if not prompt.same_weights:
        raise CompatibilityError(
            found + "It was traced with another model or other transcoders, or changed since: load those it "
            "was traced with, or trace the prompt again"
        )
    raise NumericalError(
        found + "Load the model in a dtype of higher precision, as in the trace, or trace the prompt again"
    )
