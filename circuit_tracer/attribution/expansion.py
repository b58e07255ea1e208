"""The rows of a trace: those of the targets, then those of the features that matter most.

Letters: K targets, N_s selected features.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from circuit_tracer.attribution.finished_rows import FinishedRows
from circuit_tracer.attribution.memory import retrying
from circuit_tracer.attribution.plan import MemoryPlan, kept_mass
from circuit_tracer.attribution.prompt import LinearPrompt
from circuit_tracer.attribution.read_out import ReadOut
from circuit_tracer.attribution.row_blocks import split_rows
from circuit_tracer.attribution.selection import select
from circuit_tracer.attribution.sweep import Sweep
from circuit_tracer.attribution.targets import TargetRows
from circuit_tracer.attribution.task import Task
from circuit_tracer.errors import ResourceError


@dataclass(frozen=True)
class ComputedRows:
    """All that the graph is made of."""

    store: FinishedRows
    columns: Tensor  # (N_s,) columns of the selected features
    plan: MemoryPlan  # less what was given up while rows were computed
    interrupted: bool


def compute_rows(task: Task, prompt: LinearPrompt, targets: TargetRows, plan: MemoryPlan) -> ComputedRows:
    """The rows of the targets, and of as many features as the task allows, chosen by influence.

    An interrupt keeps the features computed so far, if this process is the only one; before all targets have their rows
    there is nothing to keep.
    """
    n_active = len(prompt.sources)
    budget = min(task.options.max_feature_nodes or n_active, n_active)
    expansion = Expansion(task, prompt, targets, plan, budget)
    expansion.compute(targets.read_out, torch.arange(len(targets.read_out)))
    interrupted = False
    try:
        if budget == n_active:
            columns = torch.arange(n_active)
            expansion.expand(columns)
        else:
            columns = select(expansion.store, targets.table.weight, budget, expansion.expand)
    except KeyboardInterrupt:
        if task.options.ranks.world > 1:  # each process may be elsewhere
            raise
        interrupted, columns = True, torch.nonzero(expansion.store.expanded).flatten()
        warnings.warn(
            f"interrupted: the graph holds the {len(columns)} features computed so far of {budget}",
            stacklevel=4,  # whoever called `attribute`
        )
    return ComputedRows(expansion.store, columns, expansion.plan, interrupted)


class Expansion:
    """Rows while they are computed: those that are done, and the plan, which gives something up when an allocation fails."""

    def __init__(self, task: Task, prompt: LinearPrompt, targets: TargetRows, plan: MemoryPlan, budget: int) -> None:
        self.task, self.prompt, self.plan, self.budget = task, prompt, plan, budget
        self.ranks, self.n_targets = task.options.ranks, len(targets.table)
        self.sweep = Sweep(prompt)
        column_layer = prompt.sources.active.layer[prompt.sources.feature_of_column]
        keep_mass = kept_mass(task.options.keep_edge_mass, prompt.n_pos)
        self.store = FinishedRows(prompt.network.n_layers, self.n_targets, column_layer, keep_mass, self.ranks)

    def expand(self, columns: Tensor) -> None:
        """Compute and keep the rows of features, given by column."""
        sources, model = self.prompt.sources, self.task.model
        features = sources.feature_of_column[columns]
        read_out = ReadOut.of_features(model.transcoders, sources.active, features, model.parts.compute_dtype)
        self.compute(read_out, self.n_targets + columns)

    def compute(self, read_out: ReadOut, row: Tensor) -> None:
        """Compute this process' share of some rows, numbered globally by `row`; rows that are done stay done."""
        # rows of all layers and positions for every process
        order = torch.argsort(read_out.position * (self.prompt.network.n_layers + 1) + read_out.layer, stable=True)
        missing = torch.zeros(len(row), dtype=torch.bool)
        missing[order[self.ranks.rank :: self.ranks.world]] = True

        def attempt(plan: MemoryPlan) -> None:
            pending = torch.nonzero(missing).flatten()
            for block in self.sweep.blocks(read_out.take(pending), plan.block_rows):
                here = pending[block.row]
                self.store.add(block, row[here])
                self.store.mark(row[here])  # at once: an interrupt keeps what is there
                missing[here] = False
                self.task.options.progress("features", int(self.store.expanded.sum()), self.budget)

        retrying(attempt, self.plan, lambda _, error: self._give_up(read_out.take(missing), error), self.task.device)
        self.store.mark(row)  # those of the other processes too

    def _give_up(self, missing: ReadOut, error: Exception) -> MemoryPlan:
        """Halve the rows in flight; with one row left, stop keeping decoder rows."""
        largest = max(map(len, split_rows(missing.layer, missing.position, self.plan.block_rows)), default=1)
        if largest > 1:
            self.plan = replace(self.plan, block_rows=largest).halved()
        elif self.prompt.decoder.release():
            self.plan = replace(self.plan, keep_decoder_rows=False)
        else:
            raise ResourceError(
                f"an allocation failed with one row in flight ({error or 'no memory'}). {int(self.store.expanded.sum())} of "
                f"{self.budget} rows were done; free memory, or expand fewer features (max_feature_nodes)"
            ) from error
        self.prompt.decoder.chunk_bytes = self.plan.chunk_bytes
        warnings.warn(f"an allocation failed; going on with {self.plan.block_rows} rows in flight", stacklevel=2)
        return self.plan
