"""From finished rows to a graph: edges among the selected nodes, and for each row what was left out.

Letters: L layers, P positions, N nodes, N_s selected features, K targets, W sources of a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.attribution.attention_reads import AttentionReads
from circuit_tracer.attribution.finished_block import FinishedBlock
from circuit_tracer.attribution.finished_rows import FinishedRows
from circuit_tracer.attribution.frozen_attention import FrozenAttention
from circuit_tracer.attribution.nonzero import places_of_nonzero
from circuit_tracer.attribution.prompt import LinearPrompt, constants
from circuit_tracer.attribution.sources import SourceTable
from circuit_tracer.attribution.targets import TargetRows
from circuit_tracer.attribution.transfers import Arriving, one_ahead
from circuit_tracer.graph.balance import RowBalance
from circuit_tracer.graph.edges import Edges
from circuit_tracer.graph.stream_reads import StreamReads
from circuit_tracer.kernels.device import sent
from circuit_tracer.ranks import Ranks
from circuit_tracer.transcoders.base import Transcoders

_PIECE, _PIECE_ON_GPU = 1 << 21, 1 << 25  # edges that exist outside of their rows at once


def assemble(
    store: FinishedRows, prompt: LinearPrompt, targets: TargetRows, selected: Tensor, transcoders: Transcoders
) -> tuple[Edges, RowBalance]:
    """Edges and balance of the graph whose feature nodes are `selected` (N_s,), ascending canonical indices.

    Edges from active features that are no nodes, and those that were too small to be kept, are not lost: their signed sum and
    their mass stay with each row. Every process of `store.ranks` gets the whole graph.
    """
    bias, pre_activation = _balance(prompt, targets, selected, transcoders)
    layout = _Layout(store, prompt.sources, selected)
    counts = torch.zeros(layout.n_nodes, dtype=torch.int64)
    unselected, unselected_mass = (torch.zeros(layout.n_nodes, dtype=torch.float64) for _ in range(2))
    found = [(piece.node, piece.left_out()) for piece in layout.pieces()]
    if found:
        node, (count, left, mass) = (
            torch.cat([node for node, _ in found]),
            torch.cat([each for _, each in found], 1).cpu(),
        )
        counts[node], unselected[node], unselected_mass[node] = count.long(), left, mass
    edges = _joined(store.ranks, *_filled(layout, counts, pre_activation.dtype))

    order = torch.cat([torch.arange(layout.first_target, layout.n_nodes), torch.arange(len(selected))])
    balance = [torch.zeros(layout.n_nodes, dtype=torch.float64) for _ in range(2)]
    for column, values in zip(balance, (bias, pre_activation), strict=True):
        column[order] = values.double()
    unselected, unselected_mass = store.ranks.sum(unselected), store.ranks.sum(unselected_mass)
    return edges, RowBalance(balance[0], unselected, unselected_mass, balance[1])


def _balance(
    prompt: LinearPrompt, targets: TargetRows, selected: Tensor, transcoders: Transcoders
) -> tuple[Tensor, Tensor]:
    """Bias and pre-activation (K + N_s,) of targets and selected features (README.md §5)."""
    network, active, device = prompt.network, prompt.sources.active, prompt.error.device
    of_targets = targets.read_out
    rows = prompt.read_outs(transcoders, selected)
    own = torch.cat([sent(each, device) for each in (of_targets.constant, rows.constant)])
    layer, position = torch.cat([of_targets.layer, rows.layer]), torch.cat([of_targets.position, rows.position])
    vector = torch.cat([sent(each, device) for each in (of_targets.vector, rows.vector)])
    by_layer = torch.argsort(layer, stable=True)
    depths, sizes = layer.unique(return_counts=True)
    order, at = sent(torch.stack([by_layer, position[by_layer]]), device)
    constants_of, true_of = [], []
    for depth, some, here in zip(depths.tolist(), order.split(sizes.tolist()), at.split(sizes.tolist()), strict=True):
        last = depth == network.n_layers
        fed = prompt.constant_final if last else prompt.constant_inputs[depth]
        read = prompt.captured.final if last else network.transcoder_input(depth)
        vectors = vector.index_select(0, some)
        constants_of.append((vectors * fed[here]).sum(1))
        true_of.append((vectors * read[here]).sum(1))
    found = torch.stack([own[order], torch.cat(constants_of), torch.cat(true_of)]).cpu()
    own, constant, true = torch.empty_like(found).index_copy_(1, by_layer, found)
    if of_targets.stream is not None:
        _add_stream(prompt, transcoders, of_targets.stream, constant, true)
    for first, reads in ((0, of_targets.attention), (len(of_targets), rows.attention)):
        if prompt.attention is not None and reads is not None:
            _add_attention(prompt, transcoders, prompt.attention.frozen, reads, constant[first:], true[first:])
    pre = own + true
    pre[len(of_targets) :] = active.value[selected].to(pre.dtype)
    return own + constant, pre


def _add_stream(
    prompt: LinearPrompt, transcoders: Transcoders, reads: StreamReads, constant: Tensor, true: Tensor
) -> None:
    """What targets that read the stream find there, of the network's constants and in truth, added to (K, ...) in place."""

    def seen(layer: int, entering: bool, resid_PD: Tensor) -> None:
        here = reads.at(layer, entering)
        if len(here):
            for found, stream in ((constant, resid_PD), (true, prompt.network.stream(layer, entering))):
                found.index_add_(0, here.row, (here.vector.to(found) * stream.cpu()[here.position]).sum(1))

    constants(prompt.network, transcoders, prompt.skips, prompt.keep, seen, attention=prompt.attention)


