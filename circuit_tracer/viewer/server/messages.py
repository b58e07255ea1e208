"""What the page and scripts send, and what they get: the types of the API, from which its documentation is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Text = Annotated[str, Field(max_length=200_000)]


class Sent(BaseModel):
    """A request: exactly these fields, of exactly these types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Turn(Sent):
    """One message of a conversation."""

    role: Name
    content: Text


class PromptText(Sent):
    """A prompt: text, or a conversation under the model's chat template."""

    prompt: Text = ""
    messages: list[Turn] | None = Field(default=None, max_length=1000)


class TraceRequest(PromptText):
    """A prompt to trace; the settings are those of `attribute` and of pruning."""

    slug: Name | None = Field(default=None, description="Name of the graph; default: words of the prompt.")
    replace: bool = Field(default=False, description="Replace a graph of that name.")
    targets: list[Name] | None = Field(
        default=None,
        max_length=100,
        description="What to explain: tokens, or feature:LAYER:POSITION:INDEX, attn:L5H3:QUERY:KEY and the like, as on the "
        "command line; default: the likeliest tokens.",
    )
    max_n_logits: int = Field(default=10, ge=1, le=1000)
    desired_logit_prob: Share = 0.95
    max_feature_nodes: int | None = Field(
        default=None, ge=0, description="0: all, of neurons 2,000; default: `feature_nodes` of the session's model"
    )
    batch_size: int = Field(default=256, ge=1, le=100_000)
    node_threshold: Share = 0.8
    edge_threshold: Share = 0.98


class View(Sent):
    """What a page saves: the `qParams` of a graph file."""

    pinnedIds: list[Name] = Field(default_factory=list, max_length=10_000)
    supernodes: list[list[str]] = Field(default_factory=list, max_length=10_000, description="[[name, node id, ...]]")
    linkType: Literal["both", "either", "input", "output"] = "both"
    clickedId: str = Field(default="", max_length=200)
    sg_pos: str = Field(default="", max_length=100_000, description="x y of each box, in thousandths of the panel")
    clerps: list[tuple[str, str]] = Field(default_factory=list, max_length=100_000, description="[[node id, label]]")

    model_config = ConfigDict(strict=False)  # JSON has no tuples

    @classmethod
    def of(cls, params: Mapping[str, object]) -> View:
        """The view among the `qParams` of a file, which may hold more."""
        return cls.model_validate({name: value for name, value in params.items() if name in cls.model_fields})


class SavedGraph(Sent):
    """circuit-tracer's saving: the view as its page sends it, which is mended to the types of `View`."""

    qParams: dict[str, Any]


class PruneRequest(Sent):
    """Thresholds for pruning anew."""

    node_threshold: Share = 0.8
    edge_threshold: Share = 0.98
    keep: list[Name] = Field(
        default_factory=list, max_length=10_000, description="nodes to keep, besides those of the saved view"
    )


class CompareRequest(Sent):
    """Two graphs, by their names in the folder or the ids of rows of a run."""

    a: str = Field(min_length=1, max_length=1000)
    b: str = Field(min_length=1, max_length=1000)
    target: str | None = Field(default=None, max_length=1000, description="A target of both; null: the weightiest.")
    positions: Literal["same", "end", "pooled"] = Field("same", description="which place of b answers to one of a")


class GroupRequest(Sent):
    """Asks for groups; nothing needs to be said."""


class EditRequest(Sent):
    """One change of features."""

    nodes: list[Name] = Field(min_length=1, max_length=10_000, description="Feature nodes, layer_feature_position")
    how: Literal["scale", "set", "add", "ablate"]
    amount: float = Field(default=0, allow_inf_nan=False, description="factor, value or amount; not for ablate")
    at: Literal["own", "all", "prompt", "generated"] | int = Field(
        "own", description="own: each node's position; all: prompt and generated tokens; a number: that position"
    )
    name: Name | None = Field(default=None, description="of a supernode")


