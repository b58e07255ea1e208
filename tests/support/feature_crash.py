"""A build that kills itself at a chosen moment. Work for `process_cases.alone`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from circuit_tracer.features import build as building
from circuit_tracer.features import build_folder
from circuit_tracer.features.segment import Segment
from tests.support.feature_cases import Case
from tests.support.process_cases import die

# moment: what is called then (owner, name)
MOMENTS: dict[str, tuple[Any, str]] = {
    "a batch": (Segment, "add"),
    "the move of a file into place": (os, "replace"),
    "a merge": (build_folder, "merge"),
    "the removal of merged files": (Path, "unlink"),
    "the records of a layer": (building, "write_layer"),
    "the removal of the working folder": (shutil, "rmtree"),
}


def go_on(case: Case, folder: Path, moment: str | None = None, calls: int = 0) -> None:
    """Build to the end, unless killed right before call ``calls`` of ``moment``."""
    building.ENTRIES = 150  # many stretches
    if moment is not None:
        owner, name = MOMENTS[moment]
        setattr(owner, name, _deadly(getattr(owner, name), calls))
    case.build(folder, "killed")


def _deadly(genuine: Callable[..., Any], calls: int) -> Callable[..., Any]:
    left = iter(range(calls))

    def maybe(*args: Any, **named: Any) -> Any:
        if next(left, None) is None:
            die()
        return genuine(*args, **named)

    return maybe
