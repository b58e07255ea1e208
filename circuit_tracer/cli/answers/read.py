"""What commands that read graphs and features print with `--json`."""

from __future__ import annotations

from typing import Literal

from circuit_tracer.circuits.story.story import Evidence
from circuit_tracer.circuits.supernodes import GroupingScore, Role
from circuit_tracer.cli.answers.lines import Line, Written
from circuit_tracer.graph.attention_scores import AttentionScore
from circuit_tracer.viewer.server.head_messages import EdgeAnswer


class HeadCount(Line):
    """How many edges have this head among their strongest first and last ones."""

    layer: int
    head: int
    first: int
    last: int


class EdgeOverHeads(Line):
    """An edge and its strongest heads, each [layer, head, weight]."""

    source: str
    target: str
    weight: float
    direct: float
    mean_hops: float
    first: list[tuple[int, int, float]]
    last: list[tuple[int, int, float]]


class Explained(Line):
    """Heads of edges (of all, or of those of --edge in full), and scores of --score."""

    heads: list[HeadCount] | None = None
    edges: list[EdgeOverHeads] | list[EdgeAnswer] | None = None
    scores: list[AttentionScore] | None = None


class ToldSentence(Line):
    """A claim of a graph. status: what testing it gave. rephrased_by: the model that put it into these words."""

    kind: str
    text: str
    node_ids: list[str]
    evidence: Evidence | None
    rephrased_by: str | None
    status: Literal["holds", "does not hold", "not tested"]


class Told(Line):
    """What a graph says of its prompt."""

    title: str
    prompt: str
    target: str
    sentences: list[ToldSentence]
    left_out: list[str]
    seconds: float
    version: int


class GroupInCircuit(Line):
    """A group, what it has of the influence on the outputs, and its inputs: [title, share]."""

    title: str
    role: Role
    members: list[str]
    influence: float
    inputs: list[tuple[str, float]]


class Grouped(Line):
    """Groups of a graph's nodes, each [name, role, [node, ...]], and their circuit, readers after what they read."""

    supernodes: list[tuple[str, Role, list[str]]]
    settings: dict[str, str | float | int | None]
    score: GroupingScore | None
    circuit: list[GroupInCircuit]


class HeadScores(Written):
    """What every head of a model does. scores: what each column of a row is; heads: a row a head, with layer and head."""

    model: str
    dtype: str
    text: str
    n_layers: int
    n_heads: int
    n_sequences: int
    n_tokens: int
    n_skipped: int
    n_repeated: int
    losses: dict[str, float] | None
    ablated: str | None
    scores: dict[str, str]
    heads: list[dict[str, float]]


class Exported(Line):
    """Features in another form: how many files."""

    folder: str
    count: int


class Labelled(Written):
    """Features that were named, of how many. mean_score: of names that were tested."""

    labelled: int
    of: int
    mean_score: float | None = None


class Serving(Line):
    """Where a server answers; it goes on until Ctrl-C."""

    folder: str
    url: str
