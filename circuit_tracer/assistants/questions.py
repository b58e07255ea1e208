"""What an assistant sends with a call, tool by tool: the types from which each tool's input schema is made.

Every field has a bound. Nodes have the ids that they have everywhere: layer_feature_position for a feature, layer_-1_position
for an error, E_token_position for a token of the prompt, and (layers + 1)_token_position for an output.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from circuit_tracer.assistants.limits import MOST_EDITS, MOST_LISTED, MOST_NODES, MOST_PROMPT, MOST_ROWS
from circuit_tracer.viewer.server.messages import EditRequest, Sent, Share

GraphName = Annotated[
    str, Field(min_length=1, max_length=200, description="name of a graph of the folder, as list_graphs says it")
]
NodeId = Annotated[str, Field(min_length=1, max_length=200, description="a node's id, such as 3_25_9")]
Prompt = Annotated[str, Field(min_length=1, max_length=MOST_PROMPT)]
Listed = Annotated[int, Field(ge=1, le=MOST_LISTED, description="how many to list at most")]
Number = Annotated[int, Field(ge=0, le=10**9)]
NodeKind = Literal["feature", "error", "token", "output"]


class Nothing(Sent):
    """No arguments."""


class ListGraphs(Sent):
    """Part of the list of graphs."""

    limit: Listed = 50
    offset: Number = 0


class OfGraph(Sent):
    """A graph."""

    graph: GraphName


class GroupsOf(OfGraph):
    """How much of a graph's circuit to tell."""

    limit: Listed = 30
    least: Annotated[Share, Field(description="smallest share of a group's input that is listed")] = 0.05


class TopNodes(OfGraph):
    """Which nodes of a graph to list; without a kind, layer or position, all of them."""

    kind: NodeKind | None = None
    layer: Number | None = None
    position: Annotated[Number | None, Field(description="which token of the prompt, from 0")] = None
    limit: Listed = 20


class Neighbours(OfGraph):
    """A node whose edges to list."""

    node: NodeId
    direction: Literal["inputs", "outputs"] = "inputs"
    limit: Listed = 15


class Paths(OfGraph):
    """Two ends of paths."""

    target: NodeId | None = Field(default=None, description="where they end; default: the weightiest output")
    source: NodeId | None = Field(default=None, description="where they begin; default: any token of the prompt")
    limit: Annotated[int, Field(ge=1, le=50)] = 5


class SearchFeatures(Sent):
    """Words to look for in what features are called."""

    query: Annotated[str, Field(min_length=1, max_length=200)]
    graph: GraphName | None = Field(
        default=None, description="among the nodes of this graph; default: in the dictionary"
    )
    layer: Number | None = None
    limit: Listed = 20


class OneFeature(Sent):
    """A feature of the dictionary."""

    layer: Number
    feature: Number
    examples: Annotated[int, Field(ge=0, le=20, description="stretches of text to show")] = 5


class Story(OfGraph):
    """A graph whose story to tell."""

    tested: bool = Field(
        default=True, description="test each sentence by interventions, if the server has the graph's model"
    )


class NextTokens(Sent):
    """A prompt to read, without tracing it."""

    prompt: Prompt


class TracePrompt(Sent):
    """A prompt to trace, and how much of it to keep."""

    prompt: Prompt
    name: GraphName | None = Field(default=None, description="what the new graph is called; default: by its last words")
    replace: bool = Field(default=False, description="replace the graph of that name, if there is one")
    targets: list[Annotated[str, Field(min_length=1, max_length=200)]] | None = Field(
        default=None,
        max_length=20,
        description="tokens to explain, or feature:LAYER:POSITION:INDEX; default: the likeliest tokens",
    )
    max_n_logits: Annotated[int, Field(ge=1, le=50)] = 10
    max_feature_nodes: Annotated[int, Field(ge=1, le=MOST_ROWS)] | None = Field(
        default=None, description="features that get a row of their own; default: 7500, of neurons 2000"
    )
    node_threshold: Share = 0.8
    edge_threshold: Share = 0.98


class ExplainEdge(OfGraph):
    """An edge to split over attention heads."""

    source: NodeId
    target: NodeId
    limit: Annotated[int, Field(ge=1, le=100, description="heads and paths to list, the strongest")] = 10


class Intervene(OfGraph):
    """Changes of features that act together on a graph's prompt."""

    edits: list[EditRequest] = Field(
        min_length=1, max_length=MOST_EDITS, description=f"at most {MOST_NODES} nodes in all"
    )
    semantics: Literal["direct", "constrained", "iterative"] = Field(
        default="direct",
        description="what reacts: the model's own MLPs (direct); no feature but the edited ones, which is what a graph's edges "
        "mean (constrained); features, encoded anew layer by layer (iterative)",
    )
    freeze_attention: bool = True
    limit: Listed = 20


class CompareGraphs(Sent):
    """Two graphs of one dictionary."""

    a: GraphName
    b: GraphName
    target: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        default=None, description="a target of both, by its text; default: the weightiest"
    )
    positions: Literal["same", "end", "pooled"] = Field(
        default="same", description="which place of b answers to one of a: the same number, the same from the end, any"
    )
    limit: Listed = 20
