"""What commands that intervene print with `--json`."""

from __future__ import annotations

from typing import Literal

from circuit_tracer.cli.answers.lines import Line, Written


class TokenMoved(Line):
    """A token of the vocabulary before and after; ranks count from 0."""

    text: str
    token_id: int
    probability_before: float
    probability_after: float
    logit_before: float
    logit_after: float
    rank_before: int
    rank_after: int


class FeatureMoved(Line):
    """A feature before and after, at what token, and what it is called if that is known."""

    layer: int
    position: int | None
    feature_idx: int
    token: str
    label: str | None
    before: float
    after: float


class Intervened(Line):
    """What an intervention did."""

    edits: list[str]
    semantics: str
    tokens: list[TokenMoved]
    features: list[FeatureMoved]
    changed_features: int


class Generated(Line):
    """Text that was written. finish: why it ended."""

    text: str
    ids: list[int]
    finish: Literal["length", "end", "stop"]


class WatchedWriting(Line):
    """What probes saw meanwhile: scores by probe and position, where each fired first, since when edits held."""

    scores: dict[str, list[float]]
    fired: dict[str, int]
    since: int | None


class SteeredText(Line):
    """Text with interventions and without."""

    prompt: str
    interventions: list[str]
    steered: Generated | None
    unsteered: Generated | None
    watched: WatchedWriting | None = None


class Patch(Line):
    """A place whose value was put into the other prompt. effect: 1: as the prompt that it comes from."""

    site: str
    layer: int
    position: int | None
    token: str | None
    unit: int | None
    value: float
    effect: float


class Patched(Written):
    """Activation patching. base, donor: the metric on the prompt that is patched, and on the one it is patched from."""

    mode: Literal["denoising", "noising"]
    metric: str
    base: float
    donor: float
    estimated: bool
    patches: list[Patch]
