"""Trace many prompts: the graphs that `attribute` would give one by one, with what short prompts have in common done once.

A group of prompts shares one pass of the model, one reading of encoder and decoder (side_by_side.py), and blocks of rows in
flight (rows_together.py, sweep.py); each prompt has its own targets, its own choice of features, its own balance. A group that
does not fit into memory, or that fails as a whole, is halved, down to prompts by themselves; these go the way of `attribute`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor

from circuit_tracer.arguments import typed
from circuit_tracer.attribution.attribute import left_out_of
from circuit_tracer.attribution.memory import free_bytes, held_bytes, is_out_of_memory, release_cached
from circuit_tracer.attribution.plan import MemoryPlan, keeps_patterns, plan_memory
from circuit_tracer.attribution.rows_together import Member, compute_together
from circuit_tracer.attribution.side_by_side import (
    EncodedPrompts,
    SomeCannotBeTraced,
    encode_prompts,
    linearise_prompts,
)
from circuit_tracer.attribution.stream_targets import AttentionTarget, DirectionSum, DirectionTarget, StreamTarget
from circuit_tracer.attribution.sweep import Sweep
from circuit_tracer.attribution.targets import Aim, Target, check_logit_options, resolve_targets
from circuit_tracer.attribution.task import Options, Task
from circuit_tracer.attribution.trace import make_graph, trace
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.errors import CircuitTracerError, InputError, ResourceError, warn
from circuit_tracer.fingerprint import fingerprints
from circuit_tracer.graph.balance import ReconstructionWarning
from circuit_tracer.graph.graph import Graph
from circuit_tracer.models import tokenization
from circuit_tracer.models.capture import check_length
from circuit_tracer.models.rotary import depends_on_length
from circuit_tracer.models.surroundings import plain_torch
from circuit_tracer.progress import Progress, bar, silent
from circuit_tracer.sizes import parse_bytes
from circuit_tracer.workers import workers_on

SHORT = 64  # tokens; longer prompts fill a machine by themselves
TOKENS_TOGETHER = 512  # of a group, each prompt counted as long as its longest

Outcome = Graph | CircuitTracerError


@typed
@plain_torch()
def attribute_together(
    prompts: Sequence[tokenization.Prompt],
    model: Traceable,
    *,
    attribution_targets: Sequence[Tensor | Sequence[Target] | None] | None = None,
    max_n_logits: int = 10,
    desired_logit_prob: float = 0.95,
    batch_size: int = 512,
    max_feature_nodes: int | None = None,
    zero_positions: Iterable[int] | None = None,
    position: int = -1,
    verbose: bool = False,
    progress: Progress | None = None,
    memory: int | str | None = None,
    keep_edge_mass: float | None = None,
    max_residual: float | None = None,
) -> list[Outcome]:
    """For each prompt its graph, or the CircuitTracerError that `attribute` raises for it.

    A graph is that of `attribute(prompt, model, ...)`: the same active and selected features, unless one meets its
    threshold to within rounding; edges to within rounding (1e-5 of the largest of their row in float32). The same prompts
    in the same order give the same bits.

    Prompts of more than 64 tokens, targets that read the stream on its way (`DirectionTarget`, `AttentionTarget`), neurons,
    models whose rotary embedding depends on the prompt's length and those with a dictionary of attention outputs are traced
    one by one. What `attribute` does besides (several processes, offloading, resuming) it alone does. An interrupt ends the
    call; a graph that has not been returned is lost.

    Args:
        prompts: Text or token ids (P,) each.
        model: The replacement model.
        attribution_targets: For each prompt what `attribute` takes, or None; None for all: their most probable tokens. The
            other options are those of `attribute`, for every prompt.
        max_n_logits: Most tokens that become targets, where none are given.
        desired_logit_prob: Their probability in all at which to stop.
        batch_size: Most rows in flight, of however many prompts.
        max_feature_nodes: How many features get a row of their own; None: all active ones.
        zero_positions: Positions without features and errors; None: the rule of `attribute`.
        position: Where targets that are tokens are read.
        verbose: Draw a progress bar.
        progress: Called with ("prompts", done, total); `verbose` draws a bar.
        memory: What this process may hold, in bytes or as text such as "16GB"; None: what is free.
        keep_edge_mass: Share of each row's mass that its edges keep.
        max_residual: The largest residual that is let through, if larger than what is promised.

    Returns:
        A graph or an error a prompt, in the order of the prompts.

    Raises:
        InputError: For options that are wrong for any prompt.

    Examples:
        >>> from circuit_tracer import attribute_together
        >>> graphs = attribute_together(["the capital of Texas is", "the capital of Oregon is"], model)
        >>> [graph.logit_targets[0].token_str for graph in graphs]
        ['Austin', 'Salem']
    """
    aims = [None] * len(prompts) if attribution_targets is None else list(attribution_targets)
    if len(aims) != len(prompts):
        raise InputError(
            f"{len(prompts)} prompts and {len(aims)} entries of attribution_targets; give one each, or None"
        )
    options = Options(
        batch_size=batch_size,
        max_feature_nodes=max_feature_nodes,
        memory=None if memory is None else parse_bytes(memory),
        keep_edge_mass=keep_edge_mass,
        max_residual=max_residual,
    )
    options.check()
    check_logit_options(model.parts.config.d_vocab, max_n_logits, desired_logit_prob)
    zero = None if zero_positions is None else list(zero_positions)
    outcomes: dict[int, Outcome] = {}
    with ExitStack() as stack, torch.no_grad():
        if progress is None:
            progress = stack.enter_context(bar()) if verbose else silent
        model.follow_weights()
        device = model.parts.device
        held = held_bytes(device)
        budget = options.memory or held + free_bytes(device)
        tasks: dict[int, Task] = {}
        for number, (prompt, targets) in enumerate(zip(prompts, aims, strict=True)):
            try:
                ids = tokenization.tokenize(prompt, model.tokenizer, model.prepend_bos)
                left_out = left_out_of(ids, model, zero)
            except CircuitTracerError as error:
                outcomes[number] = error
                continue
            flat = targets.flatten() if isinstance(targets, Tensor) else targets
            aim = Aim(flat, max_n_logits, desired_logit_prob, position)
            tasks[number] = Task(
                model, ids, left_out, aim, options, held, budget, coarse=model.transcoders.coarse_bytes
            )
        for group in _groups(model, tasks):
            outcomes |= zip(group, _together([tasks[number] for number in group]), strict=True)
            progress("prompts", len(outcomes), len(prompts))
    return [outcomes[number] for number in range(len(prompts))]


def _groups(model: Traceable, tasks: dict[int, Task]) -> Iterator[list[int]]:
    """Prompts that go together, by number: those of like length, so that little is filled up."""
    alone = model.transcoders.exact or model.attention is not None or any(depends_on_length(model.parts.base))
    group: list[int] = []
    for number in sorted(tasks, key=lambda number: (len(tasks[number].ids), number)):
        if alone or not _is_short(tasks[number]):
            yield [number]
            continue
        if group and (len(group) + 1) * len(tasks[number].ids) > TOKENS_TOGETHER:
            yield group
            group = []
        group.append(number)
    if group:
        yield group


def _is_short(task: Task) -> bool:
    """Whether a prompt can share; one that cannot be run at all says so by itself."""
    n_pos, targets = len(task.ids), task.aim.targets
    if not 0 < n_pos <= SHORT or len([p for p in task.left_out if p < n_pos]) == n_pos:
        return False
    if isinstance(targets, Sequence) and any(
        isinstance(target, DirectionTarget | DirectionSum | AttentionTarget | StreamTarget) for target in targets
    ):
        return False
    try:
        check_length(task.model.parts, task.ids)
    except CircuitTracerError:
        return False
    return True


def _together(tasks: list[Task]) -> list[Outcome]:
    """What becomes of each; halved if it does not go."""
    if len(tasks) == 1:
        return [_alone(tasks[0])]
    try:
        return _traced(tasks)
    except SomeCannotBeTraced as some:
        apart = [number in some.numbers for number in range(len(tasks))]
        others = iter(
            _together([task for task, each in zip(tasks, apart, strict=True) if not each]) if not all(apart) else []
        )
        return [_alone(task) if each else next(others) for task, each in zip(tasks, apart, strict=True)]
    except (CircuitTracerError, MemoryError, RuntimeError) as error:
        if not isinstance(error, CircuitTracerError) and not is_out_of_memory(error):
            raise
    release_cached(tasks[0].device)  # here the error is gone, and with it the frames that held what is to be freed
    half = len(tasks) // 2
    return _together(tasks[:half]) + _together(tasks[half:])


def _alone(task: Task) -> Outcome:
    try:
        graph = trace(task.model, task.ids, task.left_out, task.aim, task.options)
    except CircuitTracerError as error:
        return error
    if graph.unfinished is not None:  # a single trace would be kept as far as it came
        raise KeyboardInterrupt
    return graph


def _traced(tasks: list[Task]) -> list[Outcome]:
    """The graphs of some prompts, of which all can be run."""
    started, model = time.perf_counter(), tasks[0].model
    _require_patterns(tasks)
    encoded = encode_prompts(
        model.parts, model.transcoders, [task.ids for task in tasks], [task.left_out for task in tasks]
    )
    plan = _plan(tasks, encoded)
    prompts = linearise_prompts(encoded, model.transcoders, tasks[0].options.max_feature_nodes is None)
    if plan.keep_projections:
        encoded.network.keep_projections()
    outcomes: dict[int, Outcome] = {}
    members: list[Member] = []
    for number, (task, prompt) in enumerate(zip(tasks, prompts, strict=True)):
        try:
            members.append(Member(number, task, prompt, resolve_targets(model, prompt.network, task.aim)))
        except CircuitTracerError as error:
            outcomes[number] = error
    rows = compute_together(members, Sweep(*prompts, network=encoded.network), plan) if members else []
    fingerprint = fingerprints(model.parts, model.transcoders)
    share = (time.perf_counter() - started) / len(tasks)
    for member, computed in zip(members, rows, strict=True):
        task = replace(member.task, started=time.perf_counter() - share, fingerprint=fingerprint)
        if poor := member.prompt.reconstruction.warning:
            warn(poor, ReconstructionWarning)
        try:
            outcomes[member.number] = make_graph(task, member.prompt, member.targets, computed)
        except CircuitTracerError as error:
            outcomes[member.number] = error
    return [outcomes[number] for number in range(len(tasks))]


def _require_patterns(tasks: list[Task]) -> None:
    """Refuse a group whose attention patterns take more than their share of memory."""
    longest = max(tasks, key=lambda task: len(task.ids))
    nothing = torch.zeros(longest.model.parts.config.n_layers, len(longest.ids), dtype=torch.int64)
    if not keeps_patterns(longest.sizes(nothing), longest.held, _share(tasks)):
        raise ResourceError("the attention patterns of these prompts do not fit into memory together")


def _plan(tasks: list[Task], encoded: EncodedPrompts) -> MemoryPlan:
    """How rows are computed, if every prompt took as much memory as the one that takes most."""
    counts = encoded.counts_Ln.split([len(task.ids) for task in tasks], dim=1)
    task, largest = max(zip(tasks, counts, strict=True), key=lambda pair: int(pair[1].sum()) * pair[1].shape[1])
    workers, batch_size = workers_on(task.device), task.options.batch_size
    plan = plan_memory(
        task.sizes(largest), task.held_now, _share(tasks), batch_size, keep_patterns=True, workers=workers
    )
    if not plan.keep_decoder_rows:
        raise ResourceError("the decoder rows of these prompts do not fit into memory together")
    return plan


def _share(tasks: list[Task]) -> int:
    """What this process may hold, if each prompt has an equal part of what is left."""
    return tasks[0].held + (tasks[0].budget - tasks[0].held) // len(tasks)
