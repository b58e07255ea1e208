"""Decoder rows that are stored once, kept or read piece by piece, give what rows that are kept for each source give."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from circuit_tracer.attribution.decoder_rows import DecoderRows, read_decoder_rows, stored_once, sums_at
from circuit_tracer.attribution.prompt import encode_prompt
from circuit_tracer.attribution.sources import SourceTable
from circuit_tracer.kernels.contract import addressed
from circuit_tracer.kernels.contract.offsets import Offsets
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.transcoders.base import Transcoders
from tests.support.tracing_cases import Case, build, one_each
from tests.support.waiting_cases import small
from tests.support.waits import DEVICE, counting, on_device

CASES = [case for case in one_each() if case.architecture in ("llama", "gemma2", "gpt2", "gpt_neox")]


def edges(rows: DecoderRows, n_pos: int) -> Tensor:
    """What three rows of gradients find at all layers."""
    generator = torch.Generator().manual_seed(3)
    width, dtype = rows.network.parts.config.d_model, rows.network.parts.compute_dtype
    out = torch.zeros(3, len(rows.sources), dtype=dtype)
    for layer in range(len(rows.written)):
        g = torch.randn(3, n_pos, width, generator=generator, dtype=torch.float64).to(dtype)
        rows.contract_(layer, g, out)
    return out


@pytest.mark.few
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("gathered", [1, 2**20])
def test_rows_stored_once_give_the_edges_of_rows_for_each_source(
    case: Case, gathered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addressed, "GATHERED_BYTES", gathered)
    model, ids = build(case), torch.tensor([3, 7, 3, 7, 7, 5, 3])  # tokens, and so features, again and again
    encoded = encode_prompt(model.parts, model.transcoders, ids, [0])
    sources = SourceTable.of(encoded.active, model.transcoders, len(ids))
    given = sources, model.transcoders, encoded.network
    scaled, expected = read_decoder_rows(*given, keep=True, side_by_side=True)
    for chunk_bytes in (1, 1000, 2**20):
        read, made = read_decoder_rows(*given, keep=False, chunk_bytes=chunk_bytes)
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)
        for kept in (False, True):
            if kept:
                read.tables.keep()
            for n_pos in (len(ids), 4):
                torch.testing.assert_close(edges(read, n_pos), edges(scaled, n_pos), rtol=1e-4, atol=1e-5)
    assert read.release()
    assert not read.release()


def test_rows_are_stored_once_where_they_are_repeated() -> None:
    assert stored_once(7_100_000, 950_000)
    assert not stored_once(100, 90)


def test_a_device_is_told_once_where_sources_find_their_rows() -> None:
    model, ids = small(), torch.tensor([3, 7, 3, 7, 7, 5, 3])
    g = torch.randn(3, len(ids), model.parts.config.d_model, generator=torch.Generator().manual_seed(3))

    def read(parts: ModelParts, transcoders: Transcoders) -> tuple[DecoderRows, Tensor]:
        encoded = encode_prompt(parts, transcoders, ids, [0])
        sources = SourceTable.of(encoded.active, transcoders, len(ids))
        rows, made = read_decoder_rows(sources, transcoders, encoded.network, keep=True)
        rows.tables.keep()
        return rows, made

    here, expected = read(model.parts, model.transcoders)
    edges = torch.zeros(3, len(here.sources))
    here.contract_(1, g, edges)
    with counting() as counted:
        there = on_device(model)
        rows, made = read(there.parts, there.transcoders)
        torch.testing.assert_close(made.cpu(), expected, rtol=1e-5, atol=1e-6)
        for found in torch.zeros(2, *edges.shape).to(DEVICE):
            counted.clear()
            rows.contract_(1, g.to(DEVICE, non_blocking=True), found)
            torch.testing.assert_close(found.cpu(), edges, rtol=1e-5, atol=1e-5)
        assert (counted.uploads.total(), counted.passing.total()) == (0, 1)
        assert rows.release()


@pytest.mark.parametrize("ptr", [[0, 0, 3, 3, 40, 41], [0, 0, 0]], ids=str)
def test_sums_of_positions_are_one_launch(ptr: list[int]) -> None:
    rows = torch.randn(ptr[-1], 6, generator=torch.Generator().manual_seed(0)).mul_(100)
    expected = torch.stack([rows[start:stop].double().sum(0) for start, stop in pairwise(ptr)]).float()
    torch.testing.assert_close(sums_at(rows, Offsets(ptr)), expected, rtol=1e-6, atol=1e-4)
    with counting() as counted:
        there, offsets = rows.to(DEVICE), Offsets(ptr)
        offsets.on(DEVICE)
        counted.clear()
        found = sums_at(there, offsets)
        launches = counted.launches.total()
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-6, atol=1e-4)
    assert launches <= 3
    assert counted.uploads.total() == 0
