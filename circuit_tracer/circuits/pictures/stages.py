"""Which boxes stand on one line: stages of the circuit from its tokens up, at any depth of the model.

Boxes are put in an order in which arrows lead forward, lower layers first. The order is cut into stages so that little runs
between boxes of one stage, their layers are near each other, and a line is not too long: the cheapest cut, by dynamic
programming over the places to cut at. Tokens are the first stage and outputs the last.

Letters: G boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from circuit_tracer.circuits.pictures.boxes import Box

Arrow = tuple[int, int, float]  # source, target, share

_A_STAGE = 0.12  # costs of one more stage, of which an arrow within costs its share
_A_SPAN = 1.5  # of a stage of all layers
_MOST_STAGES, _WIDEST = 9, 12


def stages(boxes: Sequence[Box], arrows: Sequence[Arrow]) -> list[list[int]]:
    """Numbers of boxes by stage, lowest first; each box is in one."""
    lowest = [at for at, box in enumerate(boxes) if box.role == "token"]
    highest = [at for at, box in enumerate(boxes) if box.role == "logit"]
    between = [at for at, box in enumerate(boxes) if box.role not in ("token", "logit")]
    cut = _cut(boxes, _forward(boxes, between, arrows), arrows)
    return [stage for stage in (lowest, *cut, highest) if stage]


def _forward(boxes: Sequence[Box], which: Sequence[int], arrows: Sequence[Arrow]) -> list[int]:
    """The boxes with sources before targets, else by layer; in a circle, which only boxes made by hand can have, by layer."""
    waiting, order = set(which), []
    while waiting:
        targets = {target for source, target, _ in arrows if source in waiting and target in waiting}
        ready = (waiting - targets) or waiting
        order.append(min(ready, key=lambda at: (boxes[at].layer, boxes[at].position, at)))
        waiting.remove(order[-1])
    return order


def _cut(boxes: Sequence[Box], order: Sequence[int], arrows: Sequence[Arrow]) -> list[list[int]]:
    """The cheapest cut of the order into at most ``_MOST_STAGES`` stages."""
    place = {at: rank for rank, at in enumerate(order)}
    within = [
        (min(place[source], place[target]), max(place[source], place[target]), abs(share))
        for source, target, share in arrows
        if source in place and target in place
    ]
    layers = [boxes[at].layer for at in order]
    whole = max(layers, default=0.0) - min(layers, default=0.0) or 1.0

    @cache
    def cost(start: int, stop: int) -> float:
        inside = sum(share for first, last, share in within if first >= start and last < stop)
        span = (max(layers[start:stop]) - min(layers[start:stop])) / whole
        return _A_STAGE + inside + _A_SPAN * span**2 + 0.1 * max(0, stop - start - _WIDEST) ** 2

    @cache
    def best(stop: int, most: int) -> tuple[float, tuple[int, ...]]:
        """Cost of cutting order[:stop] into at most so many stages, and where they start."""
        if stop == 0:
            return 0.0, ()
        if most == 0:
            return float("inf"), ()
        options = ((start, *best(start, most - 1)) for start in range(stop))
        return min((before + cost(start, stop), (*starts, start)) for start, before, starts in options)

    starts = best(len(order), _MOST_STAGES)[1]
    stops = (*starts[1:], len(order)) if order else ()
    return [list(order[start:stop]) for start, stop in zip(starts, stops, strict=True)]
