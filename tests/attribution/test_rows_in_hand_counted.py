"""Plans count what workers hold beside finished rows: blocks as wide as any, what thinning takes, what malloc keeps."""

from __future__ import annotations

from dataclasses import replace

import torch
from test_plan_time import SMOLLM2, sizes

from circuit_tracer.attribution.finished_block import EDGES_A_PIECE, FinishedBlock
from circuit_tracer.attribution.plan import plan_memory
from circuit_tracer.attribution.sweep import EdgeBlock
from circuit_tracer.attribution.trace_sizes import KEPT_BY_MALLOC
from tests.support.live_bytes import LiveBytes


def test_looking_for_small_edges_takes_no_more_than_is_counted() -> None:
    n_rows = 3
    work = sizes(SMOLLM2, 12, 100, active=1000)
    width, n_steps = int(work.width_P[-1]), SMOLLM2.n_layers
    assert width > EDGES_A_PIECE
    edges = torch.rand(n_rows, width, generator=torch.Generator().manual_seed(0))  # of which most stay: no sparse copy
    step = torch.full((n_rows,), n_steps)
    n_columns = width - (n_steps + 1) * work.n_pos
    with LiveBytes() as live:
        FinishedBlock.of(EdgeBlock(step, step, work.n_pos, n_columns, edges), torch.arange(n_rows), n_steps, 0.98)
    assert work.thinning(1) / 2 < live.peak - edges.nbytes < work.thinning(1)


def test_rows_in_hand_may_all_end_at_the_last_position() -> None:
    work = sizes(SMOLLM2, 4000, 200, active=15)
    blocks = sorted(work.blocks(128))
    assert [many for _, _, many in blocks] == [1.0] * len(blocks)
    in_hand = sum(rows for rows, _, _ in blocks[-2:]) * int(work.width_P[-1]) * work.item
    some_late = work.edge_rows(blocks[:-2], 0) + in_hand
    assert work.edge_rows(blocks, 0) < some_late <= work.edge_rows(blocks, 2)


def test_malloc_keeps_some_for_each_thread_and_none_of_a_gpu() -> None:
    work = sizes(SMOLLM2, 4000, 200, active=15)
    plan = plan_memory(work, 0, 10**12, 512, workers=2)
    assert plan.phases["compute edges"]["kept for reuse by malloc"] == 3 * KEPT_BY_MALLOC
    short = sizes(SMOLLM2, 10, 50)
    rows = max(rows for rows, _, _ in short.blocks(32))
    assert 0 < short.unreturned(short.blocks(32), 2) <= 3 * rows * 10 * SMOLLM2.d_model * 4
    assert replace(short, on_gpu=True).unreturned(short.blocks(32), 2) == 0
