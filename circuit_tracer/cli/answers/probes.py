"""What `probe` and `monitor` print with `--json`."""

from __future__ import annotations

from typing import Any

from circuit_tracer.cli.answers.lines import Line
from circuit_tracer.probes.evaluate import Share as ShareOfRows


class ProbeMade(Line):
    """A probe. card: how it was made and measured."""

    name: str
    threshold: float
    bias: float
    card: dict[str, Any]
    file: str


class TokenScore(Line):
    """A token with its score; characters start ... end - 1 of the text."""

    position: int
    start: int
    end: int
    text: str
    score: float
    fires: bool


class TextScore(Line):
    """A text with its score; of probes on tokens, and with --tokens, its tokens."""

    text: str
    score: float
    fires: bool
    tokens: list[TokenScore] | None = None


class Measured(Line):
    """How well a probe does on texts that all have a label, by rows: tokens or texts."""

    rows: str
    positive: int
    negative: int
    groups: int
    auc: ShareOfRows
    recall: ShareOfRows
    false: ShareOfRows
    f1: float | None
    f1_spans: float | None


class ProbeReport(Line):
    """Behind the texts, where all have a label."""

    report: Measured


class Carrier(Line):
    """A node that carries a probe's score."""

    node: str
    what: str
    direct: float
    influence: float


class Effect(Line):
    """What the graph predicts of taking a feature out, and what it does."""

    what: str
    predicted: float
    measured: float


class ProbeExplained(Line):
    """Who carries a probe's score. direct: what it is made of, by kind of source."""

    probe: str
    text: str
    position: int | None
    token: str | None
    score: float
    threshold: float
    fires: bool
    direct: dict[str, float]
    residual: float
    errors: float
    features: list[Carrier]
    tokens: list[Carrier]
    tests: list[Effect]


class FlagReason(Line):
    """A feature that stands behind a flag. part: what it adds to the score."""

    layer: int
    feature: int
    activation: float
    part: float
    label: str | None = None


class Flag(Line):
    """Where a probe fired; characters start ... end - 1, which begin with `text`."""

    probe: str
    start: int
    end: int
    text: str
    position: int
    score: float
    features: list[FlagReason]


class Verdict(Line):
    """A text of a stream."""

    id: str
    flagged: bool
    flags: list[Flag]
    scores: dict[str, float]
    tokens: int


class Unread(Line):
    """A text of a stream that could not be read."""

    id: str
    problem: str


class Watched(Line):
    """The last line of a stream: how many texts it had."""

    texts: int
    flagged: int
    problems: int


class Calibrated(Line):
    """A probe with its new threshold. low, high: where the rate of false alarms lies."""

    name: str
    file: str
    threshold: float
    wished: float
    rate: float
    low: float
    high: float
    negatives: int