def _add_attention(
    prompt: LinearPrompt,
    transcoders: Transcoders,
    frozen: FrozenAttention,
    reads: AttentionReads,
    constant: Tensor,
    true: Tensor,
) -> None:
    """The same for features of attention, whose dictionary reads what it would in a network of constants."""

    def seen(layer: int, entering: bool, resid_PD: Tensor) -> None:
        if entering and layer in frozen.layers and len(here := reads.at(layer)):
            fed = frozen.input(layer, resid_PD, constants=True)
            constant[here.row] += frozen.pre_activations(layer, fed, here).cpu()
            true[here.row] += frozen.pre_activations(layer, frozen.true_input(layer), here).cpu()

    constants(prompt.network, transcoders, prompt.skips, prompt.keep, seen, attention=prompt.attention)


@dataclass(frozen=True)
class _Piece:
    """Some rows of a block that are nodes, with their edges from nodes, where the rows lie."""

    node: Tensor  # (n,), known to the host
    weight: Tensor  # (n, W')
    total: Tensor  # (n,) float64, of the whole rows
    mass: Tensor  # (n,) float64
    source: Tensor  # (W',) nodes, ascending

    def left_out(self) -> Tensor:
        """(3, n) float64: how many edges each row has, and the sum and mass of what is not among them."""
        count = torch.count_nonzero(self.weight, dim=1)
        left = self.total - self.weight.sum(1, dtype=torch.float64)
        mass = (self.mass - self.weight.abs().sum(1, dtype=torch.float64)).clamp_min(0)
        return torch.stack([count.double(), left, mass])

    def edges(self, count: int) -> tuple[Tensor, Tensor]:
        """Sources and weights (E,) of the edges, row after row, when it is known how many there are."""
        place = places_of_nonzero(self.weight, count)
        source = self.source.repeat(len(self.weight)).index_select(0, place)
        return source, self.weight.flatten().index_select(0, place)


