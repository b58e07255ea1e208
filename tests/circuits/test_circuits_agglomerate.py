"""The tree of merges against the definition: every pair looked at anew, every path walked."""

from __future__ import annotations

from itertools import combinations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuit_tracer.circuits.agglomerate import Bounds, agglomerate

Groups = list[list[int]]


def below(reads: torch.Tensor, groups: Groups) -> dict[int, set[int]]:
    """By group, the groups that it reads from."""
    return {
        target: {
            source
            for source in range(len(groups))
            if source != target and bool(reads[groups[target]][:, groups[source]].any())
        }
        for target in range(len(groups))
    }


def reaches(reads: dict[int, set[int]], source: int, target: int, at_once: bool = True) -> bool:
    """Whether a path runs from source to target; at_once=False: through a third."""
    waiting, seen = [*reads[target]], set[int]()
    while waiting:
        here = waiting.pop()
        if here == source:
            if at_once:
                return True
            continue
        if here not in seen:
            seen.add(here)
            waiting += reads[here]
    return any(source in reads[each] for each in seen if each != target)


def acyclic(reads: torch.Tensor, groups: Groups) -> bool:
    read = below(reads, groups)
    return not any(reaches(read, group, group) for group in read)


def naive(
    likeness: torch.Tensor,
    reads: torch.Tensor,
    apart: torch.Tensor,
    layer: torch.Tensor,
    position: torch.Tensor,
    bounds: Bounds,
) -> Groups:
    """Members of each merge in order."""
    groups, found = [[row] for row in range(len(likeness))], list[list[int]]()
    while True:
        read, best = below(reads, groups), None
        for one, other in combinations(range(len(groups)), 2):
            rows = groups[one] + groups[other]
            mean = float(likeness[groups[one]][:, groups[other]].mean())
            if (
                mean >= bounds.likeness
                and not apart[groups[one]][:, groups[other]].any()
                and int(layer[rows].max() - layer[rows].min()) <= bounds.layers
                and int(position[rows].max() - position[rows].min()) <= bounds.positions
                and not reaches(read, one, other, at_once=False)
                and not reaches(read, other, one, at_once=False)
                and (best is None or mean > best[0])
            ):
                best = (mean, one, other)
        if best is None:
            return found
        _, one, other = best
        groups[one] = sorted(groups[one] + groups[other])
        found.append(groups[one])
        del groups[other]


@given(
    seed=st.integers(0, 2**31),
    n=st.integers(0, 12),
    density=st.floats(0, 1),
    bounds=st.builds(Bounds, st.integers(0, 4), st.integers(0, 2), st.floats(0.01, 0.7)),
)
@settings(max_examples=40, deadline=None)
def test_merges_are_those_of_the_definition_and_any_cut_is_acyclic(
    seed: int, n: int, density: float, bounds: Bounds
) -> None:
    rng = torch.Generator().manual_seed(seed)
    likeness = torch.rand(n, n, generator=rng, dtype=torch.float64)
    likeness = (likeness + likeness.T) / 2
    layer, position = (torch.randint(3, (n,), generator=rng) for _ in range(2))
    reads = (torch.rand(n, n, generator=rng) < density) & (layer[:, None] > layer)
    apart = torch.rand(n, n, generator=rng) < 0.1
    apart = apart | apart.T
    tree = agglomerate(likeness, reads, apart, layer, position, bounds)
    assert [merge.rows for merge in tree] == naive(likeness, reads, apart, layer, position, bounds)

    for merge in tree:
        one, other = (tree[part].rows if part >= 0 else [-1 - part] for part in merge.parts)
        assert sorted(one + other) == merge.rows
    inner = {part for merge in tree for part in merge.parts}
    cut, waiting = [], [number for number in range(len(tree)) if number not in inner]
    while waiting:  # at random branches
        number = waiting.pop()
        if torch.rand((), generator=rng) < 0.6:
            cut.append(tree[number].rows)
        else:
            waiting += [part for part in tree[number].parts if part >= 0]
    alone = set(range(n)) - {row for rows in cut for row in rows}
    assert acyclic(reads, [*cut, *([row] for row in alone)])