class InterveneRequest(Sent):
    """Changes that act together, and what may react to them (`interventions/README.md`)."""

    edits: list[EditRequest] = Field(min_length=1, max_length=1000)
    semantics: Literal["direct", "constrained", "iterative"] = "direct"
    freeze_attention: bool = True


class SteerRequest(Sent):
    """Changes under which text is generated."""

    edits: list[EditRequest] = Field(min_length=1, max_length=1000)
    max_new_tokens: int = Field(default=20, ge=1, le=2000)
    temperature: float = Field(default=0, ge=0, le=100)
    top_k: int | None = Field(default=None, ge=1)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int = 0


class ModelFacts(BaseModel):
    """The model at hand."""

    name: str
    transcoders: str | list[str] | None
    n_layers: int
    features_a_layer: int
    feature_nodes: int = Field(description="how many get a row of their own, where no number is asked for")
    chat: bool = Field(description="whether it has a chat template")


class Session(BaseModel):
    """What this server can do."""

    version: str
    token: str = Field(description="for the header x-circuit-tracer-token of every change")
    model: ModelFacts | None = Field(description="null: the server only shows graphs")
    heads: bool = Field(description="whether it has a diagnosis of the model's heads")


class GraphList(BaseModel):
    """The graphs of the folder: the metadata of each, with `bytes` and `can_prune`."""

    graphs: list[dict[str, Any]]
    warning: str | None = None


class Token(BaseModel):
    """One token as it reads in the text."""

    id: int
    text: str


class Tokens(BaseModel):
    """A prompt as the model reads it, special tokens included."""

    tokens: list[Token]
    most: int | None = Field(default=None, description="tokens that the model can read; null: unknown")


class Output(Token):
    """A token that may come next."""

    probability: float


class Outputs(BaseModel):
    """What the model would say after a prompt, the likeliest first; none while the model is at work."""

    outputs: list[Output]


class JobReport(BaseModel):
    """A job. `result` is there when `state` is done: {slug, nodes, links} of a trace, {links} where those of a graph were split
    over heads, else an `InterventionResult`, a `SteeringResult` or `OfferedGroups`.
    """

    id: str
    kind: Literal["trace", "intervene", "steer", "heads", "group"]
    state: Literal["running", "done", "failed", "cancelled"]
    stage: str
    done: int
    total: int
    text: str = Field(description="what steering has written so far")
    result: dict[str, Any] | None
    error: str | None
    seconds: float


class Pruned(BaseModel):
    """Numbers of what is left."""

    nodes: int
    links: int


class OfferedGroups(BaseModel):
    """Groups of a graph's nodes, which nobody has accepted yet, and what to pin besides."""

    supernodes: list[list[str]] = Field(description="[[name, node id, ...]]")
    pinned: list[str] = Field(description="the members, and tokens and outputs that stand alone")
    purity: float = Field(description="of what the groups' members do, the share that their group does as well")


class TokenOdds(BaseModel):
    """A token of the vocabulary behind the prompt, before and after; ranks count from 0."""

    text: str
    token_id: int
    probability_before: float
    probability_after: float
    rank_before: int
    rank_after: int


class FeatureMove(BaseModel):
    """A feature that is no node of the graph."""

    layer: int
    position: int
    feature: int
    before: float
    after: float


class InterventionResult(BaseModel):
    """What an intervention did. Activations of features, probabilities of outputs."""

    semantics: str
    edits: list[str]
    tokens: list[TokenOdds]
    nodes: dict[str, tuple[float, float]] = Field(description="before and after, by node id")
    given: dict[str, float] = Field(description="what the edited features were given, by node id")
    others: list[FeatureMove] = Field(description="the features outside of the graph that changed most")
    changed_top: bool


class Written(BaseModel):
    """Generated text, token by token."""

    text: str
    tokens: list[str]
    finish: Literal["length", "end", "stop"]


class SteeringResult(BaseModel):
    """Text with the changes and without."""

    prompt: str
    edits: list[str]
    steered: Written
    unsteered: Written


class Problem(BaseModel):
    """Why a request was refused."""

    error: str
