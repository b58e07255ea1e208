"""One edge split by first head, last head, any head and number of hops (README.md §2), among the positions it can run through.

Letters: L layers, H heads, P positions of the stretch, D d_model, K key/value heads, d d_head.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from circuit_tracer.attention.head_maps import HeadMaps
from circuit_tracer.attention.stream_terms import StreamTerms
from circuit_tracer.attention.stretch import Stretch


@dataclass
class EdgeSplit:
    """first, last, through: (L, H). alone: (L, H), paths of this one head. hops: (n,). mass: (3,), of the products of
    single numbers whose sums are the edge: direct and by last head, direct and by first head, by hops.

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
    mass: Tensor
    entering: dict[int, Tensor] = field(default_factory=dict)
    unmixed: dict[int, Tensor] = field(default_factory=dict)
    ends: dict[int, Tensor] = field(default_factory=dict)
    _heads: dict[int, HeadMaps] = field(default_factory=dict)

    def heads(self, layer: int) -> HeadMaps:
        """Attention of a layer, made once."""
        if layer not in self._heads:
            self._heads[layer] = self.stretch.heads(layer)
        return self._heads[layer]

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
    """The split of one edge; all terms of `source` and of `target` are of row 0. What the target reads outside of the stretch,
    as an attention score does of keys before the source, the edge does not reach.
    """
    target = target.between(stretch.start, stretch.stop)
    n_layers, n_heads = stretch.network.n_layers, stretch.network.parts.config.n_heads
    first, last, through, alone = torch.zeros(4, n_layers, n_heads, dtype=torch.float64)
    hops = torch.zeros(len(attention_layers(stretch, source, target)) + 1, dtype=torch.float64)
    mass = torch.zeros(3, dtype=torch.float64)
    split = EdgeSplit(stretch, source, target, first, last, through, alone, hops, mass)
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
        _read(split, fields, 2 * layer)
        if 2 * layer == end:
            return
        behind = fields.clone()
        if layer in layers:
            heads, now = split.heads(layer), fields[:used]
            split.entering[layer] = torch.stack([now[0], now.sum(0)])
            behind[1 : used + 1] += heads.joined(heads.mixed(heads.values(now)))
            used += 1
        mid = fields if stretch.network.parallel else behind
        _read(split, mid, 2 * layer + 1)
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
    heads, entering = split.heads(layer), split.entering[layer]
    unmixed = heads.unmixed(heads.reads(behind_2PD))
    values = heads.values(entering)
    scores = heads.score(unmixed, values).double().cpu()
    sizes = heads.score(unmixed.abs(), values.abs()).double().sum(2).cpu()
    split.mass[:2] += torch.stack([sizes[0, 1], sizes[1, 0]])
    split.unmixed[layer], split.ends[layer] = unmixed, behind_2PD[0]
    split.alone[layer], split.last[layer] = scores[0]
    split.first[layer], split.through[layer] = scores[1]
    return heads.gathered(unmixed[1:])[0]


def _read(split: EdgeSplit, fields_NPD: Tensor, place: int) -> None:
    """Add what the target reads of each field at a place."""
    here = split.target.place == place
    if not bool(here.any()):
        return
    products = fields_NPD[:, split.target.position[here] - split.stretch.start] * split.target.vector[here]
    split.hops += products.sum((1, 2)).double().cpu()
    sizes = products.abs().sum((1, 2)).double().cpu()
    split.mass += torch.stack([sizes[0], sizes[0], sizes.sum()])


def _as_row(terms: StreamTerms, row: int) -> StreamTerms:
    return replace(terms, row=torch.full_like(terms.row, row))
