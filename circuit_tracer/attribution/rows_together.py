"""The rows of several prompts, computed together: each prompt chooses its own, and what all ask for next is swept at once.

Letters: K targets, N_s selected features.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from circuit_tracer.attribution.expansion import ComputedRows, features_at, no_rows
from circuit_tracer.attribution.finished_block import FinishedBlock
from circuit_tracer.attribution.finished_rows import FinishedRows
from circuit_tracer.attribution.plan import MemoryPlan
from circuit_tracer.attribution.prompt import LinearPrompt
from circuit_tracer.attribution.read_out import ReadOut
from circuit_tracer.attribution.selection import rounds
from circuit_tracer.attribution.sweep import Sweep
from circuit_tracer.attribution.targets import TargetRows
from circuit_tracer.attribution.task import Task
from circuit_tracer.workers import in_order

# Rows of one prompt that keep a CPU busy: with more in flight, only its caches have more to hold.
ENOUGH_ON_CPU = 128

Asked = tuple[ReadOut, Tensor]  # rows to compute, and their numbers in the store
# a block: the bunch of prompts that it belongs to, what they ask for, and which rows of which
Piece = tuple[list[int], list[tuple[int, ReadOut]], list[tuple[int, Tensor]]]


@dataclass(frozen=True)
class Member:
    """One of several prompts, ready for its rows; `number` is its place in the sweep."""

    number: int
    task: Task
    prompt: LinearPrompt
    targets: TargetRows


def compute_together(members: Sequence[Member], sweep: Sweep, plan: MemoryPlan) -> list[ComputedRows]:
    """The rows of each prompt: of its targets, and of as many features as its task allows, chosen by influence.

    At most `plan.block_rows` are in flight.
    """
    stores = [no_rows(member.task, member.prompt, member.targets) for member in members]
    choices = [_choice(member, store) for member, store in zip(members, stores, strict=True)]
    columns: list[Tensor | None] = [None] * len(members)
    while True:
        asked: dict[int, Asked] = {}
        for place, choice in enumerate(choices):
            if columns[place] is None:
                try:
                    asked[place] = next(choice)
                except StopIteration as last:
                    columns[place] = last.value
        if not asked:
            break
        _sweep(sweep, plan, members, stores, asked)
    return [
        ComputedRows(store, chosen, plan, _budget(member))
        for member, store, chosen in zip(members, stores, columns, strict=True)
        if chosen is not None
    ]


def _choice(member: Member, store: FinishedRows) -> Generator[Asked, None, Tensor]:
    """What a prompt asks for, one call after the other; returns the columns (N_s,) of its selected features."""
    targets, n_targets = member.targets, len(member.targets.table)
    budget, n_active = _budget(member), len(member.prompt.sources)
    if budget == n_active:
        every = torch.arange(n_active)
        features = features_at(member.task, member.prompt, every)
        yield ReadOut.joined([targets.read_out, features]), torch.arange(n_targets + n_active)
        return every
    yield targets.read_out, torch.arange(n_targets)
    choice = rounds(store, targets.table.weight, budget)
    while True:
        try:
            columns = next(choice)
        except StopIteration as last:
            chosen: Tensor = last.value
            return chosen
        yield features_at(member.task, member.prompt, columns), n_targets + columns


def _budget(member: Member) -> int:
    n_active = len(member.prompt.sources)
    return min(member.task.options.max_feature_nodes or n_active, n_active)


def _sweep(
    sweep: Sweep,
    plan: MemoryPlan,
    members: Sequence[Member],
    stores: Sequence[FinishedRows],
    asked: dict[int, Asked],
) -> None:
    """Compute what is asked for, in bunches of prompts that fill a block: a prompt that fills one by itself goes by itself."""
    blocks: list[Piece] = []
    enough = plan.block_rows if sweep.device.type != "cpu" else min(plan.block_rows, ENOUGH_ON_CPU)
    for bunch in _bunches({place: len(read_out) for place, (read_out, _) in asked.items()}, enough):
        targets = [(members[one].number, asked[one][0]) for one in bunch]
        blocks += [
            (bunch, targets, block) for block in sweep.split_several(targets, plan.block_rows, plan.block_numbers)
        ]

    def finished(piece: Piece) -> list[tuple[int, FinishedBlock]]:
        bunch, targets, block = piece
        found = [(bunch[which], edges) for which, edges in sweep.block_of_several(targets, block)]
        return [(one, stores[one].finished(edges, asked[one][1][edges.row])) for one, edges in found]

    with closing(in_order(finished, blocks, plan.workers)) as done:
        for found in done:
            for one, block in found:
                stores[one].add(block)


def _bunches(rows: dict[int, int], enough: int) -> Iterator[list[int]]:
    """Who goes together, given how many rows each asks for: those with `enough` alone, others until they have as many."""
    bunch: list[int] = []
    for place, count in rows.items():
        if count >= enough:
            yield [place]
            continue
        bunch.append(place)
        if sum(rows[one] for one in bunch) >= enough:
            yield bunch
            bunch = []
    if bunch:
        yield bunch
