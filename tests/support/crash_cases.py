"""A run that kills itself at a chosen moment. Work for `process_cases.alone`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from circuit_tracer.training.run import checkpoint, loop
from circuit_tracer.training.step import adam
from tests.support.loop_cases import Run
from tests.support.process_cases import die

# moment: what is called then (owner, name); a run with as many calls as a step or a save has lets each be chosen
MOMENTS: dict[str, tuple[Any, str]] = {
    "an update": (adam.Adam, "_update"),
    "a file of a checkpoint": (checkpoint, "_write_tensors"),
    "the move into place": (os, "replace"),
    "the removal of old ones": (checkpoint, "_remove"),
    "the removal of files": (os, "unlink"),
    "a report": (loop.Loop, "_report"),
}


def go_on(
    run: Run, folder: Path, moment: str | None = None, calls: int = 0, pause: float = 0.0, background: bool = False
) -> int:
    """Run from the last checkpoint to the end, unless killed right before call ``calls`` of ``moment``.

    Returns the step it began with. ``pause``: seconds a step takes longer. ``background``: checkpoints are written by a thread.
    """
    if moment is not None:
        owner, name = MOMENTS[moment]
        setattr(owner, name, _deadly(getattr(owner, name), calls))
    going = run.loop(folder, background=background, run__checkpoint_every_steps=2)
    begun, genuine = going.state.step, going.stream.next

    def slower() -> Any:
        time.sleep(pause)
        return genuine()

    going.stream.next = slower  # type: ignore[method-assign]
    going.run()
    going.save(done=True)
    return begun


def _deadly(genuine: Callable[..., Any], calls: int) -> Callable[..., Any]:
    left = iter(range(calls))

    def maybe(*args: Any, **named: Any) -> Any:
        if next(left, None) is None:
            die()
        return genuine(*args, **named)

    return maybe
