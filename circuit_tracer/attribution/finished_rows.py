"""Finished edge rows, kept until the graph is assembled; influence flows through them from the top layer down.

Each row is stored once. Influence enters with the targets' weights and passes through |edge| / row mass (README.md §6.1).
Rows of features at one step (a layer, or half of one: `SourceTable`) are final once all steps above are, so one pass from the
top gives exact influences. With several processes each holds its own rows, and what a step's features received is added up when
their turn comes.

Letters: T rows, N active features, K targets.
"""

from __future__ import annotations

import torch
from torch import Tensor

from circuit_tracer.attribution.finished_block import FinishedBlock, side_by_side
from circuit_tracer.attribution.sweep import EdgeBlock
from circuit_tracer.graph.influence import MIN_MASS
from circuit_tracer.ranks import Ranks


class FinishedRows:
    """All rows computed so far, each exactly once, whatever the order in which they were asked for.

    keep_mass: the share of each row's mass that is kept (finished_block.py). ranks: the processes that share the rows.
    """

    def __init__(
        self,
        n_steps: int,
        n_targets: int,
        column_step: Tensor,
        keep_mass: float = 1.0,
        ranks: Ranks | None = None,
    ) -> None:
        self.n_steps, self.n_targets, self.keep_mass = n_steps, n_targets, keep_mass
        self.ranks = ranks or Ranks()
        self.column_step = column_step  # (N,)
        self.n_columns = int(column_step.shape[0])
        self.blocks: list[FinishedBlock] = []
        self.done = torch.zeros(n_targets + self.n_columns, dtype=torch.bool)  # rows stored here or on another process
        # columns of each step, to decide a step at a time
        self._of_step = [torch.nonzero(column_step == step).flatten() for step in range(n_steps)]

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
        self.blocks += blocks
        self.mark_stored()

    def mark_stored(self) -> None:
        """Mark what this process holds: an interrupt may have come between the two."""
        for block in self.blocks:
            self.mark(block.row)

    def among(self, columns: Tensor) -> FinishedRows:
        """The rows of targets and of some features (ascending columns), with their edges to these features alone, side by side
        in one block on the CPU: for influence that only they pass on, among themselves.
        """
        made = FinishedRows(self.n_steps, self.n_targets, self.column_step[columns], ranks=self.ranks)
        number = torch.full((self.n_targets + self.n_columns,), -1)  # of each row among those that are left
        number[: self.n_targets] = torch.arange(self.n_targets)
        number[self.n_targets + columns] = self.n_targets + torch.arange(len(columns))
        made.mark(number[self.done & (number >= 0)])
        left = [torch.nonzero(number[block.row] >= 0).flatten() for block in self.blocks]
        if self.blocks:
            made.blocks.append(side_by_side(self.blocks, left, columns, number))
        return made

    def influence(self, weight_K: Tensor, threshold: float | None = None) -> tuple[Tensor, Tensor]:
        """Influence (N,) of every feature column, and which columns are selected (N,).

        With a threshold, only features whose own influence reaches it pass influence on; they are the selected ones. A
        selected feature whose row is missing passes nothing on. Without a threshold every computed row passes on.
        """
        influence = torch.zeros(self.n_columns, dtype=torch.float64)
        selected = self.expanded.clone() if threshold is None else torch.zeros(self.n_columns, dtype=torch.bool)
        entering = torch.zeros(self.n_targets + self.n_columns, dtype=torch.float64)
        entering[: self.n_targets] = weight_K.double().abs().cpu()
        self._flow(self.n_steps, entering, influence)
        for step in reversed(range(self.n_steps)):
            columns = self._of_step[step]
            influence[columns] = self.ranks.sum(influence[columns])
            if threshold is not None:
                selected[columns] = influence[columns] >= threshold
            entering[self.n_targets + columns] = influence[columns] * selected[columns]
            self._flow(step, entering, influence)
        return influence, selected

    def _flow(self, step: int, entering: Tensor, influence: Tensor) -> None:
        for block in self.blocks:
            start, stop = block.step_ptr[step + 1], block.step_ptr[step]
            if start == stop:
                continue
            share = entering[block.row[start:stop]] / block.mass[start:stop].clamp_min(MIN_MASS)
            if bool(share.any()):
                influence[: block.n_columns] += block.flow(start, stop, share)
