"""Moments in the host's memory give, block by block, bitwise what moments beside the weights give."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from circuit_tracer.training.run import checkpoint
from circuit_tracer.training.step import adam
from circuit_tracer.training.step.host import Streamed
from tests.support.loop_cases import Run, differences, reports, tensors

RUNS = [
    Run("clt", "batch_topk"),
    Run("skip", "jumprelu", "bfloat16", jacobian=True, optimizer=(("moments", "bfloat16"),)),
    Run("sae", "relu", optimizer=(("moments", "int8"),)),
]
# Of the widest decoder: eight rows of 3 layers of width 6, so that torch's vectors end where blocks do.
BLOCK_BYTES = 8 * 4 * 3 * 6


@pytest.mark.few
@pytest.mark.parametrize("blocks", ["whole", "of-eight-rows"])
@pytest.mark.parametrize("run", RUNS, ids=str)
def test_a_run_is_bitwise_the_same(run: Run, blocks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if blocks != "whole":
        monkeypatch.setattr(adam, "HOST_BLOCK_BYTES", BLOCK_BYTES)
    found = []
    for place in ("device", "host"):
        loop = replace(run, optimizer=(*run.optimizer, ("place", place))).loop(tmp_path / place)
        loop.run()
        loop.save()
        found.append((reports(loop), tensors(loop.state)))
    assert found[0][0] == found[1][0]
    assert differences(found[0][1], found[1][1]) == []
    # and goes on from the checkpoint of the other
    last = checkpoint.latest(tmp_path / "device")
    assert last is not None
    other = replace(run, optimizer=(*run.optimizer, ("place", "host"))).state()
    checkpoint.load_(other, last)
    assert differences(tensors(other), found[0][1]) == []


@pytest.mark.parametrize("order", [[0, 1, 2], [0], [2, 0], [0, 1, 2, 3]], ids=str)
def test_blocks_come_and_go_in_any_order(order: list[int]) -> None:
    """Rows of one tensor; from the second step on the order is known, until it changes."""
    held, dense = torch.zeros(4, 3, dtype=torch.float64), torch.zeros(4, 3, dtype=torch.float64)
    streamed = Streamed(torch.device("cpu"))
    for step, blocks in enumerate([order, order, [1, 0, 3], [1, 0, 3], order, order]):
        streamed.begin()
        for row in blocks:
            with streamed.borrowed(("rows", row), [held[row : row + 1]]) as (copy,):
                assert copy.data_ptr() != held[row].data_ptr()
                copy.mul_(1.5).add_(step + row)
            dense[row] = 1.5 * dense[row] + step + row
    streamed.wait()
    assert torch.equal(held, dense)


def test_the_next_block_is_on_its_way_while_one_is_worked_on() -> None:
    held = torch.arange(6.0).view(3, 2)
    streamed = Streamed(torch.device("cpu"))
    for step in range(2):
        streamed.begin()
        for row in range(3):
            with streamed.borrowed(("rows", row), [held[row]]):
                coming = streamed._coming
                assert (coming is not None) == (step == 1 and row < 2)
                if coming is not None:
                    assert coming[0] == ("rows", row + 1)
                    assert torch.equal(coming[1][0], held[row + 1])
    assert len(streamed._buffers) == 2  # two by turns
