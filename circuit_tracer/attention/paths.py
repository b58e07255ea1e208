"""The strongest whole paths of heads of one edge, by best-first search (README.md §3).

A prefix is the first heads of a path. What it passes on is a field, and what the target reads of that field is known without
taking it apart: through no further head (the path that ends here), and in all. Taking a prefix apart makes its children, one
for each head that can come next; what all of them pass on in all is what the prefix passes on beyond its own end. So what was
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
from circuit_tracer.attention.explanation import HeadPath, Rest, strongest_heads

Heads = tuple[tuple[int, int], ...]

AT_ONCE = 16  # prefixes taken apart together
MOST_APART = 32  # prefixes taken apart in all, or 4 for each path asked for


@dataclass(frozen=True)
class _Apart:
    """A prefix that was taken apart. field: (P, D) what its last head wrote, behind attention of its layer; None for the root,
    no head, whose field is that of the source.
    """

    heads: Heads
    field: Tensor | None


class PathSearch:
    """The strongest paths of one edge, `paths` of them, among those found so far; and what is still pending."""

    def __init__(self, split: EdgeSplit, paths: int) -> None:
        self.split, self.stretch, self.paths = split, split.stretch, paths
        self.found: list[tuple[float, Heads]] = []  # the strongest of each prefix
        self._left = max(MOST_APART, 4 * paths) if paths else 0  # prefixes that may still be taken apart
        # a heap of children that were not taken apart, by -|what they pass on beyond their own end|
        self._pending: list[tuple[float, int, _Apart, tuple[int, int]]] = []
        self._mass = 0.0  # of all that was found and all that is pending
        self._number = count()
        self._add(_Apart((), None), split.alone, split.first)

    def run(self) -> tuple[list[HeadPath], Rest]:
        """Take prefixes apart, those that pass on most first, until none passes on as much as the weakest path of the list; the
        list, strongest first, and what it leaves of the edge.
        """
        while self._pending and self._left > 0 and -self._pending[0][0] > self._weakest():
            chosen = [heapq.heappop(self._pending) for _ in range(min(AT_ONCE, self._left, len(self._pending)))]
            self._left -= len(chosen)
            self._mass += sum(key for key, *_ in chosen)
            self._take_apart([self._opened(parent, head) for _, _, parent, head in chosen])
        listed = sorted(self.found, key=lambda one: (-abs(one[0]), one[1]))[: self.paths]
        hops = self.split.hops.clone()
        hops[0] = 0
        for weight, heads in listed:
            hops[len(heads)] -= weight
        mass = max(0.0, self._mass - sum(abs(weight) for weight, _ in listed))
        rest = Rest(float(hops.sum()), mass, hops)
        return [HeadPath(heads, self._positions(heads), weight) for weight, heads in listed], rest

    def _weakest(self) -> float:
        """The size of the weakest path of the list; 0 while it is not full."""
        sizes = heapq.nlargest(self.paths, (abs(weight) for weight, _ in self.found))
        return sizes[-1] if len(sizes) == self.paths else 0.0

    def _add(self, prefix: _Apart, ends_LH: Tensor, totals_LH: Tensor) -> None:
        """Children of a prefix: (L, H) what ends with each, and what each passes on in all."""
        beyond_LH = totals_LH - ends_LH
        beyond_LH[self.split.layers.stop - 1 :] = 0  # no head comes after those of the last layer
        self._mass += float(ends_LH.abs().sum() + beyond_LH.abs().sum())
        self.found += [
            (weight, (*prefix.heads, (layer, head))) for layer, head, weight in strongest_heads(ends_LH, self.paths)
        ]
        for layer, head, weight in strongest_heads(beyond_LH, self._left):
            heapq.heappush(self._pending, (-abs(weight), next(self._number), prefix, (layer, head)))

    def _opened(self, parent: _Apart, head: tuple[int, int]) -> _Apart:
        """A child, with the field that its last head writes."""
        entering = self._entering(parent, head[0])
        return _Apart((*parent.heads, head), self.split.heads(head[0]).of_head(head[1], entering))

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
                heads = self.split.heads(layer)
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

    def _positions(self, heads: Heads) -> tuple[int, ...]:
        """The source's position, and after each head the one that carries most, given those before it."""
        gradients = self._gradients(heads)
        start = int(self.split.source.position[0])
        positions, prefix = [start - self.stretch.start], _Apart((), None)
        for step, (layer, head) in enumerate(heads):
            field = self.split.heads(layer).of_head(head, self._entering(prefix, layer))
            at = int((field * gradients[step]).sum(-1).abs().argmax())
            positions.append(at)
            alone = torch.zeros_like(field)
            alone[at] = field[at]
            prefix = _Apart(heads[: step + 1], alone)
        return tuple(at + self.stretch.start for at in positions)

    def _gradients(self, heads: Heads) -> list[Tensor]:
        """(P, D) for each head: what the rest of the path reads of what it writes."""
        found = [self.split.ends[heads[-1][0]]]
        for (layer, _), (above, head) in zip(heads[-2::-1], heads[:0:-1], strict=True):
            found.append(self._below(above, self.split.heads(above).back_of_head(head, found[-1]), layer))
        return found[::-1]

    def _below(self, above: int, entering_PD: Tensor, layer: int) -> Tensor:
        """A gradient of what enters a layer, as one of what attention of a layer below it writes; no head between."""
        g, last = entering_PD[None], layer + self.stretch.network.parallel  # there, the transcoder reads what entered
        for below in range(above - 1, last - 1, -1):
            skipped = self.stretch.skipped_back(below, g)
            g = g if skipped is None else g + skipped
        return g[0]
