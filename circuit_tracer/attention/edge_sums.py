"""Do the heads of an edge add up to the edge? If not, the graph is not of this model, or was changed."""

from __future__ import annotations

import torch
from torch import Tensor

from circuit_tracer.attention.frozen_prompt import FrozenPrompt
from circuit_tracer.errors import CompatibilityError, NumericalError
from circuit_tracer.graph.balance import allowed_gap
from circuit_tracer.graph.graph import Graph


def require_sums(
    graph: Graph, prompt: FrozenPrompt, pairs_2E: Tensor, weight_E: Tensor, sums_nE: Tensor, mass_2E: Tensor
) -> float:
    """The worst residual of E edges (source, target): by how much sums (n, E) miss their weights, relative to the mass of what
    is rounded. mass (2, E): of the parts that are added up, and of the products of single numbers that these parts are made of:
    parts may be small because their products cancel.

    Raises CompatibilityError or NumericalError if a gap is larger than what is allowed (`allowed_gap`).
    """
    gap_E, (parts_E, products_E) = (sums_nE - weight_E).abs().amax(0), torch.maximum(mass_2E, weight_E.abs())
    dtypes = (graph.cfg.dtype, prompt.network.parts.config.dtype)
    residual_E = gap_E / products_E.clamp_min(torch.finfo(torch.float64).tiny)
    allowed_E = allowed_gap(parts_E, products_E, *dtypes, graph.edges.weight.dtype)
    kept_E = gap_E <= allowed_E
    if bool(kept_E.all()):
        return float(residual_E.max())
    worst = int(torch.where(kept_E, -1.0, residual_E.nan_to_num(torch.inf)).argmax())
    names = graph.nodes.ids(pairs_2E[:, worst].to(graph.device))
    found = (
        f"the edge from {names[0]} to {names[1]} is {float(weight_E[worst]):.6g} in the graph, and here the paths through all "
        f"heads add up to {float(sums_nE[0, worst]):.6g}: off by {float(gap_E[worst] / parts_E[worst]):.1e} of their mass, "
        f"promised is {float(allowed_E[worst] / parts_E[worst]):.0e}. "
    )
    if graph.edited:
        raise CompatibilityError(
            found + "The graph's edges were changed after its trace; explain the graph as it was traced"
        )
    if dtypes[0] != dtypes[1] and dtypes[0] is not None:
        raise CompatibilityError(
            found
            + f"It was traced with a model in {dtypes[0]}, and here it is in {dtypes[1]}, whose activations are others: "
            f"load the model in {dtypes[0]}, or trace the prompt again"
        )
    if not prompt.same_weights:
        raise CompatibilityError(
            found + "It was traced with another model or other transcoders, or changed since: load those it "
            "was traced with, or trace the prompt again"
        )
    raise NumericalError(
        found + "Load the model in a dtype of higher precision, as in the trace, or trace the prompt again"
    )
