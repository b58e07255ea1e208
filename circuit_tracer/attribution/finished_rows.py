"""Finished edge rows, kept until the graph is assembled; influence flows through them from the top layer down.

Each row is stored once. Influence enters with the targets' weights and passes through |edge| / row mass (README.md §6.1).
Rows of features at one step (a layer, or half of one: `SourceTable`) are final once all steps above are, so one pass from the
top gives exact influences. With several processes each holds its own rows, and what a step's features received is added up when
their turn comes.

The pass runs where the rows lie, and nothing of it is read: whoever asks for influence decides what the host needs of it.

Letters: T rows, N active features, K targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from circuit_tracer.attribution.finished_block import FinishedBlock, side_by_side
from circuit_tracer.attribution.sweep import EdgeBlock
from circuit_tracer.graph.influence import MIN_MASS
from circuit_tracer.kernels.device import sent
from circuit_tracer.ranks import Ranks


@dataclass(frozen=True)
class _StepRows:
    """The rows of one step, block by block; the tensors lie where the rows do."""

    blocks: list[tuple[FinishedBlock, int, int]]  # each with which of its rows
    number: Tensor  # (T,) of the whole trace
    mass: Tensor  # (T,), at least MIN_MASS
    of_target: Tensor  # (T,)


class FinishedRows:
    """All rows computed so far, each exactly once, whatever the order in which they were asked for.

    keep_mass: the share of each row's mass that is kept (finished_block.py). ranks: the processes that share the rows. device:
    where rows lie.
    """

    def __init__(
        self,
        n_steps: int,
        n_targets: int,
        column_step: Tensor,
        keep_mass: float = 1.0,
        ranks: Ranks | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.n_steps, self.n_targets, self.keep_mass = n_steps, n_targets, keep_mass
        self.ranks = ranks or Ranks()
        # MPS has no float64
        self.device = torch.device("cpu") if torch.device(device).type == "mps" else torch.device(device)
        self.column_step = column_step  # (N,)
        self.n_columns = int(column_step.shape[0])
        self.blocks: list[FinishedBlock] = []
        self._arranged: tuple[int, list[_StepRows]] = (-1, [])  # for so many blocks
        self.done = torch.zeros(n_targets + self.n_columns, dtype=torch.bool)  # rows stored here or on another process

    def finished(self, edges: EdgeBlock, row: Tensor) -> FinishedBlock:
        """A block as it is kept; `row` (T,) numbers its rows globally."""
        return FinishedBlock.of(edges, row, self.n_steps, self.keep_mass)

    def add(self, block: FinishedBlock) -> None:
        """Keep a block. At once: an interrupt keeps what is there."""
        self.blocks.append(block)
        self.mark(block.row)

    @property
    def expanded(self) -> Tensor:
        """(N,) features with a row, by column."""
        return self.done[self.n_targets :]

    def mark(self, row: Tensor) -> None:
        """These rows are stored, here or on another process."""
        self.done[row] = True

    def take(self, blocks: list[FinishedBlock]) -> None:
        """Keep blocks that were finished before."""
        self.blocks += [block.to(self.device) for block in blocks]
        self.mark_stored()

    def mark_stored(self) -> None:
        """Mark what this process holds: an interrupt may have come between the two."""
        for block in self.blocks:
            self.mark(block.row)

    def among(self, columns: Tensor) -> FinishedRows:
        """The rows of targets and of some features (ascending columns), with their edges to these features alone, side by side
        in one block: for influence that only they pass on, among themselves.
        """
        steps = self.column_step[columns]
        made = FinishedRows(self.n_steps, self.n_targets, steps, ranks=self.ranks, device=self.device)
        number = torch.full((self.n_targets + self.n_columns,), -1)  # of each row among those that are left
        number[: self.n_targets] = torch.arange(self.n_targets)
        number[self.n_targets + columns] = self.n_targets + torch.arange(len(columns))
        made.mark(number[self.done & (number >= 0)])
        if self.blocks:
            made.blocks.append(side_by_side(self.blocks, columns, number))
        return made

    def influence(self, weight_K: Tensor, threshold: float | Tensor | None = None) -> Tensor:
        """Influence (N,) float64 of every feature column, where the rows lie.

        With a threshold (a number, or one of the device), only features whose own influence reaches it pass influence on: those
        are the selected ones. A selected feature whose row is missing passes nothing on. Without a threshold every computed row
        passes on.
        """
        entering = torch.zeros(self.n_targets + self.n_columns, dtype=torch.float64, device=self.device)
        entering[: self.n_targets] = weight_K.to(self.device).double().abs()
        influence = entering[self.n_targets :]
        for step, rows in zip(reversed(range(self.n_steps + 1)), self._rows_by_step(), strict=True):
            if self.ranks.world > 1 and step < self.n_steps:
                columns = self._of_step[step]
                influence[columns] = self.ranks.sum(influence[columns])
            if not rows.blocks:
                continue
            share = entering.index_select(0, rows.number)
            if threshold is not None:
                share = share * ((share >= threshold) | rows.of_target)
            shares = (share / rows.mass).split([stop - start for _, start, stop in rows.blocks])
            for (block, start, stop), passed_on in zip(rows.blocks, shares, strict=True):
                block.flow_(influence, start, stop, passed_on)
        return influence

    def _rows_by_step(self) -> list[_StepRows]:
        """All rows that are stored, those of the last step first; looked up anew when there are more."""
        if self._arranged[0] != len(self.blocks):
            self._arranged = len(self.blocks), self._arrange()
        return self._arranged[1]

    def _arrange(self) -> list[_StepRows]:
        places = [
            [(block, block.step_ptr[step + 1], block.step_ptr[step]) for block in self.blocks]
            for step in reversed(range(self.n_steps + 1))
        ]
        places = [[place for place in of_step if place[1] < place[2]] for of_step in places]
        if not self.blocks:
            return [_StepRows([], *[torch.empty(0)] * 3) for _ in places]
        first = dict(zip(map(id, self.blocks), accumulate((len(b.row) for b in self.blocks), initial=0), strict=False))
        order = torch.cat([
            torch.arange(first[id(block)] + start, first[id(block)] + stop)
            for of_step in places
            for block, start, stop in of_step
        ])  # fmt: skip
        rows = torch.cat([block.row for block in self.blocks])[order]
        number, order = sent(torch.stack([rows, order]), self.device)
        mass = torch.cat([block.mass for block in self.blocks])[order].clamp_min(MIN_MASS)
        sizes = [sum(stop - start for _, start, stop in of_step) for of_step in places]
        split = (column.split(sizes) for column in (number, mass, number < self.n_targets))
        return [_StepRows(*each) for each in zip(places, *split, strict=True)]

    @cached_property
    def _of_step(self) -> list[Tensor]:
        """Columns of each step."""
        steps = range(self.n_steps)
        return [torch.nonzero(self.column_step == step).flatten().to(self.device) for step in steps]
