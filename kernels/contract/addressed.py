"""Sources that are read where they are stored, and their contraction on a CPU.

Letters: T rows in flight, D d_model, P positions, n sources, N columns of the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from circuit_tracer.workers import helped

# Rows gathered at a time: they stay in the cache of a core between being gathered and being multiplied.
GATHERED_BYTES = 3 * 2**18
GATHERS_A_PART = 16  # that a worker does at a time; each has columns of its own


@dataclass(frozen=True)
class AddressedRows:
    """n sources, sorted by position: source i writes ``scale[i] * tables[table[i]][row[i]]`` at its position.

    A feature that is active at many positions is stored once. Features of several layers, error vectors and token embeddings
    may stand in one list: each kind is a table.
    """

    tables: Sequence[
        Tensor
    ]  # (rows, D) each, of one floating dtype and device; the last axis contiguous, rows may be strided
    table: Tensor  # (n,) int64
    row: Tensor  # (n,) int64
    scale: Tensor  # (n,) floating: activation of a feature, 1 of an error or a token
    column: Tensor  # (n,) int64: column of the result, none twice
    ptr: Sequence[int]  # P + 1 offsets: sources of each position

    def between(self, first: int, last: int) -> AddressedRows:
        """Those of positions first .. last - 1, which become 0, 1, ..."""
        here, start = slice(self.ptr[first], self.ptr[last]), self.ptr[first]
        ptr = [each - start for each in self.ptr[first : last + 1]]
        return AddressedRows(self.tables, self.table[here], self.row[here], self.scale[here], self.column[here], ptr)


class _Stretch(NamedTuple):
    """Some sources of one position: start .. stop - 1. first: the column of the first, if the others' follow it."""

    position: int
    start: int
    stop: int
    first: int | None


def contract_gathered_(out_TN: Tensor, g_TPD: Tensor, sources: AddressedRows) -> None:
    """`contract_rows_` of a CPU: rows are gathered, scaled and multiplied while they lie in cache; each position is a product.

    Args:
        out_TN: (T, N).
        g_TPD: (T, P, D).
        sources: What is read; positions beyond P are ignored.
    """
    most = max(1, GATHERED_BYTES // (g_TPD.shape[2] * g_TPD.element_size()))

    def read(gathers: Sequence[list[_Stretch]]) -> None:
        room_nD = g_TPD.new_empty(most, g_TPD.shape[2])  # one for all: fresh pages take as long as a gather
        for together in gathers:
            begin = together[0].start
            rows_nD = _gathered(sources, slice(begin, together[-1].stop), room_nD)
            for position, start, stop, first in together:
                source_nD, g_TD = rows_nD[start - begin : stop - begin], g_TPD[:, position]
                if first is None:
                    out_TN.index_add_(1, sources.column[start:stop], g_TD @ source_nD.T)
                else:
                    out_TN.narrow(1, first, stop - start).addmm_(g_TD, source_nD.T)

    gathers = list(_together(_stretches(sources, g_TPD.shape[1], most), most))
    helped(read, [gathers[first : first + GATHERS_A_PART] for first in range(0, len(gathers), GATHERS_A_PART)])


def _stretches(sources: AddressedRows, n_pos: int, most: int) -> list[_Stretch]:
    """All sources of the first `n_pos` positions, those of a position in equal parts of at most `most`."""
    ends = []
    for position, (start, stop) in enumerate(pairwise(sources.ptr[: n_pos + 1])):
        parts = -(-(stop - start) // most)
        cuts = [start + (stop - start) * part // parts for part in range(parts + 1)] if parts else []
        ends += [(position, *cut) for cut in pairwise(cuts)]
    if not ends:
        return []
    _, start_s, stop_s = torch.tensor(ends).T.to(sources.column.device)
    jumps = torch.nn.functional.pad((sources.column.diff() != 1).cumsum(0), (1, 0))
    follow = (jumps[start_s] == jumps[stop_s - 1]).tolist()
    firsts = sources.column[start_s].tolist()
    return [_Stretch(*end, first if each else None) for end, first, each in zip(ends, firsts, follow, strict=True)]


def _together(stretches: list[_Stretch], most: int) -> Iterator[list[_Stretch]]:
    """Neighbours that have at most `most` sources in all."""
    some: list[_Stretch] = []
    for each in stretches:
        if some and each.stop - some[0].start > most:
            yield some
            some = []
        some.append(each)
    if some:
        yield some


def _gathered(sources: AddressedRows, here: slice, room_nD: Tensor) -> Tensor:
    """What some sources write, (n, D); in `room_nD`."""
    row, table = sources.row[here], sources.table[here]
    rows_nD = room_nD[: len(row)]
    if len(sources.tables) == 1 and sources.tables[0].dtype is rows_nD.dtype:
        torch.index_select(sources.tables[0], 0, row, out=rows_nD)
    else:
        for index in table.unique().tolist():
            chosen = (table == index).nonzero()[:, 0]
            rows_nD[chosen] = sources.tables[index][row[chosen]].to(rows_nD)
    return rows_nD.mul_(sources.scale[here].to(rows_nD)[:, None])
