"""The rows of a trace: those of the targets, then those of the features that matter most.

Letters: K targets, N_s selected features.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.attribution.continuation import Continuation, identity_of, unfinished
from circuit_tracer.attribution.finished_block import FinishedBlock
from circuit_tracer.attribution.finished_rows import FinishedRows
from circuit_tracer.attribution.memory import retrying
from circuit_tracer.attribution.plan import MemoryPlan, kept_mass
from circuit_tracer.attribution.prompt import LinearPrompt
from circuit_tracer.attribution.read_out import ReadOut
from circuit_tracer.attribution.selection import select
from circuit_tracer.attribution.sweep import Sweep
from circuit_tracer.attribution.targets import TargetRows
from circuit_tracer.attribution.task import Task
from circuit_tracer.errors import ResourceError, warn
from circuit_tracer.graph.unfinished import Unfinished
from circuit_tracer.workers import in_order


@dataclass(frozen=True)
class ComputedRows:
    """All that the graph is made of."""

    store: FinishedRows
    columns: Tensor  # (N_s,) columns of the selected features
    plan: MemoryPlan  # less what was given up while rows were computed
    wanted: int  # features that were to have a row
    unfinished: Unfinished | None = None  # of a trace that was interrupted

    @property
    def interrupted(self) -> bool:
        """Whether features are missing that were to have a row."""
        return self.unfinished is not None


def compute_rows(
    task: Task, prompt: LinearPrompt, targets: TargetRows, plan: MemoryPlan, resume: Continuation | None = None
) -> ComputedRows:
    """The rows of the targets, and of as many features as the task allows, chosen by influence.

    An interrupt keeps the features computed so far, if this process is the only one; before all targets have their rows
    there is nothing to keep. resume: a trace to go on with; raises CompatibilityError if it is another one.
    """
    n_active = len(prompt.sources)
    budget = min(task.options.max_feature_nodes or n_active, n_active)
    expansion = Expansion(task, prompt, targets, plan, budget)
    if resume is not None:
        resume.require_same_trace(expansion.identity())
        resume.require_rows_of(expansion.store)
        expansion.store.take(resume.blocks)
    expansion.compute(targets.read_out, torch.arange(len(targets.read_out)))
    try:
        if resume is not None:
            expansion.finish(resume.asked)
        if budget == n_active:
            columns = torch.arange(n_active)
            expansion.expand(columns)
        else:
            columns = select(expansion.store, targets.table.weight, budget, expansion.expand)
        task.options.progress("assembling", 0, 1)
    except KeyboardInterrupt:
        if task.options.ranks.world > 1:  # each process may be elsewhere
            raise
        return expansion.interrupted()
    return ComputedRows(expansion.store, columns, expansion.plan, budget)


def no_rows(task: Task, prompt: LinearPrompt, targets: TargetRows) -> FinishedRows:
    """Where the rows of a prompt are kept."""
    sources, keep_mass = prompt.sources, kept_mass(task.options.keep_edge_mass, prompt.n_pos)
    n_targets, ranks, device = len(targets.table), task.options.ranks, prompt.error.device
    return FinishedRows(sources.n_steps, n_targets, sources.step_of_column, keep_mass, ranks, device)


def features_at(task: Task, prompt: LinearPrompt, columns: Tensor) -> ReadOut:
    """Where rows of features, given by column, start."""
    return prompt.read_outs(task.model.transcoders, prompt.sources.feature_of_column[columns])


class Expansion:
    """Rows while they are computed: those that are done, and the plan, which gives something up when an allocation fails."""

    def __init__(self, task: Task, prompt: LinearPrompt, targets: TargetRows, plan: MemoryPlan, budget: int) -> None:
        self.task, self.prompt, self.targets, self.plan, self.budget = task, prompt, targets, plan, budget
        self.ranks, self.n_targets = task.options.ranks, len(targets.table)
        self.asked = torch.empty(0, dtype=torch.int64)  # rows of the call in hand
        self.sweep = Sweep(prompt)
        self.store = no_rows(task, prompt, targets)

    def identity(self) -> dict[str, Any]:
        """Which trace this is."""
        return identity_of(self.task, self.prompt, self.targets, self.budget, self.store.keep_mass)

    def interrupted(self) -> ComputedRows:
        """What is there, with all that is needed to go on."""
        self.store.mark_stored()
        columns = torch.nonzero(self.store.expanded).flatten()
        warn(f"interrupted: the graph holds the {len(columns)} features computed so far of {self.budget}")
        left = unfinished(self.identity(), self.store, self.asked, self.plan)
        return ComputedRows(self.store, columns, self.plan, self.budget, left)

    def finish(self, asked: Tensor) -> None:
        """Compute what is missing of the rows that were asked for when a trace was interrupted."""
        if bool((asked >= self.n_targets).all()):
            self.expand(asked - self.n_targets)

    def expand(self, columns: Tensor) -> None:
        """Compute and keep the rows of features, given by column."""
        self.compute(features_at(self.task, self.prompt, columns), self.n_targets + columns)

    def compute(self, read_out: ReadOut, row: Tensor) -> None:
        """Compute this process' share of some rows, numbered globally by `row`; rows that are done stay done."""
        self.asked = row
        # rows of all layers and positions for every process
        order = torch.argsort(read_out.position * (self.prompt.network.n_layers + 1) + read_out.layer, stable=True)
        mine = order[self.ranks.rank :: self.ranks.world].sort().values
        share, number = read_out.take(mine), row[mine]

        def finished(rows: Tensor) -> FinishedBlock:
            return self.store.finished(self.sweep.block(share, rows), number[rows])

        def attempt(plan: MemoryPlan) -> None:
            blocks = self.sweep.split(share, plan.block_rows, plan.block_numbers, ~self.store.done[number])
            with closing(in_order(finished, blocks, plan.workers)) as done:
                for block in done:
                    self.store.add(block)
                    self.task.options.progress("features", int(self.store.expanded.sum()), self.budget)

        def smaller(_: MemoryPlan, error: Exception) -> MemoryPlan:
            return self._give_up(share, ~self.store.done[number], error)

        retrying(attempt, self.plan, smaller, self.task.device)
        self.store.mark(row)  # those of the other processes too

    def _give_up(self, share: ReadOut, missing: Tensor, error: Exception) -> MemoryPlan:
        """Go on with one worker; then halve the rows in flight; with one row left, stop keeping decoder rows."""
        blocks = self.sweep.split(share, self.plan.block_rows, self.plan.block_numbers, missing)
        largest = max(map(len, blocks), default=1)
        if self.plan.workers > 1:
            self.plan = replace(self.plan, workers=1)
        elif largest > 1:
            self.plan = replace(self.plan, block_rows=largest).halved()
        elif self.prompt.release():
            self.plan = replace(self.plan, keep_decoder_rows=False, keep_projections=False)
        else:
            raise ResourceError(
                f"an allocation failed with one row in flight ({error or 'no memory'}). {int(self.store.expanded.sum())} of "
                f"{self.budget} rows were done; free memory, or expand fewer features (max_feature_nodes)"
            ) from error
        self.prompt.decoder.chunk_bytes = self.plan.chunk_bytes
        if self.prompt.attention is not None:
            self.prompt.attention.decoder.chunk_bytes = self.plan.chunk_bytes
        warn(f"an allocation failed; going on with {self.plan.in_flight}")
        return self.plan
