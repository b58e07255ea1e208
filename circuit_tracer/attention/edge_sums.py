"""Do the heads of an edge add up to the edge? If not, the graph is not of this model, or was changed."""

from __future__ import annotations

import torch
from torch import Tensor

from circuit_tracer.attention.frozen_prompt import FrozenPrompt
from circuit_tracer.errors import CompatibilityError, NumericalError
from circuit_tracer.graph.balance import promised_residual
from circuit_tracer.graph.graph import Graph


def require_sums(
    graph: Graph, prompt: FrozenPrompt, pairs_2E: Tensor, weight_E: Tensor, sums_nE: Tensor, mass_2E: Tensor
) -> float:
    """The worst residual of E edges (source, target): by how much sums (n, E) miss their weights, relative to the mass of what
    is rounded. mass (2, E): of the parts that are added up, and of the products of single numbers that these parts are made of:
    parts may be small because their products cancel.

    Raises CompatibilityError or NumericalError if a gap is larger than what is promised for the dtypes of the model, of the
    trace and of the edges, of the parts, and for those that sums were made in, of the products.
    """
    gap_E, (parts_E, products_E) = (sums_nE - weight_E).abs().amax(0), torch.maximum(mass_2E, weight_E.abs())
    dtypes = (graph.cfg.dtype, prompt.network.parts.config.dtype)
    of_parts = promised_residual(*dtypes, graph.edges.weight.dtype)
    of_products = promised_residual(*("float64" if str(dtype) == "float64" else "float32" for dtype in dtypes))
    residual_E = gap_E / products_E.clamp_min(torch.finfo(torch.float64).tiny)
    kept_E = gap_E <= of_parts * parts_E + of_products * products_E
    if bool(kept_E.all()):
        return float(residual_E.max())
    worst = int(torch.where(kept_E, -1.0, residual_E.nan_to_num(torch.inf)).argmax())
    names = graph.nodes.ids(pairs_2E[:, worst].to(graph.device))
    found = (
        f"the edge from {names[0]} to {names[1]} is {float(weight_E[worst]):.6g} in the graph, and here the paths through all "
        f"heads add up to {float(sums_nE[0, worst]):.6g}: off by {float(gap_E[worst] / parts_E[worst]):.1e} of their mass, "
        f"promised is {of_parts:.0e}. "
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
