"""Tools that run the model: reading a prompt, tracing it, and testing what a graph says."""

from __future__ import annotations

from circuit_tracer.assistants.answers import (
    Change,
    EdgeSplit,
    OtherChange,
    ReadPrompt,
    StorySentence,
    StoryTold,
    Traced,
    WhatIf,
)
from circuit_tracer.assistants.limits import MOST_NODES
from circuit_tracer.assistants.nodes import NodeReader
from circuit_tracer.assistants.questions import ExplainEdge, Intervene, NextTokens, Story, TracePrompt
from circuit_tracer.assistants.workplace import Workplace
from circuit_tracer.circuits import group_nodes, kept_grouping
from circuit_tracer.circuits.naming import name_groups
from circuit_tracer.circuits.story import tell
from circuit_tracer.circuits.story.story import Story as ToldStory
from circuit_tracer.errors import InputError
from circuit_tracer.viewer.server.head_messages import EdgeQuestion
from circuit_tracer.viewer.server.jobs import Job
from circuit_tracer.viewer.server.messages import InterveneRequest, PromptText, Token, TraceRequest
from circuit_tracer.viewer.server.tracing import trace_into


def next_tokens(place: Workplace, asked: NextTokens, job: Job) -> ReadPrompt:
    """How the model reads a prompt, token by token, and the tokens it would say next; what a trace can explain."""
    engine, prompt = place.engine, PromptText(prompt=asked.prompt)
    tokens = _bounded(place, prompt)
    return ReadPrompt(tokens=tokens, next=engine.outputs(prompt).outputs)


def trace_prompt(place: Workplace, asked: TracePrompt, job: Job) -> Traced:
    """Trace how the model arrives at its next token; the graph is saved in the folder under a name."""
    place.require_writable(asked.name, asked.replace)
    engine = place.engine
    request = TraceRequest(
        prompt=asked.prompt,
        slug=asked.name,
        **asked.model_dump(exclude={"prompt", "name"}),
    )
    _bounded(place, request)
    found = trace_into(place.graphs, request, engine.trace, job, place.labels)
    return Traced(graph=found["slug"], nodes=found["nodes"], links=found["links"])


def explain_edge(place: Workplace, asked: ExplainEdge, job: Job) -> EdgeSplit:
    """Split an edge of a graph over the attention heads that it runs through."""
    graph, engine = place.whole(asked.graph), place.engine
    question = EdgeQuestion(source=asked.source, target=asked.target, paths=asked.limit)
    found = engine.explain_edge(graph, question)
    lists = {"first": found.first, "last": found.last, "through": found.through}
    strongest = {name: sorted(heads, key=lambda head: -abs(head[2]))[: asked.limit] for name, heads in lists.items()}
    kept = ("source", "target", "weight", "direct", "mean_hops", "paths", "residual")
    return EdgeSplit.model_validate(
        {name: getattr(found, name) for name in kept}
        | strongest
        | {"of": {name: len(heads) for name, heads in lists.items()}}
    )


def intervene(place: Workplace, asked: Intervene, job: Job) -> WhatIf:
    """Ablate, scale, set or add to features on a graph's prompt, and see what the model then says."""
    if (n_nodes := sum(len(edit.nodes) for edit in asked.edits)) > MOST_NODES:
        raise InputError(f"the edits name {n_nodes} nodes; at most {MOST_NODES} can be changed at once")
    if bare := [edit.how for edit in asked.edits if edit.how != "ablate" and "amount" not in edit.model_fields_set]:
        raise InputError(
            f"an edit says {bare[0]} and no amount: give the factor (scale), value (set) or what to add (add)"
        )
    columns = place.columns(asked.graph)
    document, read = columns.document, NodeReader(columns, place.labels)
    graph = None if place.graphs.whole(asked.graph) is None else place.whole(asked.graph)
    engine = place.engine
    job.progress("intervening")
    request = InterveneRequest(edits=asked.edits, semantics=asked.semantics, freeze_attention=asked.freeze_attention)
    found = engine.intervene(request, document, graph)
    changes = [
        Change(node=name, label=read(int(columns.number[name])).label, before=before, after=after)
        for name, (before, after) in found.nodes.items()
        if before != after and name not in found.given
    ]
    changes.sort(key=lambda each: -abs(each.after - each.before) / max(abs(each.before), abs(each.after), 1e-12))
    return WhatIf(
        semantics=found.semantics,
        edits=found.edits,
        changed_top=found.changed_top,
        tokens=found.tokens,
        nodes=changes[: asked.limit],
        of=len(changes),
        others=[
            OtherChange(
                node=f"{each.layer}_{each.feature}_{each.position}",
                label=place.labels.get((each.layer, each.feature), ""),
                before=each.before,
                after=each.after,
            )
            for each in found.others
        ],
    )


def story(place: Workplace, asked: Story, job: Job) -> StoryTold:
    """What a graph says of its prompt in sentences, each tested by interventions where the model is here."""
    graph = place.copy(asked.graph)
    if graph.story is not None:
        told = ToldStory.from_json(graph.story)
    else:
        called = place.called(graph)
        model = place.engine.model if asked.tested and place.model is not None else None
        job.progress("grouping")
        grouping = kept_grouping(graph) or group_nodes(graph, labels=called)
        job.progress("naming groups")
        grouping = name_groups(graph, grouping, labels=called, features=place.records, model=model)
        job.progress("telling")
        told = tell(graph, model, grouping)
    return StoryTold(
        title=told.title,
        sentences=[
            StorySentence.model_validate(
                {
                    "text": each.text,
                    "status": each.status,
                    "evidence": None if each.evidence is None else each.evidence.text,
                    "nodes": list(each.node_ids),
                }
            )
            for each in told.sentences
        ],
        left_out=list(told.left_out),
    )


def _bounded(place: Workplace, prompt: PromptText) -> list[Token]:
    """The prompt's tokens. Raises InputError for more than the server takes."""
    tokens = place.engine.tokens(prompt).tokens
    if len(tokens) > place.limits.tokens:
        raise InputError(
            f"the prompt has {len(tokens)} tokens; this server takes {place.limits.tokens} (--max-tokens): shorten it"
        )
    return tokens
