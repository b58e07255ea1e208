"""What scripts send to have texts watched, and what they get."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from circuit_tracer.viewer.server.messages import Sent, Text


class MonitorRequest(Sent):
    """Texts to look at."""

    texts: list[Text] = Field(min_length=1, max_length=256)


class WatchedProbe(BaseModel):
    """A probe that watches."""

    name: str
    threshold: float
    pool: str = Field(description="token: it flags tokens; else texts as a whole")
    alarm: dict[str, Any] | None = Field(description="what the threshold was set on, if the probe says so")


class Watched(BaseModel):
    """All of them."""

    probes: list[WatchedProbe]


class Verdicts(BaseModel):
    """One a text, as `circuit-tracer monitor` writes them: {id, flagged, flags, scores, tokens}, or {id, problem}. The id is
    the text's number, from 1.
    """

    verdicts: list[dict[str, Any]]
