"""What a tool answers: the types from which each tool's output schema is made.

Influence is cumulative, as in viewers: the share of all influence that this node and those with more hold. A share is that of
the target's |inputs|, signed. Lists say in ``of`` how many there are, where they show the first alone.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from circuit_tracer.many.comparison.schema import Node as ComparedNode
from circuit_tracer.many.comparison.schema import Share as ComparedShare
from circuit_tracer.many.comparison.schema import Similarity
from circuit_tracer.viewer.server.head_messages import HeadAmount, HeadPath
from circuit_tracer.viewer.server.messages import FeatureMove, ModelFacts, Output, Token, TokenOdds


class About(BaseModel):
    """What this server has."""

    version: str
    model: ModelFacts | None = Field(description="null: none that is open")
    model_state: Literal["none", "opening", "open", "failed"] = Field(
        description="none: graphs can be read, and nothing can be traced or tested"
    )
    model_error: str | None = Field(description="why the model could not be opened")
    graphs: int
    labels: int = Field(description="features that have a label")
    examples: bool = Field(description="whether features have stretches of text to show")
    most_tokens: int = Field(description="of a prompt")
    most_seconds: float = Field(description="of a call")


class GraphEntry(BaseModel):
    """A graph of the folder."""

    name: str
    prompt: str | None = Field(description="its beginning; null: the file has to be read to know (graph_info)")
    whole: bool = Field(description="whether the whole graph is here: paths, groups, stories and comparisons need it")


class GraphList(BaseModel):
    """Graphs of the folder by name."""

    graphs: list[GraphEntry]
    of: int


class Target(BaseModel):
    """What a graph explains. weight: for a token its probability."""

    node: str
    text: str
    weight: float | None


class GraphInfo(BaseModel):
    """A graph in numbers. nodes and links: after pruning, what top_nodes and neighbours see."""

    name: str
    prompt: str
    tokens: list[str]
    model: str | None
    targets: list[Target]
    nodes: int
    links: int
    whole: bool
    active_features: int | None = Field(description="null: only the pruned graph is here")
    replacement_score: float | None
    completeness_score: float | None
    worst_residual: float | None = Field(description="how far the worst row is from adding up (relative)")
    grouped: bool
    told: bool = Field(description="whether it has a story already")
    warnings: list[str]


class Node(BaseModel):
    """A node of a graph. token: at its position."""

    id: str
    kind: str
    layer: int | None
    position: int | None
    feature: int | None
    token: str | None
    label: str
    activation: float | None
    influence: float | None


class NodeList(BaseModel):
    """Nodes, the most influential first."""

    nodes: list[Node]
    of: int


class Neighbour(BaseModel):
    """What is at the other end of an edge. share: of the |inputs| of the edge's target, signed."""

    node: Node
    weight: float
    share: float


class NeighbourList(BaseModel):
    """The edges of a node, the largest first."""

    node: Node
    direction: Literal["inputs", "outputs"]
    neighbours: list[Neighbour]
    of: int


class Step(BaseModel):
    """A node on a path, in words."""

    id: str
    words: str


class Path(BaseModel):
    """A path from its source to its target. weight: product of its edges' shares: how much of the target runs along it."""

    weight: float
    nodes: list[Step]


class PathList(BaseModel):
    """Paths, the strongest first."""

    paths: list[Path]


class FoundFeature(BaseModel):
    """A feature whose label was found. nodes: of the graph that was asked about."""

    layer: int
    feature: int
    label: str
    nodes: list[str]


class FoundFeatures(BaseModel):
    """Features by their labels."""

    features: list[FoundFeature]
    of: int


class Feature(BaseModel):
    """What is known of a feature. examples: the token where it is most active is between « and »."""

    layer: int
    feature: int
    label: str | None
    activation_frequency: float | None
    promotes: list[str]
    suppresses: list[str]
    examples: list[str]


class GroupInput(BaseModel):
    """What a group gets from another one. share: of its whole input, signed."""

    group: str
    share: float


class Group(BaseModel):
    """Nodes that do one thing together. influence: share of what reaches the outputs that passes through it."""

    name: str
    role: str
    nodes: list[str]
    influence: float
    inputs: list[GroupInput]


class Groups(BaseModel):
    """A graph's groups of most influence, readers after what they read. purity: how alike what members of a group do is."""

    groups: list[Group]
    of: int
    purity: float | None
    kept: bool = Field(
        description="whether the graph's file has these groups; they were made for this answer otherwise"
    )


class StorySentence(BaseModel):
    """A claim of the graph, and what testing it gave."""

    text: str
    status: Literal["holds", "does not hold", "not tested"]
    evidence: str | None
    nodes: list[str]


class StoryTold(BaseModel):
    """What a graph says of its prompt."""

    title: str
    sentences: list[StorySentence]
    left_out: list[str]


class ReadPrompt(BaseModel):
    """A prompt token by token, and what the model would say next."""

    tokens: list[Token]
    next: list[Output]


class Traced(BaseModel):
    """A new graph of the folder, in numbers of the pruned one."""

    graph: str
    nodes: int
    links: int


class EdgeSplit(BaseModel):
    """An edge split over the heads that it runs through. direct and all of first add up to the weight, as do direct and all of
    last; through: what the edge loses with a head. Each lists the strongest, of so many heads as `of` says.
    """

    source: str
    target: str
    weight: float
    direct: float
    first: list[HeadAmount]
    last: list[HeadAmount]
    through: list[HeadAmount]
    of: dict[Literal["first", "last", "through"], int]
    mean_hops: float
    paths: list[HeadPath]
    residual: float


class Change(BaseModel):
    """A node before and after: the activation of a feature, the probability of an output."""

    node: str
    before: float
    after: float


class WhatIf(BaseModel):
    """What an intervention did. nodes: those of the graph that changed most, relative to what they were."""

    semantics: str
    edits: list[str]
    changed_top: bool = Field(description="whether another token is the likeliest now")
    tokens: list[TokenOdds]
    nodes: list[Change]
    of: int
    others: list[FeatureMove] = Field(description="features outside of the graph that changed most")


class Compared(BaseModel):
    """What changes from graph a to graph b, of which each node's edge onto the target accounts for a part."""

    target: str
    difference: float
    accounted: float
    gap: float
    unexplained: float
    conclusive: bool
    verdict: list[str]
    shares: list[ComparedShare]
    similarity: dict[Literal["features", "nodes"], Similarity]
    nodes: list[ComparedNode] = Field(description="what changes the target most, by its edges")
    of: int
