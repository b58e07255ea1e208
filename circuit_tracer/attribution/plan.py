"""What a trace will need, decided before it starts: which parts stay in memory, and how many rows travel at once.

A plan never changes a result, beyond rounding: it only decides what is kept and what is made again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from circuit_tracer.attribution.row_blocks import ENOUGH_FOR_TABLES, IN_CACHE
from circuit_tracer.attribution.trace_sizes import CAPTURED, PIECE, STATE, STATE_AT_ONCE, TraceSizes
from circuit_tracer.errors import ResourceError
from circuit_tracer.sizes import as_size

LONG = 512  # positions: beyond, attention patterns are made again where needed, and rows lose their smallest edges
KEPT_OF_LONG = 0.98  # of a row's mass
SHARE_FOR_PATTERNS = 0.25  # of what is free, even for short prompts
SHARE_FOR_PROJECTIONS = 0.125  # of it, for weights of attention as rows are multiplied by them on a GPU
FEWEST_ROWS = 32  # in flight, for keeping decoder rows to be worth their memory
ADVICE_WITHIN = 64  # parts of the number of rows advised
SLACK = 0.03  # of what a trace takes: gaps between allocations


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of a trace by phase and by what holds them, and the choices that keep them inside the budget."""

    work: TraceSizes
    held: int  # before the trace: libraries, model, transcoders
    budget: int  # for all of the process
    keep_patterns: bool
    keep_decoder_rows: bool
    block_rows: int
    chunk_bytes: int  # of decoder rows gathered at once
    block_numbers: int = 0  # what blocks are kept to beyond `block_rows`, if anything (`row_blocks.most_rows`)
    workers: int = 1  # that compute a block each
    keep_projections: bool = False  # weights of attention, as rows are multiplied by them on a GPU

    @cached_property
    def phases(self) -> dict[str, dict[str, int]]:
        """What exists at once, in each phase."""
        work = self.work
        captured, made, state = (work.state(copies, self.keep_patterns) for copies in (CAPTURED, STATE_AT_ONCE, STATE))
        kept = work.decoder_rows if self.keep_decoder_rows else 0
        blocks = work.blocks(self.block_rows, self.block_numbers)
        workers = min(self.workers, work.at_once(blocks))
        rows, unreturned = work.edge_rows(blocks, workers), work.unreturned(blocks, workers)
        gathered = 0 if self.keep_decoder_rows else workers * work.gathered(self.chunk_bytes)
        return {
            "run the model": {"frozen prompt": captured, "a layer at work": work.forward(self.keep_patterns)},
            "find active features": {"frozen prompt": captured, "a block of the encoder": work.encoding()},
            "read decoder rows": {
                "frozen prompt": made,
                "decoder rows": kept,
                "one layer's, being read": work.reading(self.keep_decoder_rows, self.chunk_bytes, self.workers),
            },
            "compute edges": {
                "frozen prompt": state,
                "decoder rows": kept or gathered,
                "weights of attention": work.projections if self.keep_projections else 0,
                "rows in flight": work.in_flight(blocks, workers),
                "finished rows": rows,
                "small edges, looked for": work.thinning(workers) if work.n_pos > LONG else 0,
                "kept for reuse by malloc": unreturned,
            },
            "make the graph": {
                "frozen prompt": state,
                "finished rows": rows,
                "edges of the graph": work.graph(),
                "kept for reuse by malloc": unreturned,
            },
        }

    @property
    def peak(self) -> int:
        """The most that the process is to hold (README.md §7.1 says how near that is)."""
        return self.held + int((1 + SLACK) * max(sum(items.values()) for items in self.phases.values()))

    def fits(self) -> bool:
        """Whether the peak lies inside the budget."""
        return self.peak <= self.budget

    def halved(self) -> MemoryPlan:
        """The same with half the rows in flight and half the chunk."""
        return replace(self, block_rows=max(1, self.block_rows // 2), chunk_bytes=max(1, self.chunk_bytes // 2))

    def reading_again(self) -> MemoryPlan:
        """The same with nothing kept for the rows: blocks are as large as they may be then, since each reads decoder rows."""
        return replace(self, keep_decoder_rows=False, keep_projections=False, block_numbers=0)

    @property
    def in_flight(self) -> str:
        """How many rows are computed at once, in words."""
        rows = f"{self.block_rows} rows in flight"
        return rows if self.workers == 1 else f"{rows} in each of {self.workers} workers"

    def __str__(self) -> str:
        patterns = "kept" if self.keep_patterns else "made again, tile by tile"
        decoder = "kept" if self.keep_decoder_rows else "read again for each block"
        return (
            f"{as_size(self.peak)} of {as_size(self.budget)} ({as_size(self.held)} are held already); attention patterns "
            f"{patterns}, decoder rows {decoder}, at most {self.in_flight}"
        )

    def table(self) -> str:
        """The plan for people: phases, what they hold, the largest marked."""
        lines = [str(self), f"  {'held before the trace':<28}{as_size(self.held):>12}"]
        most = max(sum(items.values()) for items in self.phases.values())
        for phase, items in self.phases.items():
            total = sum(items.values())
            lines.append(f"  {phase:<28}{as_size(total):>12}{'  <- the peak' if total == most else ''}")
            lines += [f"    {name:<26}{as_size(size):>12}" for name, size in items.items() if size]
        return "\n".join(lines)


def keeps_patterns(work: TraceSizes, held: int, budget: int) -> bool:
    """Whether attention patterns stay in memory; known before the model runs, since it needs no active features."""
    small = work.patterns + work.forward(keep_patterns=True) <= SHARE_FOR_PATTERNS * max(0, budget - held)
    return small and work.n_pos <= LONG


def keeps_projections(work: TraceSizes, held: int, budget: int) -> bool:
    """Whether what rows are multiplied by in attention is made once for all of them: on a GPU, where it is small."""
    return 0 < work.projections <= SHARE_FOR_PROJECTIONS * max(0, budget - held)


def kept_mass(asked: float | None, n_pos: int) -> float:
    """The share of each row's mass that is kept: what was asked for; else all, or a little less for long prompts.

    It depends on the prompt alone, so that no budget changes a result.
    """
    if asked is not None:
        return asked
    return 1.0 if n_pos <= LONG else KEPT_OF_LONG


def plan_memory(
    work: TraceSizes,
    held: int,
    budget: int,
    batch_size: int,
    may_keep_rows: bool = True,
    keep_patterns: bool | None = None,
    workers: int = 1,
) -> MemoryPlan:
    """The fastest plan that fits: decoder rows kept if they can be, then as many rows in flight as there is room for; fewer
    workers than `workers` before smaller blocks.

    keep_patterns: what was decided already; None decides it here. Raises ResourceError, with a number of feature nodes or a
    budget that fits, when nothing does.
    """
    keep = keeps_patterns(work, held, budget) if keep_patterns is None else keep_patterns
    for plan in _candidates(work, held, budget, batch_size, may_keep_rows, keep, workers):
        if plan.fits():
            return plan
    raise ResourceError(_too_much(plan))


def _candidates(
    work: TraceSizes, held: int, budget: int, batch_size: int, may_keep_rows: bool, keep_patterns: bool, workers: int
) -> Iterator[MemoryPlan]:
    chunk, made_once = max(1, min(PIECE, (budget - held) // 16)), keeps_projections(work, held, budget)
    for keep_rows in (True, False) if may_keep_rows else (False,):
        in_cache = keep_rows and not work.on_gpu
        # rows of tables are gathered for each block, which takes as long as some thirty rows of it
        numbers = IN_CACHE if in_cache and not work.stored_once else 0
        most = min(batch_size, ENOUGH_FOR_TABLES) if in_cache and work.stored_once else batch_size
        plan = MemoryPlan(work, held, budget, keep_patterns, keep_rows, most, chunk, numbers, workers, made_once)
        while True:
            yield plan
            if plan.workers > 1:
                plan = replace(plan, workers=plan.workers // 2)
            elif plan.block_rows == 1 or (keep_rows and plan.block_rows <= FEWEST_ROWS):
                break
            else:
                plan = replace(plan, block_rows=plan.block_rows // 2)


def _too_much(smallest: MemoryPlan) -> str:
    work = smallest.work
    low, high = 0, work.n_rows  # rows that fit, rows that do not
    while high - low > low / ADVICE_WITHIN + 1:
        middle = (low + high) // 2
        if replace(smallest, work=replace(work, n_rows=middle)).fits():
            low = middle
        else:
            high = middle
    advice = [f"give it more memory (memory='{as_size(smallest.peak)}', or --memory)"]
    if low:
        advice.insert(0, f"expand fewer features (max_feature_nodes={low} fits, or --max-feature-nodes)")
    return (
        f"{work.n_rows} rows over {work.n_active} active features need at least {as_size(smallest.peak)}, of which "
        f"{as_size(smallest.held)} are held already, but only {as_size(smallest.budget)} may be used; {' or '.join(advice)}"
    )
