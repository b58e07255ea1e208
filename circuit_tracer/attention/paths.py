"""The strongest whole paths of heads of one edge, by best-first search (README.md §3).

A prefix is the first heads of a path. What it passes on is a field, and what the target reads of that field is known without
taking it apart: through no further head (the path that ends here), and in all. Taking a prefix apart makes its children, one for
each head that can come next; what all of them pass on in all is what the prefix passes on beyond its own end. So what was
found and what is still to be taken apart add up to the edge at every moment.

Letters: B prefixes, P positions of the stretch, D d_model, H heads.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from circuit_tracer.attention.edge_split import EdgeSplit
from circuit_tracer.attention.explanation import HeadPath, Rest
from circuit_tracer.graph.stream_terms import StreamTerms

AT_ONCE = 16  # prefixes taken apart together
MOST_APART = 64  # prefixes taken apart in all, or 4 for each path asked for


@dataclass(frozen=True)
class _Apart:
    """A prefix that was taken apart. field: (P, D) what its last head wrote, behind attention of `layer`; the root's field is
    what of the source enters each layer.
    """

    heads: tuple[tuple[int, int], ...]
    field: Tensor | None


@dataclass(frozen=True)
class _Pending:
    """A prefix that was not: `parent` and one more head."""

    parent: _Apart
    head: tuple[int, int]
    beyond: float  # what it passes on, less what ends with it
    hops: int


class PathSearch:
    """The paths of one edge found so far, and what is still pending."""

    def __init__(self, split: EdgeSplit) -> None:
        self.split, self.stretch = split, split.stretch
        self.found: list[tuple[float, tuple[tuple[int, int], ...]]] = []
        self._pending: list[tuple[float, int, _Pending]] = []  # a heap, largest |beyond| first
        self._number = count()
        self._add(_Apart((), None), split.alone, split.first)

    def run(self, paths: int) -> None:
        """Take prefixes apart, those that pass on most first, until none passes on as much as the weakest of `paths` paths."""
        left = max(MOST_APART, 4 * paths) if paths else 0
        while self._pending and left > 0:
            weakest = heapq.nlargest(paths, (abs(weight) for weight, _ in self.found))
            if len(weakest) >= paths and weakest[-1] >= -self._pending[0][0]:
                return
            chosen = [heapq.heappop(self._pending)[2] for _ in range(min(AT_ONCE, left, len(self._pending)))]
            left -= len(chosen)
            self._take_apart([self._opened(one) for one in chosen])

    def strongest(self, paths: int) -> tuple[list[HeadPath], Rest]:
        """The strongest `paths` of those found, and what they leave of the edge."""
        self.found.sort(key=lambda one: (-abs(one[0]), one[1]))
        listed, others = self.found[:paths], self.found[paths:]
        hops = self.split.hops.clone()
        hops[0] = 0
        for weight, heads in listed:
            hops[len(heads)] -= weight
        mass = sum(abs(weight) for weight, _ in others) + sum(-key for key, _, _ in self._pending)
        named = [HeadPath(heads, self._positions(heads), weight) for weight, heads in listed]
        return named, Rest(float(hops.sum()), mass, hops)

    def _add(self, prefix: _Apart, ends_LH: Tensor, totals_LH: Tensor) -> None:
        """Children of a prefix: (L, H) what ends with each, and what each passes on in all."""
        hops = len(prefix.heads) + 1
        beyond_LH = totals_LH - ends_LH
        for layer, head in torch.nonzero((ends_LH != 0) | (totals_LH != 0)).tolist():
            if ends_LH[layer, head] != 0:
                self.found.append((float(ends_LH[layer, head]), (*prefix.heads, (layer, head))))
            if layer + 1 in self.split.layers and beyond_LH[layer, head] != 0:
                pending = _Pending(prefix, (layer, head), float(beyond_LH[layer, head]), hops)
                heapq.heappush(self._pending, (-abs(pending.beyond), next(self._number), pending))

    def _opened(self, pending: _Pending) -> _Apart:
        """With the field that its last head writes."""
        layer, head = pending.head
        entering = self._entering(pending.parent, layer)
        return _Apart((*pending.parent.heads, pending.head), self.stretch.heads(layer).of_head(head, entering))

    def _entering(self, prefix: _Apart, layer: int) -> Tensor:
        """(P, D): what of a prefix enters a later layer through no further head."""
        if prefix.field is None:
            return self.split.entering[layer][0]
        fields = prefix.field[None]
        for between in range(prefix.heads[-1][0], layer):
            fields = self._past(between, fields, first=between == prefix.heads[-1][0])
        return fields[0]

    def _past(self, layer: int, fields_BPD: Tensor, first: bool) -> Tensor:
        """Fields behind a layer, of its attention (`first`) or of what enters it, through no head of it."""
        if first and self.stretch.network.parallel:
            return fields_BPD  # the transcoder reads what entered
        skipped = self.stretch.skipped(layer, fields_BPD)
        return fields_BPD if skipped is None else fields_BPD + skipped

    def _take_apart(self, prefixes: list[_Apart]) -> None:
        prefixes.sort(key=lambda one: one.heads[-1][0])
        starts = [one.heads[-1][0] for one in prefixes]
        n_layers, n_heads = self.split.first.shape
        scores = torch.zeros(2, len(prefixes), n_layers, n_heads, dtype=torch.float64)
        fields = torch.stack([one.field for one in prefixes if one.field is not None])
        for layer in range(starts[0], self.split.layers.stop):
            entered, started = (sum(start < bound for start in starts) for bound in (layer, layer + 1))
            if entered and layer in self.split.layers:
                heads = self.stretch.heads(layer)
                found = heads.score(self.split.unmixed[layer], heads.values(fields[:entered]))
                scores[:, :entered, layer] = found.double().cpu()
            behind = [self._past(layer, part, first) for part, first in self._parts(fields, entered, started)]
            fields = torch.cat([*behind, fields[started:]])
        for one, ends, totals in zip(prefixes, *scores, strict=True):
            self._add(one, ends, totals)

    @staticmethod
    def _parts(fields: Tensor, entered: int, started: int) -> Iterator[tuple[Tensor, bool]]:
        if entered:
            yield fields[:entered], False
        if started > entered:
            yield fields[entered:started], True

    # ---- where a path goes

    def _positions(self, heads: tuple[tuple[int, int], ...]) -> tuple[int, ...]:
        """The source's position, and after each head the one that carries most, given those before it."""
        gradients = self._gradients(heads)
        start = int(self.split.source.position[0])
        positions, prefix = [start - self.stretch.start], _Apart((), None)
        for step, (layer, head) in enumerate(heads):
            field = self.stretch.heads(layer).of_head(head, self._entering(prefix, layer))
            at = int((field * gradients[step]).sum(-1).abs().argmax())
            positions.append(at)
            alone = torch.zeros_like(field)
            alone[at] = field[at]
            prefix = _Apart(heads[: step + 1], alone)
        return tuple(at + self.stretch.start for at in positions)

    def _gradients(self, heads: tuple[tuple[int, int], ...]) -> list[Tensor]:
        """(P, D) for each head: what the rest of the path reads of what it writes."""
        found = [self.split.ends[heads[-1][0]]]
        for (layer, _), (above, head) in zip(heads[-2::-1], heads[:0:-1], strict=True):
            found.append(self._below(above, self.stretch.heads(above).back_of_head(head, found[-1]), layer))
        return found[::-1]

    def _below(self, above: int, entering_PD: Tensor, layer: int) -> Tensor:
        """A gradient of what enters a layer, as one of what attention of a layer below it writes; no head between."""
        g, last = entering_PD[None], layer + self.stretch.network.parallel  # there, the transcoder reads what entered
        for below in range(above - 1, last - 1, -1):
            skipped = self.stretch.skipped_back(below, g)
            g = g if skipped is None else g + skipped
        return g[0]
