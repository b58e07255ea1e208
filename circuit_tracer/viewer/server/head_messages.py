"""What is asked and answered about attention heads: the types of that part of the API."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from circuit_tracer.graph.attention_scores import ScoreSide
from circuit_tracer.viewer.server.messages import Name, Sent

Index = Annotated[int, Field(ge=0, le=10**9)]
Head = tuple[int, int]
HeadAmount = Annotated[tuple[int, int, float], Field(description="layer, head, weight")]


class EdgeQuestion(Sent):
    """Which heads does the link between two nodes run through?"""

    source: Name
    target: Name
    paths: int = Field(default=10, ge=0, le=1000, description="whole paths of heads to list")


class HeadPath(BaseModel):
    """What runs through exactly these heads; positions are one more: where each stands, and where the last one leads."""

    heads: list[Head]
    positions: list[int]
    weight: float


class PathsLeft(BaseModel):
    """What the listed paths leave of the link: signed, in size (or more), and by the number of heads."""

    weight: float
    mass: float
    hops: list[float]


class EdgeAnswer(BaseModel):
    """A link split over heads (`EdgeExplanation`): direct and first, direct and last, and hops each add up to its weight.
    through: what it loses with a head, which counts a path for each of its heads and is no share.
    """

    source: str
    target: str
    weight: float
    direct: float
    first: list[HeadAmount]
    last: list[HeadAmount]
    through: list[HeadAmount]
    hops: list[float]
    mean_hops: float
    paths: list[HeadPath]
    rest: PathsLeft
    residual: float


class LinksQuestion(Sent):
    """Which heads do all links of a graph's file run through?"""

    keep: int = Field(default=3, ge=1, le=100, description="first and last heads to keep, the strongest of each link")


class ScoreQuestion(Sent):
    """Why does a head look from a query at a key, rather than at another one or at all others?"""

    layer: Index
    head: Index
    query: Index
    key: Index | None = Field(default=None, description="null: the key that it looks at most")
    versus: Index | Literal["rest"] | None = None


class ScoreAnswer(BaseModel):
    """A score of attention, or with versus the difference of logs of attention (`AttentionScore`): each side adds up to it.
    pattern: what the query gives to each position. pairs: query's id, key's id, weight. labels: of contributors, as far as the
    server has them, by id.
    """

    layer: int
    head: int
    query: int
    key: int
    versus: int | Literal["rest"] | None
    label: str
    score: float
    log_attention: float
    pattern: list[float]
    query_side: ScoreSide
    key_side: ScoreSide
    pairs: list[tuple[str, str, float]]
    residual: float
    labels: dict[str, str]


class HeadTableFile(BaseModel):
    """The diagnosis of all heads of a model, as `circuit-tracer heads -o heads.json` writes it."""

    model_config = ConfigDict(extra="allow")

    model: str
    scores: dict[str, str] = Field(description="what each column is")
    heads: list[dict[str, float | int | None]] = Field(description="a row a head: layer, head, and its scores")
