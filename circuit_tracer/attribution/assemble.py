"""From finished rows to a graph: edges among the selected nodes, and for each row what was left out.

Letters: L layers, P positions, N nodes, N_s selected features, K targets, T rows of a block.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from circuit_tracer.attribution.rows import RowStore, StoredBlock
from circuit_tracer.attribution.sources import SourceTable
from circuit_tracer.graph.balance import RowBalance
from circuit_tracer.graph.edges import Edges


def assemble(
    store: RowStore, sources: SourceTable, selected: Tensor, n_layers: int, bias: Tensor, pre_activation: Tensor
) -> tuple[Edges, RowBalance]:
    """Edges and balance of the graph whose feature nodes are `selected` (N_s,), ascending canonical indices.

    bias, pre_activation: (K + N_s,), targets first, then selected features. Edges from active features that are no nodes
    are not lost: their signed sum and their mass stay with each row.
    """
    n_pos, n_selected, n_targets = sources.n_pos, len(selected), store.n_targets
    first_error, first_token = n_selected, n_selected + n_layers * n_pos
    first_target = first_token + n_pos
    n_nodes = first_target + n_targets
    node_of_row = torch.full((n_targets + store.n_columns,), -1)
    node_of_row[:n_targets] = torch.arange(first_target, n_nodes)
    node_of_row[n_targets + sources.column[selected]] = torch.arange(n_selected)

    balance = {
        name: torch.zeros(n_nodes, dtype=torch.float64) for name in ("bias", "unselected", "unselected_mass", "pre")
    }
    order = torch.cat([torch.arange(first_target, n_nodes), torch.arange(n_selected)])
    balance["bias"][order], balance["pre"][order] = bias.double().cpu(), pre_activation.double().cpu()

    counts, pieces = torch.zeros(n_nodes, dtype=torch.int64), []
    for block in store.blocks:
        for node, source, weight, row in _dense_pieces(
            block, node_of_row, sources, selected, first_error, first_token, n_layers
        ):
            mask = weight != 0
            counts[node] = mask.sum(1)
            pieces.append((node, source.expand_as(weight)[mask], weight[mask], counts[node]))
            kept, mass = weight.sum(1, dtype=torch.float64), weight.abs().sum(1, dtype=torch.float64)
            balance["unselected"][node] = block.total[row].cpu() - kept
            balance["unselected_mass"][node] = (block.mass[row].cpu() - mass).clamp_min(0)
    edges = _join(n_nodes, counts, pieces, pre_activation.dtype)
    return edges, RowBalance(balance["bias"], balance["unselected"], balance["unselected_mass"], balance["pre"])


def _dense_pieces(
    block: StoredBlock,
    node_of_row: Tensor,
    sources: SourceTable,
    selected: Tensor,
    first_error: int,
    first_token: int,
    n_layers: int,
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """A block's selected rows, a slice at a time: nodes (T,), source nodes (S,) ascending, weights (T, S), rows (T,)."""
    n_pos = block.edges.token.shape[1]
    columns = sources.column[selected]
    reach = columns < block.edges.feature.shape[1]
    source = torch.cat(
        [
            torch.nonzero(reach).flatten(),
            (first_error + torch.arange(n_layers)[:, None] * sources.n_pos + torch.arange(n_pos)).flatten(),
            first_token + torch.arange(n_pos),
        ]
    )
    wanted = torch.nonzero(node_of_row[block.row] >= 0).flatten()
    step = max(1, (1 << 24) // max(1, len(source)))
    for row in wanted.split(step):
        at = row.to(block.edges.token.device)
        feature = block.edges.feature[at][:, columns[reach].to(at.device)]
        weight = torch.cat([feature, block.edges.error[at].flatten(1), block.edges.token[at]], dim=1).cpu()
        yield node_of_row[block.row[row]], source, weight, row


def _join(
    n_nodes: int, counts: Tensor, pieces: list[tuple[Tensor, Tensor, Tensor, Tensor]], dtype: torch.dtype
) -> Edges:
    """Compressed rows from pieces that each hold whole rows, row after row."""
    ptr = torch.zeros(n_nodes + 1, dtype=torch.int64)
    torch.cumsum(counts, 0, out=ptr[1:])
    source = torch.empty(int(ptr[-1]), dtype=torch.int64)
    weight = torch.empty(int(ptr[-1]), dtype=dtype)
    for node, sources, weights, count in pieces:
        start = torch.cumsum(count, 0) - count
        place = torch.repeat_interleave(ptr[node] - start, count) + torch.arange(len(sources))
        source[place], weight[place] = sources, weights
    return Edges(ptr, source, weight)
