"""First and last heads of many edges, layer by layer, in one sweep (README.md §4).

First heads and hops need of a source only what it writes at its own position; last heads need of a target only what it reads
at its own. So one side of the edges is a table of vectors, and the other is swept. A gradient and its slope: scale every
pattern by lambda, then the gradient is a polynomial in lambda, whose derivative at 1 counts each path once for each head.

Letters: E edges, S sources, T targets, N rows in flight, n terms, L layers, P positions, D d_model, H heads, K key/value heads,
d d_head.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from circuit_tracer.attention.edge_set import EdgeSet
from circuit_tracer.attention.head_maps import HeadMaps
from circuit_tracer.attention.stream_terms import StreamTerms

GATHERED = 2**25  # bytes of vectors of edges at once


def first_by_layer(edges: EdgeSet, slope_E: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(layer, (E, H) by first head, (E,) mass of their products) from the top down. Adds to slope (E,) the sum over hops k of
    k A_k.
    """
    stretch, parallel, at_S = edges.stretch, edges.stretch.network.parallel, edges.source_position
    entering, written = _without_heads(edges)
    top_T, bottom = edges.top, int(edges.bottom.min()) // 2
    g = stretch.zeros(2 * edges.n_targets).unflatten(0, (2, -1))  # gradients and their slopes
    for layer in range(int(top_T.max()) // 2, bottom - 1, -1):
        n = int((top_T > 2 * layer).sum())  # rows are sorted by where they join
        if n:
            at_mid = torch.zeros_like(g[:, :n])
            stretch.add_(at_mid[0], edges.reads, 2 * layer + 1)
            if (skipped := stretch.skipped_back(layer, g[:, :n].flatten(0, 1))) is not None:
                at_mid += skipped.view_as(at_mid)
            behind = g[:, :n].clone() if parallel else g[:, :n] + at_mid
            g[:, :n] += at_mid
            heads = stretch.heads(layer)
            unmixed = heads.unmixed(heads.reads(behind.flatten(0, 1))).unflatten(0, (2, n))
            here = edges.target < n
            first_EH, size_E = g.new_zeros(len(edges), heads.n_heads), g.new_zeros(len(edges))
            first_EH[here], size_E[here] = _met(
                heads, unmixed[0], entering[layer], edges.target[here], edges.source[here], at_S
            )
            yield layer, first_EH, size_E
            unmixed[1] += unmixed[0]
            g[:, :n] += heads.gathered(unmixed.flatten(0, 1)).view_as(behind)
        stretch.add_(g[0], edges.reads, 2 * layer)
        slope_E += _products(g[1], written[layer], edges, at_S).cpu()


def last_by_layer(edges: EdgeSet) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(layer, (E, H) by last head, (E,) mass of their products) from the bottom up."""
    stretch, bottom_S, reads = edges.stretch, edges.bottom, edges.reads
    behind = _read_without_heads(edges)
    edge_m, term_m = reads.of_rows(edges.target)
    x = stretch.zeros(edges.n_sources)
    for layer in range(int(bottom_S.min()) // 2, -(-int(edges.top.max()) // 2)):
        stretch.add_(x, edges.writes, 2 * layer)
        n = int((bottom_S <= 2 * layer).sum())  # rows are sorted by where they join
        heads, now = stretch.heads(layer), x[:n]
        mixed, read = heads.mixed(heads.values(now)), heads.reads(behind[layer], reads.position - stretch.start)
        last_EH, size_E = x.new_zeros(len(edges), heads.n_heads), x.new_zeros(len(edges))
        started = edges.source[edge_m] < n
        for edge, term in zip(*(m[started].split(_at_once(read[0])) for m in (edge_m, term_m)), strict=True):
            products = mixed[edges.source[edge], reads.position[term] - stretch.start] * read[term]
            last_EH.index_add_(0, edge, products.sum(-1))
            size_E.index_add_(0, edge, products.abs_().sum((1, 2)))
        yield layer, last_EH, size_E
        attended = heads.joined(mixed)
        skipped = stretch.skipped(layer, now if stretch.network.parallel else now + attended)
        now += attended
        if skipped is not None:
            now += skipped


def direct_of(edges: EdgeSet) -> tuple[Tensor, Tensor]:
    """(E,) float64: what runs through no head, and the mass of its products."""
    entering, _ = _without_heads(edges)
    edge_m, term_m = edges.reads.of_rows(edges.target)
    source_m, reads = edges.source[edge_m], edges.reads
    same = reads.position[term_m] - edges.stretch.start == edges.source_position[source_m]
    edge_m, term_m, source_m = edge_m[same], term_m[same], source_m[same]
    found, size = torch.zeros(2, len(edges), dtype=torch.float64, device=edge_m.device)
    for edge, term, source in zip(
        *(m.split(_at_once(reads.vector[:1])) for m in (edge_m, term_m, source_m)), strict=True
    ):
        products = entering[reads.place[term] // 2, source] * reads.vector[term]
        found.index_add_(0, edge, products.sum(-1).double())
        size.index_add_(0, edge, products.abs_().sum(-1).double())
    return found.cpu(), size.cpu()


def _without_heads(edges: EdgeSet) -> tuple[Tensor, Tensor]:
    """(L + 1, S, D): what of each source enters each layer, at its position, through no head; and what it writes there."""
    stretch, writes = edges.stretch, edges.writes
    n_layers, position = stretch.network.n_layers, edges.source_position + stretch.start
    written = writes.vector.new_zeros(n_layers + 1, edges.n_sources, writes.vector.shape[1])
    written.index_put_((writes.place // 2, writes.row), writes.vector, accumulate=True)
    entering = written.clone()
    for layer in range(n_layers):
        entering[layer + 1] += entering[layer]
        if (skipped := stretch.skip_at(layer, entering[layer], position)) is not None:
            entering[layer + 1] += skipped
    return entering, written


def _read_without_heads(edges: EdgeSet) -> Tensor:
    """(L, n, D): what each term of the targets reads of what attention of a layer writes, with no head above."""
    stretch, reads = edges.stretch, edges.reads
    g, found = torch.zeros_like(reads.vector), []
    for layer in reversed(range(stretch.network.n_layers)):
        g = g + _at_place(reads, 2 * layer + 2)
        at_mid = _at_place(reads, 2 * layer + 1)
        if (skipped := stretch.skip_back_at(layer, g, reads.position)) is not None:
            at_mid = at_mid + skipped
        found.append(g if stretch.network.parallel else g + at_mid)
        g = g + at_mid
    return torch.stack(found[::-1])


def _at_place(terms: StreamTerms, place: int) -> Tensor:
    """(n, D): vectors of the terms at a place, zero for others."""
    return terms.vector * (terms.place == place)[:, None]


def _met(
    heads: HeadMaps, unmixed_NPHd: Tensor, entering_SD: Tensor, row_e: Tensor, source_e: Tensor, at_S: Tensor
) -> tuple[Tensor, Tensor]:
    """(e, H): what gradients read, through each head, of what sources hold at their own positions; (e,) mass of products."""
    values, found, sizes = heads.values(entering_SD, at_S), [], []
    for row, source in zip(*(e.split(_at_once(unmixed_NPHd[0, :1])) for e in (row_e, source_e)), strict=True):
        products = unmixed_NPHd[row, at_S[source]].unflatten(1, (heads.n_kv, -1)) * values[source][:, :, None]
        found.append(products.sum(-1).flatten(1))
        sizes.append(products.abs_().sum((1, 2, 3)))
    return torch.cat(found), torch.cat(sizes)


def _products(g_TPD: Tensor, written_SD: Tensor, edges: EdgeSet, at_S: Tensor) -> Tensor:
    """(E,) float64: what gradients read of what sources write."""
    if not bool(written_SD.any()):
        return torch.zeros(len(edges), dtype=torch.float64)
    found = [
        (g_TPD[target, at_S[source]] * written_SD[source]).sum(-1).double()
        for target, source in zip(
            *(e.split(_at_once(written_SD[:1])) for e in (edges.target, edges.source)), strict=True
        )
    ]
    return torch.cat(found)


def _at_once(like: Tensor) -> int:
    """How many edges are looked at together, whose vectors are as large as this."""
    return max(1, GATHERED // like.nbytes)
