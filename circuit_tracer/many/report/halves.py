"""The rows of a run in two halves: what is found on one is tested on the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Halves(NamedTuple):
    """Ids in the order of the run."""

    found: list[str]
    tested: list[str]


def halves(ids: Sequence[str], labels: Mapping[str, str], groups: Mapping[str, str], seed: int) -> Halves:
    """Of the ids that have a label, each label's share in either half as equal as its groups allow.

    groups: rows of one group stay together (variants of one prompt); a row without one is a group of its own. A group counts
    to the label of its first row. Deterministic for a seed.
    """
    members: dict[tuple[bool, str], list[str]] = {}
    for id in (id for id in ids if id in labels):
        members.setdefault((id in groups, groups.get(id, id)), []).append(id)
    chance = np.random.default_rng(seed)
    sizes: dict[str, list[int]] = {}
    half: dict[str, int] = {}
    listed = list(members.values())
    for number in chance.permutation(len(listed)):
        rows = listed[number]
        size = sizes.setdefault(labels[rows[0]], [0, 0])
        # ties alternate, so that labels of odd size do not all have more in one half
        smaller = int(size[1] < size[0]) if size[0] != size[1] else len(half) % 2
        size[smaller] += len(rows)
        half |= dict.fromkeys(rows, smaller)
    return Halves([id for id in ids if half.get(id) == 0], [id for id in ids if half.get(id) == 1])
