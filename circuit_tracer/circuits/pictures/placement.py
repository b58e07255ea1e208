"""Where boxes stand and arrows run: lines of boxes in the prompt's order, arrows that pass between boxes and never behind.

After Sugiyama: an arrow over several lines gets a lane, a narrow place between the boxes of each line that it crosses. Along
a line boxes keep the order of their positions in the prompt; boxes of one position, and lanes, are ordered by the middle of
what they are joined to. Then each line is pulled towards that middle as far as its widths allow (least squares under an
order: pool adjacent violators).

All lengths are in inches.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from circuit_tracer.circuits.pictures.boxes import Box
from circuit_tracer.circuits.pictures.stages import Arrow

GAP = 0.22  # between boxes of a line
_LANE = 0.16  # width of a lane
_SWEEPS = 12


@dataclass
class _Item:
    """A box, or a lane of an arrow, on a line. joined: (items, weight) below and above."""

    width: float
    box: int | None
    position: float
    rank: int | None = None  # of an output, by which they stand
    x: float = 0.0
    joined: list[tuple[_Item, float]] = field(default_factory=list, repr=False)

    @property
    def middle(self) -> float:
        weight = sum(weight for _, weight in self.joined)
        return sum(item.x * part for item, part in self.joined) / weight if weight else self.x


@dataclass(frozen=True)
class Placement:
    """x, line: of each box, its middle and the number of its stage. ends: of each arrow, where it leaves its source and
    enters its target, along x. lanes: x on each line that it crosses, from the source up. width: of all.
    """

    x: list[float]
    line: list[int]
    ends: list[tuple[float, float]]
    lanes: list[list[float]]
    width: float


def place(
    boxes: Sequence[Box], widths: Sequence[float], lines: Sequence[Sequence[int]], arrows: Sequence[Arrow]
) -> Placement:
    """boxes by their lines, lowest first; arrows: (source, target, share)."""
    line_of = {box: number for number, members in enumerate(lines) for box in members}
    items = [_Item(widths[at], at, box.position, at if box.role == "logit" else None) for at, box in enumerate(boxes)]
    rows = [[items[box] for box in members] for members in lines]
    lanes = [_lanes(items, rows, line_of, arrow) for arrow in arrows]
    _start(rows)
    for sweep in range(_SWEEPS):
        for row in rows if sweep % 2 == 0 else reversed(rows):
            _settle(row)
    left = min(item.x - item.width / 2 for row in rows for item in row)
    for row in rows:
        for item in row:
            item.x -= left
    return Placement(
        [item.x for item in items],
        [line_of[at] for at in range(len(boxes))],
        _ends(items, lanes, arrows),
        [[item.x for item in lane] for lane in lanes],
        max(item.x + item.width / 2 for row in rows for item in row),
    )


def _lanes(items: list[_Item], rows: list[list[_Item]], line_of: dict[int, int], arrow: Arrow) -> list[_Item]:
    """Join the ends of an arrow through new lanes on the lines between them, which are returned from the source up."""
    source, target, share = arrow
    first, last = line_of[source], line_of[target]
    chain = [items[source]]
    for line in range(first + 1, last) if last > first else range(first - 1, last, -1):
        part = abs(line - first) / abs(last - first)
        position = (1 - part) * items[source].position + part * items[target].position
        chain.append(_Item(_LANE, None, position))
        rows[line].append(chain[-1])
    chain.append(items[target])
    for one, other in pairwise(chain):
        if first != last:
            one.joined.append((other, abs(share) + 0.02))
            other.joined.append((one, abs(share) + 0.02))
    return chain[1:-1]


def _start(rows: list[list[_Item]]) -> None:
    """Lines by position, each about the same middle."""
    for row in rows:
        row.sort(key=lambda item: item.position)
        x = -sum(item.width + GAP for item in row) / 2
        for item in row:
            item.x = x + item.width / 2
            x += item.width + GAP


def _settle(row: list[_Item]) -> None:
    """Order a line, and pull it to what it is joined to."""
    wanted = {id(item): item.middle for item in row}
    boxes = sorted(
        (item for item in row if item.box is not None),
        key=lambda item: (round(item.position), wanted[id(item)] if item.rank is None else item.rank),
    )
    row[:] = _with_lanes(boxes, [item for item in row if item.box is None], wanted)
    gaps = [0.0]
    for one, other in pairwise(row):
        gaps.append(
            gaps[-1] + (one.width + other.width) / 2 + (GAP if one.box is not None or other.box is not None else 0.0)
        )
    settled = _isotonic([wanted[id(item)] - gap for item, gap in zip(row, gaps, strict=True)])
    for item, value, gap in zip(row, settled, gaps, strict=True):
        item.x = value + gap


def _with_lanes(boxes: list[_Item], lanes: list[_Item], wanted: dict[int, float]) -> list[_Item]:
    """Boxes in their order, each lane where it wants to be among them as they stand."""
    row = list(boxes)
    for lane in sorted(lanes, key=lambda item: wanted[id(item)]):
        at = sum(1 for item in row if (item.x if item.box is not None else wanted[id(item)]) <= wanted[id(lane)])
        row.insert(at, lane)
    return row


def _isotonic(values: Sequence[float]) -> list[float]:
    """The ascending numbers nearest to ``values`` in squares."""
    blocks: list[tuple[float, int]] = []
    for value in values:
        mean, count = value, 1
        while blocks and blocks[-1][0] > mean:
            before, size = blocks.pop()
            mean, count = (before * size + mean * count) / (size + count), size + count
        blocks.append((mean, count))
    return [mean for mean, count in blocks for _ in range(count)]


def _ends(items: list[_Item], lanes: list[list[_Item]], arrows: Sequence[Arrow]) -> list[tuple[float, float]]:
    """Ends side by side along the upper and the lower edge of each box, in the order of where the arrows go."""
    leaving: defaultdict[int, list[tuple[float, int]]] = defaultdict(list)
    entering: defaultdict[int, list[tuple[float, int]]] = defaultdict(list)
    for number, ((source, target, _), lane) in enumerate(zip(arrows, lanes, strict=True)):
        leaving[source].append(((lane[0] if lane else items[target]).x, number))
        entering[target].append(((lane[-1] if lane else items[source]).x, number))
    starts, stops = _spread(items, leaving), _spread(items, entering)
    return [(starts[number], stops[number]) for number in range(len(arrows))]


def _spread(items: list[_Item], joined: dict[int, list[tuple[float, int]]]) -> dict[int, float]:
    places = {}
    for box, others in joined.items():
        step = min(0.3, (items[box].width - 0.16) / len(others))
        for slot, (_, number) in enumerate(sorted(others)):
            places[number] = items[box].x + (slot - (len(others) - 1) / 2) * step
    return places
