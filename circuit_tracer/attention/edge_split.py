"""One edge split by first head, last head, any head and number of hops (README.md §2), among the positions it can run through.

Letters: L layers, H heads, P positions of the stretch, D d_model, K key/value heads, d d_head.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from circuit_tracer.attention.stream_terms import StreamTerms
from circuit_tracer.attention.stretch import Stretch


@dataclass
class EdgeSplit:
    """first, last, through: (L, H). alone: (L, H), paths of this one head. hops: (n,).

    entering: by layer, (2, P, D): what of the source enters it, through no head and through all. unmixed: by layer,
    (2, P, H, d): what the target reads of each head's values, with no head above and with all. ends: by layer, (P, D): what it
    reads of what attention writes, with no head above.
    """

    stretch: Stretch
    source: StreamTerms
    target: StreamTerms
    first: Tensor
    last: Tensor
    through: Tensor
    alone: Tensor
    hops: Tensor
    entering: dict[int, Tensor] = field(default_factory=dict)
    unmixed: dict[int, Tensor] = field(default_factory=dict)
    ends: dict[int, Tensor] = field(default_factory=dict)

    @cached_property
    def layers(self) -> range:
        """Layers whose attention the edge can run through."""
        return attention_layers(self.stretch, self.source, self.target)

    @cached_property
    def end(self) -> tuple[int, int]:
        """Where the source begins and the target ends, in half layers."""
        return int(self.source.place.min()), int(self.target.place.max())


def attention_layers(stretch: Stretch, source: StreamTerms, target: StreamTerms) -> range:
    """Layers whose attention can carry something from source to target: behind the first write, and before the last read."""
    behind = 2 if stretch.network.parallel else 1  # half layers above what entered, attention's output is first read
    return range((int(source.place.min()) + 1) // 2, (int(target.place.max()) - behind) // 2 + 1)


def split_edge(stretch: Stretch, source: StreamTerms, target: StreamTerms) -> EdgeSplit:
    """The split of one edge; all terms of `source` and of `target` are of row 0."""
    n_layers, n_heads = stretch.network.n_layers, stretch.network.parts.config.n_heads
    first, last, through, alone = torch.zeros(4, n_layers, n_heads, dtype=torch.float64)
    hops = torch.zeros(len(attention_layers(stretch, source, target)) + 1, dtype=torch.float64)
    split = EdgeSplit(stretch, source, target, first, last, through, alone, hops)
    _forwards(split)
    _backwards(split)
    return split


def _forwards(split: EdgeSplit) -> None:
    """Fields by the number of heads they came through, upwards; what the target reads of each."""
    stretch, layers, (start, end) = split.stretch, split.layers, split.end
    fields = stretch.zeros(len(split.hops))
    used = 1  # fields that hold anything
    for layer in range(start // 2, end // 2 + 1):
        stretch.add_(fields, split.source, 2 * layer)
        split.hops += _read(fields, split.target, 2 * layer, stretch)
        if 2 * layer == end:
            return
        behind = fields.clone()
        if layer in layers:
            heads, now = stretch.heads(layer), fields[:used]
            split.entering[layer] = torch.stack([now[0], now.sum(0)])
            behind[1 : used + 1] += heads.joined(heads.mixed(heads.values(now)))
            used += 1
        mid = fields if stretch.network.parallel else behind
        split.hops += _read(mid, split.target, 2 * layer + 1, stretch)
        if (skipped := stretch.skipped(layer, mid[:used])) is not None:
            behind[:used] += skipped
        fields = behind


def _backwards(split: EdgeSplit) -> None:
    """Gradients without and with heads, downwards; at each layer all that runs through its heads."""
    stretch, layers, (_, end) = split.stretch, split.layers, split.end
    twice = StreamTerms.joined([split.target, _as_row(split.target, 1)])
    g = stretch.zeros(2)
    for layer in range(end // 2, layers.start - 1, -1) if layers else ():
        if 2 * layer < end:
            at_mid = stretch.zeros(2)
            stretch.add_(at_mid, twice, 2 * layer + 1)
            if (skipped := stretch.skipped_back(layer, g)) is not None:
                at_mid += skipped
            behind = g if stretch.network.parallel else g + at_mid
            g = g + at_mid
            if layer in layers:
                g[1] += _through_heads(split, layer, behind)
        stretch.add_(g, twice, 2 * layer)


def _through_heads(split: EdgeSplit, layer: int, behind_2PD: Tensor) -> Tensor:
    """Note what runs through each head of a layer; the gradient (P, D) that its attention passes on."""
    heads, entering = split.stretch.heads(layer), split.entering[layer]
    unmixed = heads.unmixed(heads.reads(behind_2PD))
    scores = heads.score(unmixed, heads.values(entering)).double().cpu()
    split.unmixed[layer], split.ends[layer] = unmixed, behind_2PD[0]
    split.alone[layer], split.last[layer] = scores[0]
    split.first[layer], split.through[layer] = scores[1]
    return heads.gathered(unmixed[1:])[0]


def _read(fields_NPD: Tensor, terms: StreamTerms, place: int, stretch: Stretch) -> Tensor:
    """(N,) float64: what a target reads of each field at a place."""
    here = terms.place == place
    if not bool(here.any()):
        return torch.zeros(len(fields_NPD), dtype=torch.float64)
    found = fields_NPD[:, terms.position[here] - stretch.start] * terms.vector[here]
    return found.sum((1, 2)).double().cpu()


def _as_row(terms: StreamTerms, row: int) -> StreamTerms:
    return replace(terms, row=torch.full_like(terms.row, row))
