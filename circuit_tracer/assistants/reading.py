"""Tools that read: graphs, their nodes, paths and groups, and what features are called. No model runs, nothing is written."""

from __future__ import annotations

from typing import Any

import numpy as np

from circuit_tracer.assistants.answers import (
    About,
    Compared,
    Feature,
    FoundFeature,
    FoundFeatures,
    GraphEntry,
    GraphInfo,
    GraphList,
    Group,
    GroupInput,
    Groups,
    Neighbour,
    NeighbourList,
    NodeList,
    Path,
    PathList,
    Step,
    Target,
)
from circuit_tracer.assistants.limits import SHOWN
from circuit_tracer.assistants.nodes import NodeReader, kind_of, number_of
from circuit_tracer.assistants.questions import (
    CompareGraphs,
    GroupsOf,
    ListGraphs,
    Neighbours,
    Nothing,
    OfGraph,
    OneFeature,
    Paths,
    SearchFeatures,
    TopNodes,
)
from circuit_tracer.assistants.workplace import Workplace
from circuit_tracer.circuits import Grouping, contract, group_nodes, kept_grouping
from circuit_tracer.circuits.naming import name_groups, titles
from circuit_tracer.errors import InputError
from circuit_tracer.graph.node_words import NodeWords
from circuit_tracer.graph.paths import strongest_paths
from circuit_tracer.graph.summary import summarise
from circuit_tracer.many.comparison import compare
from circuit_tracer.version import package_version
from circuit_tracer.viewer.server.jobs import Job


def about(place: Workplace, asked: Nothing, job: Job) -> About:
    """What this server has: its model, how many graphs and labels, and its limits."""
    model = place.model
    open_now = None if model is None else model.opened
    return About(
        version=package_version(),
        model=None if open_now is None else open_now.facts(),
        model_state="none" if model is None else model.state,
        model_error=None if model is None else model.error,
        graphs=len(place.names()),
        labels=len(place.labels),
        examples=place.records is not None,
        most_tokens=place.limits.tokens,
        most_seconds=place.limits.seconds,
    )


def list_graphs(place: Workplace, asked: ListGraphs, job: Job) -> GraphList:
    """The graphs of the folder."""
    prompts = {entry["slug"]: entry.get("prompt") for entry in place.graphs.entries()[0]}
    names = place.names()
    shown = [
        GraphEntry(
            name=name,
            prompt=None if (prompt := prompts.get(name)) is None else str(prompt)[:SHOWN],
            whole=place.graphs.whole(name) is not None,
        )
        for name in names[asked.offset : asked.offset + asked.limit]
    ]
    return GraphList(graphs=shown, of=len(names))


def graph_info(place: Workplace, asked: OfGraph, job: Job) -> GraphInfo:
    """What a graph amounts to: its prompt, what it explains, its sizes, its scores and how exactly it adds up."""
    columns = place.columns(asked.graph)
    metadata, nodes = columns.document["metadata"], columns.document["nodes"]
    read = NodeReader(columns, place.labels)
    facts: dict[str, Any] = {}
    grouped = told = False
    if place.graphs.whole(asked.graph) is not None:
        graph = place.whole(asked.graph)
        facts, grouped, told = summarise(graph), graph.grouping is not None, graph.story is not None
    model = facts.get("model")
    return GraphInfo(
        name=asked.graph,
        prompt=str(facts.get("prompt", metadata.get("prompt", ""))),
        tokens=read.tokens,
        model=None if model is None else str(model).rstrip("/").rsplit("/", 1)[-1] if model[0] == "/" else str(model),
        targets=[
            Target(node=found.id, text=str(node.get("token") or found.label), weight=node.get("token_prob"))
            for number, node in enumerate(nodes)
            if kind_of(node) == "output" and (found := read(number))
        ],
        nodes=len(nodes),
        links=len(columns.weight),
        whole=bool(facts),
        active_features=facts.get("active_features"),
        replacement_score=facts.get("replacement_score", metadata.get("replacement_score")),
        completeness_score=facts.get("completeness_score", metadata.get("completeness_score")),
        worst_residual=facts.get("worst_residual", metadata.get("sum_rule_residual")),
        grouped=grouped,
        told=told,
        warnings=[str(text) for text in facts.get("warnings", ())],
    )


def top_nodes(place: Workplace, asked: TopNodes, job: Job) -> NodeList:
    """The most influential nodes of a graph; outputs, whose influence is given, come last."""
    columns = place.columns(asked.graph)
    read = NodeReader(columns, place.labels)
    order = np.argsort(columns.influence, kind="stable").tolist()
    wanted = {"kind": asked.kind, "layer": asked.layer, "position": asked.position}
    fits = [
        node
        for node in map(read, order)
        if all(value is None or getattr(node, name) == value for name, value in wanted.items())
    ]
    return NodeList(nodes=fits[: asked.limit], of=len(fits))


def neighbours(place: Workplace, asked: Neighbours, job: Job) -> NeighbourList:
    """What a node gets its value from, or what it gives to: its edges in the pruned graph, the largest first."""
    columns = place.columns(asked.graph)
    here = number_of(columns, asked.node)
    read = NodeReader(columns, place.labels)
    near, far = (columns.target, columns.source) if asked.direction == "inputs" else (columns.source, columns.target)
    edges = np.flatnonzero(near == here)
    edges = edges[np.argsort(-np.abs(columns.weight[edges]), kind="stable")]
    shown = [
        Neighbour(
            node=read(int(far[edge])),
            weight=float(columns.weight[edge]),
            share=float(columns.share[edge] * np.sign(columns.weight[edge])),
        )
        for edge in edges[: asked.limit].tolist()
    ]
    return NeighbourList(node=read(here), direction=asked.direction, neighbours=shown, of=len(edges))


