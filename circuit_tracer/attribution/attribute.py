"""Trace a prompt to an attribution graph.

Letters: P positions, D d_model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from circuit_tracer.arguments import typed, whole
from circuit_tracer.attribution.continuation import continuation_of
from circuit_tracer.attribution.held import Held
from circuit_tracer.attribution.targets import Aim, Target, check_logit_options
from circuit_tracer.attribution.task import Options
from circuit_tracer.attribution.trace import trace
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.errors import InputError
from circuit_tracer.graph.graph import Graph
from circuit_tracer.models import tokenization
from circuit_tracer.models.surroundings import plain_torch
from circuit_tracer.progress import Progress, bar, silent
from circuit_tracer.ranks import Ranks
from circuit_tracer.sizes import parse_bytes


@typed
@plain_torch()
def attribute(
    prompt: tokenization.Prompt,
    model: Traceable,
    *,
    attribution_targets: Tensor | Sequence[Target] | None = None,
    max_n_logits: int = 10,
    desired_logit_prob: float = 0.95,
    batch_size: int = 512,
    max_feature_nodes: int | None = None,
    offload: Literal["cpu", "disk"] | None = None,
    verbose: bool = False,
    update_interval: int = 4,
    zero_positions: Iterable[int] | None = None,
    position: int = -1,
    progress: Progress | None = None,
    memory: int | str | None = None,
    keep_edge_mass: float | None = None,
    max_residual: float | None = None,
    ranks: Ranks | None = None,
    resume: Graph | str | Path | None = None,
    held: Held | None = None,
) -> Graph:
    """Attribution graph of a prompt (text or ids (P,)): exact edges of the frozen linear network.

    Interrupting (Ctrl-C) ends the trace with the rows computed so far and a warning; `provenance["interrupted"]` says so,
    and the graph, saved or not, is what `resume` takes.

    Args:
        prompt: Text, token ids (P,), or a conversation's (`model.chat_tokens`).
        model: The replacement model.
        attribution_targets: None for the most probable tokens (at most `max_n_logits`, until `desired_logit_prob` is
            covered), token ids, token strings, `CustomTarget` or `LogitDifference`, read at `position`; `FeatureTarget`,
            `DirectionTarget`, `DirectionSum`, `AttentionTarget`.
        max_n_logits: Most tokens that become targets, where none are given.
        desired_logit_prob: Their probability in all at which to stop.
        batch_size: Most rows in flight; neither it nor `update_interval` (kept for scripts written for circuit-tracer)
            changes the result.
        max_feature_nodes: How many features get a row of their own, chosen by exact influence; None or 0: all active ones.
            Of neurons, how many are nodes, all of them with a row, chosen by total effect; None or 0: 2,000
            (attribution/README.md §9).
        offload: "cpu" or "disk": do not keep decoder rows in memory; they are read again from the transcoder's files.
        verbose: Draw a progress bar.
        update_interval: Kept for scripts written for circuit-tracer; changes nothing.
        zero_positions: Positions without features and errors; None for circuit-tracer's rule (position 0; the chat prefix
            of a Gemma 3 prompt that begins with it).
        position: Where targets that are tokens are read.
        progress: Called with (stage, done, total); `verbose` draws a bar.
        memory: What this process may hold in all, libraries and model included, in bytes or as text such as "16GB"; None:
            what is free. The trace is planned to fit (plan.py); a budget changes how it is done, never what comes out.
        keep_edge_mass: Share of each row's mass that its edges keep; the smallest go, and what they carried is counted as
            unselected in the row's balance. None: all of it up to 512 tokens, 0.98 for longer prompts.
        max_residual: The largest residual of the sum rule with which a graph is let through, if larger than what is
            promised for the dtype of the model's weights (`graph/balance.py`). A graph above is a NumericalError that names
            the worst row.
        ranks: The processes that share the rows (`Ranks.from_environment(device)` under torchrun); all call with the same
            arguments and get the same graph.
        resume: An interrupted graph, or its file: its rows are taken over, and on the same machine the graph is that of a
            trace that was not interrupted, to the bit.
        held: Features that an intervention sets, of which `interventions.attribute_edited` takes care.

    Returns:
        The graph.

    Raises:
        CompatibilityError: Naming what differs, for another prompt, model, dictionary or other settings.
        CircuitTracerError: For input that cannot be traced.

    Examples:
        >>> from circuit_tracer import LogitDifference, attribute
        >>> attribute("the capital of Texas is", model).logit_targets[0].token_str
        'Austin'
        >>> target = LogitDifference("Austin", "Dallas")
        >>> graph = attribute("the capital of Texas is", model, attribution_targets=[target])
        >>> graph.residual < 1e-5
        True
    """
    if update_interval < 1:
        raise InputError(f"update_interval {update_interval} must be at least 1")
    if resume is not None and ranks is not None and ranks.world > 1:
        raise InputError("an interrupted trace goes on in one process; leave torchrun out, or resume")
    if resume is not None and held is not None:
        raise InputError("a trace under an intervention cannot be resumed; trace it anew, without resume")
    continuation = None if resume is None else continuation_of(resume)
    check_logit_options(model.parts.config.d_vocab, max_n_logits, desired_logit_prob)
    with ExitStack() as stack, torch.no_grad():
        if progress is None:
            progress = stack.enter_context(bar()) if verbose else silent
        ids = model.ensure_tokenized(prompt)
        left_out = left_out_of(ids, model, zero_positions)
        if isinstance(attribution_targets, Tensor):
            attribution_targets = attribution_targets.flatten()
        aim = Aim(attribution_targets, max_n_logits, desired_logit_prob, position)
        options = Options(
            batch_size=batch_size,
            max_feature_nodes=max_feature_nodes,
            may_keep_rows=offload is None,
            memory=None if memory is None else parse_bytes(memory),
            keep_edge_mass=keep_edge_mass,
            max_residual=max_residual,
            ranks=ranks or Ranks(),
            progress=progress,
            verbose=verbose,
        )
        options.check()
        return trace(model, ids, left_out, aim, options, continuation, held)


def left_out_of(ids: Tensor, model: Traceable, zero_positions: Iterable[int] | None) -> list[int]:
    """The positions without features and errors: those that were named, or the rule's."""
    if zero_positions is None:
        return model.left_out(ids)
    chosen = sorted({whole(each, "a position of zero_positions") for each in zero_positions})
    if chosen and not (chosen[0] >= 0 and chosen[-1] < len(ids)):
        raise InputError(f"zero_positions {chosen} lie outside the prompt's {len(ids)} tokens")
    return chosen
