"""Blocks of rows: every row exactly once, top layer first, and never a split that costs more."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from circuit_tracer.attribution.row_blocks import BlockTree, split_rows

places = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 12)), min_size=0, max_size=60)


@given(rows=places, block_rows=st.integers(1, 70))
def test_every_row_is_in_one_block(rows: list[tuple[int, int]], block_rows: int) -> None:
    layer, position = torch.tensor(rows, dtype=torch.int64).reshape(-1, 2).T
    blocks = list(split_rows(layer, position, block_rows))
    found = torch.cat(blocks) if blocks else torch.empty(0, dtype=torch.int64)
    assert sorted(found.tolist()) == list(range(len(rows)))
    for block in blocks:
        assert 1 <= len(block) <= block_rows
        assert bool((layer[block].diff() <= 0).all())


def test_rows_far_apart_are_kept_apart_and_few_rows_together() -> None:
    layer, position = torch.tensor([29] * 100 + [0] * 100), torch.tensor([1] * 100 + [200] * 100)
    blocks = list(split_rows(layer, position, 512))
    assert all(len(set(position[block].tolist())) == 1 for block in blocks)
    assert len(list(split_rows(torch.tensor([5, 9, 2]), torch.tensor([3, 8, 1]), 512))) == 1


def test_rows_of_a_narrow_model_are_kept_together() -> None:
    layer, position = torch.tensor([3] * 60), torch.tensor([3] * 30 + [9] * 30)
    assert [len(list(split_rows(layer, position, 512, width))) for width in (64, 512, 4096)] == [1, 2, 2]


@given(rows=places, block_rows=st.integers(1, 70), width=st.sampled_from([16, 256, 2048]))
def test_a_tree_of_all_rows_has_the_very_blocks(rows: list[tuple[int, int]], block_rows: int, width: int) -> None:
    layer, position = torch.tensor(rows, dtype=torch.int64).reshape(-1, 2).T
    tree = BlockTree(layer, position, weight=1, d_model=width)
    tree.blocks(1)  # cuts made for smaller blocks change nothing
    blocks = split_rows(layer, position, block_rows, width)
    swept = [(len(block), int(position[block].max()) + 1, 1.0) for block in blocks]
    assert tree.blocks(block_rows) == swept