class _Layout:
    """Where rows and sources stand among the nodes: features, errors, tokens, targets."""

    def __init__(self, store: FinishedRows, sources: SourceTable, selected: Tensor) -> None:
        self.store, self.n_pos, self.n_errors = store, sources.n_pos, sources.n_steps
        self.first_error = len(selected)
        self.first_token = self.first_error + self.n_errors * self.n_pos
        self.first_target = self.first_token + self.n_pos
        self.n_nodes = self.first_target + store.n_targets
        self.columns = sources.column[selected]
        self._columns_there = self.columns.to(store.device, non_blocking=True)
        self.node_of_row = torch.full((store.n_targets + store.n_columns,), -1)
        self.node_of_row[: store.n_targets] = torch.arange(self.first_target, self.n_nodes)
        self.node_of_row[store.n_targets + self.columns] = torch.arange(len(selected))
        self._small: list[_Piece] | None = None

    def pieces(self) -> Iterable[_Piece]:
        """The rows of nodes, some at a time; where all of them are no more than one piece, they are made once."""
        if self._small is None and sum(len(block.row) * block.width for block in self.store.blocks) <= _PIECE:
            self._small = list(self._cut())
        return self._cut() if self._small is None else self._small

    def _cut(self) -> Iterator[_Piece]:
        device = self.store.device
        for block in self.store.blocks:
            place, source = self._sources(block)
            node = self.node_of_row[block.row]
            step = max(1, (_PIECE if device.type == "cpu" else _PIECE_ON_GPU) // block.width)
            for first in range(0, len(node), step):
                rows = slice(first, first + step)
                weight, total, mass = (
                    block.dense(rows).to(device).index_select(1, place),
                    block.total[rows],
                    block.mass[rows],
                )
                kept = torch.nonzero(node[rows] >= 0).flatten()
                if 0 < len(kept) < len(node[rows]):
                    there = kept.to(device, non_blocking=True)
                    weight, total, mass = (part.index_select(0, there) for part in (weight, total, mass))
                if len(kept):
                    yield _Piece(node[rows][kept], weight, total, mass, source)

    def _sources(self, block: FinishedBlock) -> tuple[Tensor, Tensor]:
        """Which columns of a block are nodes, and which nodes, ascending: (W',), where the rows lie."""
        place: dict[str, Any] = {"device": self.store.device}
        features = places_of_nonzero(self._columns_there < block.n_columns, int((self.columns < block.n_columns).sum()))
        first = self.first_error + torch.arange(self.n_errors, **place)[:, None] * self.n_pos
        errors = first + torch.arange(block.n_pos, **place)
        tokens = self.first_token + torch.arange(block.n_pos, **place)
        columns = torch.cat([self._columns_there[features], torch.arange(block.n_columns, block.width, **place)])
        return columns, torch.cat([features, errors.flatten(), tokens])


def _filled(layout: _Layout, counts: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """This process' edges: number of each node's (N,), sources (E,) and weights (E,), row after row."""
    ptr = _offsets(counts)
    source = torch.empty(int(ptr[-1]), dtype=torch.int64)
    weight = torch.empty(int(ptr[-1]), dtype=dtype)
    leaving = ((each.node, Arriving(*each.edges(int(counts[each.node].sum())))) for each in layout.pieces())
    for node, arriving in one_ahead(leaving):
        place = _places(ptr[node], counts[node])
        for column, values in zip((source, weight), arriving.get(), strict=True):
            column.scatter_(0, place, values)
    return counts, source, weight


def _joined(ranks: Ranks, counts: Tensor, source: Tensor, weight: Tensor) -> Edges:
    """The edges of all processes; each row is one process' own."""
    if ranks.world == 1:
        return Edges(_offsets(counts), source, weight)
    of_rank = ranks.all_gather(counts[None])
    ptr = _offsets(of_rank.sum(0))
    place = torch.cat([_places(ptr[:-1], own) for own in of_rank])
    sources, weights = ranks.all_gather(source), ranks.all_gather(weight)
    source, weight = torch.empty_like(sources), torch.empty_like(weights)
    source[place], weight[place] = sources, weights
    return Edges(ptr, source, weight)


def _places(first: Tensor, counts: Tensor) -> Tensor:
    """Where the edges of each node go: counts[i] places from first[i] on."""
    return torch.repeat_interleave(first - (counts.cumsum(0) - counts), counts) + torch.arange(int(counts.sum()))


def _offsets(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
