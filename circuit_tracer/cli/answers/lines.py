"""Parts of lines of any command: errors, and files that were written."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Line(BaseModel):
    """A line; it has these fields and no others."""

    model_config = ConfigDict(extra="forbid")


class Failure(Line):
    """What went wrong. kind: the class of the error; UsageError for options that there are not, Interrupted after Ctrl-C."""

    kind: str
    message: str


class Failed(Line):
    """The last line of a command that failed, which says the same on standard error, and ends with another status than 0."""

    error: Failure


class Written(Line):
    """Files that were written."""

    files: list[str]