def paths(place: Workplace, asked: Paths, job: Job) -> PathList:
    """The strongest paths of the whole graph to a node, from another one or from the tokens of the prompt."""
    graph = place.whole(asked.graph)
    names = graph.nodes.ids()
    if asked.target is None:
        target = int(graph.target_weights.argmax())
    else:
        (target,) = graph.nodes.numbers([asked.target], "target")
    source = None if asked.source is None else graph.nodes.numbers([asked.source], "source")[0]
    words = NodeWords(graph, place.called(graph))
    found = strongest_paths(graph, target, source, asked.limit)
    return PathList(
        paths=[
            Path(weight=each.weight, nodes=[Step(id=names[node], words=words.of(names[node])) for node in each.nodes])
            for each in found
        ]
    )


def search_features(place: Workplace, asked: SearchFeatures, job: Job) -> FoundFeatures:
    """Features whose label has these words, in the dictionary or among a graph's nodes; case does not matter."""
    nodes: dict[tuple[int, int], list[str]] = {}
    called = dict(place.labels)
    if asked.graph is not None:
        columns = place.columns(asked.graph)
        for node in map(NodeReader(columns, place.labels), range(len(columns.document["nodes"]))):
            if node.kind == "feature" and node.layer is not None and node.feature is not None:
                nodes.setdefault((node.layer, node.feature), []).append(node.id)
                called[node.layer, node.feature] = node.label
    elif not called:
        raise InputError("no labels are here; start the server with --labels, or search the nodes of a graph")
    wanted = asked.query.casefold()
    found = [
        FoundFeature(layer=layer, feature=index, label=label, nodes=nodes.get((layer, index), []))
        for (layer, index), label in sorted(called.items())
        if wanted in label.casefold()
        and (asked.graph is None or (layer, index) in nodes)
        and asked.layer in (None, layer)
    ]
    return FoundFeatures(features=found[: asked.limit], of=len(found))


def feature(place: Workplace, asked: OneFeature, job: Job) -> Feature:
    """What is known of a feature: its label, the tokens that it promotes, and stretches of text in which it is active."""
    where = (asked.layer, asked.feature)
    record = {} if place.records is None else place.records.get(where) or {}
    label = place.labels.get(where)
    if not record and label is None:
        raise InputError(
            f"nothing is known of feature {asked.feature} of layer {asked.layer}; start the server with --features-dir or "
            "--labels, or look at its edges with neighbours"
        )
    examples = [example for group in record.get("examples_quantiles", ()) for example in group["examples"]]
    return Feature(
        layer=asked.layer,
        feature=asked.feature,
        label=label,
        activation_frequency=record.get("activation_frequency"),
        promotes=record.get("top_logits", []),
        suppresses=record.get("bottom_logits", []),
        examples=[_marked(example) for example in examples[: asked.examples]],
    )


def groups(place: Workplace, asked: GroupsOf, job: Job) -> Groups:
    """The nodes of a graph in groups that do one thing together: those of its file, or else made now, by the graph alone."""
    graph = place.whole(asked.graph)
    called = place.called(graph)
    kept = kept_grouping(graph)
    job.progress("grouping")
    grouping = kept or name_groups(graph, group_nodes(graph, labels=called), labels=called, features=place.records)
    circuit = contract(graph, grouping)
    found = circuit.to_json(titles(graph, Grouping(circuit.groups)), float(graph.target_weights.sum()))
    told = {each["title"] for each in sorted(found, key=lambda each: -each["influence"])[: asked.limit]}
    return Groups(
        groups=[
            Group(
                name=each["title"],
                role=each["role"],
                nodes=each["members"],
                influence=each["influence"],
                inputs=[
                    GroupInput(group=name, share=share) for name, share in each["inputs"] if abs(share) >= asked.least
                ],
            )
            for each in found
            if each["title"] in told
        ],
        of=len(found),
        purity=None if grouping.score is None else grouping.score.purity,
        kept=kept is not None,
    )


def compare_graphs(place: Workplace, asked: CompareGraphs, job: Job) -> Compared:
    """What changes from one graph to another, node by node, so that it adds up to the change of the target."""
    job.progress("comparing")
    found = compare(place.copy(asked.a), place.whole(asked.b), target=asked.target, positions=asked.positions)
    same = ("target", "difference", "accounted", "gap", "unexplained", "conclusive", "verdict", "shares", "similarity")
    return Compared(
        **{name: getattr(found, name) for name in same}, nodes=found.largest(asked.limit), of=len(found.nodes)
    )


def _marked(example: dict[str, Any]) -> str:
    """A stretch of text around the token where the feature is most active."""
    tokens, peak = list(example["tokens"]), example["train_token_ind"]
    before, after = "".join(tokens[:peak])[-SHOWN // 2 :], "".join(tokens[peak + 1 :])[: SHOWN // 2]
    return f"{before}«{tokens[peak]}»{after}" if tokens else ""
