"""Where rows read the residual stream, and with which vectors: everything between a row and the stream is frozen."""

from __future__ import annotations

import torch

from circuit_tracer.attribution.read_out import ReadOut
from circuit_tracer.graph.stream_terms import StreamTerms
from circuit_tracer.models.frozen import FrozenNetwork


def stream_reads(network: FrozenNetwork, rows: ReadOut) -> StreamTerms:
    """What the rows (T,) read of the stream, on the network's device in its compute dtype."""
    device, dtype, last = network.parts.device, network.parts.compute_dtype, network.n_layers
    row, place = torch.arange(len(rows), device=device), torch.empty(len(rows), dtype=torch.int64, device=device)
    position = rows.position.to(device)
    vector = torch.empty(len(rows), network.parts.config.d_model, dtype=dtype, device=device)
    for layer in rows.layer.unique().tolist():
        here = (rows.layer == layer).to(device)
        read = rows.vector.to(device=device, dtype=dtype)[here]
        if layer == last:
            vector[here], place[here] = network.final_norm.adjoint_at(read, position[here]), 2 * last
        else:
            vector[here], place[here] = network.read_adjoint(layer, read, position[here]), 2 * layer + 1
    return StreamTerms(row, place, position, vector)
