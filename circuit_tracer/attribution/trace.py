"""One trace, from token ids to a graph: encode -> plan -> linearise -> rows -> graph.

Each stage is a function of frozen values made by those before it. Where an allocation fails, `retrying` does a stage once more
in a way that takes less memory; what changes on the way while rows are computed is kept in one object (expansion.py).
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.attribution.assemble import assemble
from circuit_tracer.attribution.attention_nodes import LinearAttention
from circuit_tracer.attribution.continuation import Continuation
from circuit_tracer.attribution.expansion import ComputedRows, compute_rows
from circuit_tracer.attribution.held import Held
from circuit_tracer.attribution.memory import free_bytes, held_bytes, retrying
from circuit_tracer.attribution.neuron_choice import DEFAULT_NEURONS, rank_neurons
from circuit_tracer.attribution.plan import MemoryPlan, keeps_patterns, plan_memory
from circuit_tracer.attribution.prompt import EncodedPrompt, Finder, LinearPrompt, beside, encode_prompt, linearise
from circuit_tracer.attribution.prompt import encode as encode_features
from circuit_tracer.attribution.targets import Aim, TargetRows, resolve_targets
from circuit_tracer.attribution.task import Options, Task
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.errors import NumericalError, ResourceError, warn
from circuit_tracer.fingerprint import fingerprints
from circuit_tracer.graph.balance import ReconstructionWarning
from circuit_tracer.graph.graph import Graph
from circuit_tracer.graph.targets import LogitTarget
from circuit_tracer.models import tokenization
from circuit_tracer.models.frozen import FrozenNetwork
from circuit_tracer.models.parts import bind
from circuit_tracer.progress import doing
from circuit_tracer.transcoders.active import ActiveFeatures
from circuit_tracer.transcoders.neurons import Neurons
from circuit_tracer.transcoders.stacked import Part, Stacked
from circuit_tracer.version import package_version
from circuit_tracer.workers import workers_on

FEWER = (
    " The smallest neurons are sums that all but cancel: with fewer nodes (max_feature_nodes) the others are left out."
)


def trace(
    model: Traceable,
    ids: Tensor,
    left_out: list[int],
    aim: Aim,
    options: Options,
    resume: Continuation | None = None,
    held: Held | None = None,
) -> Graph:
    """The graph of a prompt, ids (P,), without features and errors at the `left_out` positions. resume: goes on with that.
    held: features that an intervention sets.
    """
    task = begin(model, ids, left_out, aim, options, held)
    with doing("running the model"):
        encoded = encode(task)
    plan = plan_for(task, encoded)
    if resume is not None:
        plan = resume.same_blocks(plan)
    with doing("making it linear"):
        prompt, plan = make_linear(task, encoded, plan)
    for poor in _warnings(task, prompt) if options.ranks.first else ():
        warn(poor, ReconstructionWarning)
    targets = resolve_targets(model, prompt.network, aim)
    rows = compute_rows(task, prompt, targets, plan, resume)
    try:
        return make_graph(task, prompt, targets, rows)
    except KeyboardInterrupt:
        warn("interrupted as the graph was made: it is made once more, so that no row is lost")
        return make_graph(task, prompt, targets, rows)


def begin(
    model: Traceable, ids: Tensor, left_out: list[int], aim: Aim, options: Options, held: Held | None = None
) -> Task:
    """The trace to do, and the memory that this process has for it."""
    device = model.parts.device
    taken = held_bytes(device)
    budget = options.memory or taken + free_bytes(device) // options.ranks.local
    coarse = model.transcoders.coarse_bytes
    return Task(model, ids, left_out, aim, options, taken, budget, held, coarse=coarse)


def encode(task: Task) -> EncodedPrompt:
    """Run the model and find the active features, which are those of the first process."""
    parts, transcoders, attention = task.model.parts, task.model.transcoders, task.model.attention
    no_features = torch.zeros(parts.config.n_layers, len(task.ids), dtype=torch.int64)
    encoded, _ = retrying(
        lambda keep: encode_prompt(
            parts,
            transcoders,
            task.ids,
            task.left_out,
            keep_patterns=keep,
            held=task.intervention,
            find=chosen_neurons(task),
            attention=attention,
        ),
        keeps_patterns(task.sizes(no_features), task.held, task.budget),
        lambda kept, _: False if kept else None,
        task.device,
    )
    found = encoded.active
    columns = map(task.options.ranks.broadcast, (found.layer, found.position, found.index, found.value))
    return replace(encoded, active=replace(ActiveFeatures(*columns), held=found.held))


def chosen_neurons(task: Task) -> Finder | None:
    """Where neurons are nodes: those with the largest effects on the targets, beside the features of other layers. None for a
    dictionary's features.
    """
    model = task.model
    parts = model.transcoders.stack() if isinstance(model.transcoders, Stacked) else [Part("", model.transcoders, 0)]
    neurons = next((part.dictionary for part in parts if isinstance(part.dictionary, Neurons)), None)
    if neurons is None:
        return None
    most = task.options.max_feature_nodes or DEFAULT_NEURONS

    def find(network: FrozenNetwork, keep_P: Tensor) -> tuple[ActiveFeatures, dict[str, Any]]:
        targets = resolve_targets(model, network, task.aim)
        ranked = rank_neurons(network, neurons, targets.read_out, targets.table.weight, keep_P, most)
        active = ranked.active
        for part in parts[:-1]:  # neurons are the last
            active = beside(encode_features(network, part.dictionary, keep_P), active, parts[-1].first)
        return active, {"neurons": {"of": ranked.count, "share_of_effect": ranked.share}}

    return find


def plan_for(task: Task, encoded: EncodedPrompt) -> MemoryPlan:
    """The plan of this process; if one process has too little memory, none goes on."""
    plan, refused, options = None, None, task.options
    try:
        plan = plan_memory(
            task.sizes(encoded.counts_LP, encoded.active.distinct(encoded.network.n_layers)),
            task.held_now,
            task.budget,
            options.batch_size,
            options.may_keep_rows,
            bool(encoded.network.captured.patterns),
            workers_on(task.device),
        )
    except ResourceError as error:
        refused = error
    if options.ranks.any(plan is None) or plan is None:
        raise refused or ResourceError("another process has too little memory for its share of this trace")
    if options.verbose and options.ranks.first:
        print(f"plan: {plan}", file=sys.stderr)
    return plan


def make_linear(task: Task, encoded: EncodedPrompt, plan: MemoryPlan) -> tuple[LinearPrompt, MemoryPlan]:
    """The prompt made linear, and the plan, in which less is kept if it did not fit."""

    def attempt(plan: MemoryPlan) -> LinearPrompt:
        encoded.network.release_projections()
        transcoders = task.model.transcoders
        prompt = linearise(encoded, transcoders, plan.keep_decoder_rows, plan.chunk_bytes, plan.workers)
        if plan.keep_projections:
            encoded.network.keep_projections()
        return prompt

    def smaller(plan: MemoryPlan, _: Exception) -> MemoryPlan | None:
        return plan.reading_again() if plan.keep_decoder_rows or plan.keep_projections else None

    return retrying(attempt, plan, smaller, task.device)


def make_graph(task: Task, prompt: LinearPrompt, targets: TargetRows, rows: ComputedRows) -> Graph:
    """The graph of the rows computed. Decoder rows are let go: no more rows can follow."""
    model, ids, active = task.model, task.ids, prompt.sources.active
    prompt.release()
    selected = prompt.sources.feature_of_column[rows.columns].sort().values
    edges, balance = assemble(rows.store, prompt, targets, selected, model.transcoders)
    tokenizer, table = model.tokenizer, targets.table
    graph = Graph(
        input_string=tokenizer.decode(ids.tolist())
        if tokenizer is not None
        else " ".join(str(i) for i in ids.tolist()),
        input_tokens=ids,
        active_features=torch.stack([active.layer, active.position, active.index], dim=1),
        adjacency_matrix=edges,
        cfg=model.parts.config,
        selected_features=selected,
        activation_values=active.value,
        logit_targets=[LogitTarget(label, int(i)) for label, i in zip(table.label, table.token_id, strict=True)],
        logit_probabilities=table.weight.cpu(),
        scan=model.transcoders.scan,
        parts=model.dictionary_parts,
        vocab_size=model.parts.config.d_vocab,
        balance=balance,
        targets=table,
        token_strings=tokenization.token_strings(ids, tokenizer),
        reconstruction=prompt.reconstruction,
        provenance=_provenance(task, prompt, targets, rows),
        unfinished=rows.unfinished,
    )
    try:
        return _within(graph, task.options.max_residual, FEWER if model.transcoders.exact else "")
    except NumericalError:
        bind(model.parts.model, model.parts.config.model_name)  # a hook that came later is the better reason
        raise


def _within(graph: Graph, max_residual: float | None, remedy: str = "") -> Graph:
    """The graph, if its rows add up; what it was allowed beyond the promise is recorded."""
    graph.require_balance(
        max_residual,
        "Load the model in a dtype of higher precision (float64 always holds), with torch's float32 matmul precision at "
        f"'highest', and trace again; max_residual (--max-residual) lets through what you must have.{remedy}",
    )
    if max_residual is not None:
        try:
            graph.require_balance()
        except NumericalError:
            graph.provenance["residual_allowed"] = graph.residual
    return graph


def _warnings(task: Task, prompt: LinearPrompt) -> list[str]:
    """What to tell of dictionaries that do not rebuild the model."""
    of_mlps = None if task.model.transcoders.exact else prompt.reconstruction.warning
    of_attention = None if prompt.attention is None else prompt.attention.warning
    return [poor for poor in (of_mlps, of_attention) if poor is not None]


def _provenance(task: Task, prompt: LinearPrompt, targets: TargetRows, rows: ComputedRows) -> dict[str, Any]:
    parts, transcoders, options, aim = task.model.parts, task.model.transcoders, task.options, task.aim
    return {
        "generator": {"name": "circuit-tracing", "version": package_version()},
        "model": parts.config.to_dict(),
        "transcoder": {
            "kind": transcoders.kind,
            "scan": transcoders.scan,
            "input_hook": transcoders.feature_input_hook,
            "output_hook": transcoders.feature_output_hook,
        },
        "fingerprint": task.fingerprint or fingerprints(parts, transcoders, task.model.attention),
        **({} if prompt.attention is None else {"attention": _of_attention(prompt.attention)}),
        "settings": {
            "max_n_logits": aim.max_n_logits,
            "desired_logit_prob": aim.desired_logit_prob,
            "batch_size": options.batch_size,
            "max_feature_nodes": options.max_feature_nodes,
            "zero_positions": task.left_out,
            "position": aim.position,
            "keep_edge_mass": rows.store.keep_mass,
        },
        "prediction": targets.prediction,
        "memory_plan": str(rows.plan),
        "processes": options.ranks.world,
        "dropped_mass": max((block.dropped for block in rows.store.blocks), default=0.0),
        "interrupted": rows.interrupted,
        "features": [len(rows.columns), rows.wanted],  # with a row, of so many
        **prompt.found,
        **({} if task.intervention is None else {"edits": task.intervention.words}),
        "warnings": _warnings(task, prompt),
        "seconds": round(time.perf_counter() - task.started, 3),
        "torch": torch.__version__,
        "device": str(task.device),
    }


def _of_attention(attention: LinearAttention) -> dict[str, Any]:
    dictionary = attention.frozen.dictionary
    return {
        "kind": dictionary.kind,
        "scan": dictionary.scan,
        "input_hook": dictionary.feature_input_hook,
        "output_hook": dictionary.feature_output_hook,
        "nmse": {str(layer): nmse for layer, nmse in attention.nmse.items()},
    }
