"""How much a call may ask for, and how much it may answer. What is over a limit is refused in words, never cut in silence."""

from __future__ import annotations

from dataclasses import dataclass

MOST_PROMPT = 20_000  # characters
MOST_LISTED = 200  # nodes, features or graphs of one answer
MOST_EDITS = 50
MOST_NODES = 500  # of all edits of an intervention
MOST_ROWS = 7500  # features that get a row of their own
MOST_BYTES = 64 * 2**10  # of an answer
MOST_WAITING = 16  # calls for one lane: the one that is answered, and those that wait
SHOWN = 300  # characters of a prompt in a list, and of a stretch of text


@dataclass(frozen=True)
class Limits:
    """What whoever starts the server decides. tokens: of a prompt. seconds: of a call, its waiting included."""

    tokens: int = 512
    seconds: float = 300.0
