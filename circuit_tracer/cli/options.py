"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import torch

    from circuit_tracer.attribution.progress import Progress

DEBUG = "circuit_tracer.debug"


def _remember_debug(ctx: typer.Context, value: bool) -> bool:
    if value:
        ctx.meta[DEBUG] = True  # shared with the parent context, which reports errors
    return value


Debug = Annotated[
    bool, typer.Option("--debug", callback=_remember_debug, help="Show the traceback when something fails.")
]
Policy = Annotated[
    Literal["circuit-tracer", "paper"],
    typer.Option(
        "--policy", help="How to prune: as circuit-tracer does, or as the paper does (error nodes always stay)."
    ),
]
NodeThreshold = Annotated[
    float,
    typer.Option("--node-threshold", min=0.0, max=1.0, help="Keep nodes that hold this share of the influence."),
]
EdgeThreshold = Annotated[
    float,
    typer.Option("--edge-threshold", min=0.0, max=1.0, help="Keep edges that hold this share of the influence."),
]
Slug = Annotated[str | None, typer.Option("--slug", help="Name of the viewer's file, {slug}.json.")]
GraphFileDir = Annotated[
    Path | None, typer.Option("--graph-file-dir", help="Folder for the viewer's files; made if needed.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, one object a line, and nothing else.")]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16", "float64", "fp32", "bf16", "fp16", "fp64"],
    typer.Option("--dtype", help="Number format of model and transcoders; sums are in float32 or better."),
]
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory", metavar="SIZE", help="What the process may hold in all, such as 16GB; default: what is free."
    ),
]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, mps; default: the best there is.")]


def integers(text: str | None, option: str) -> list[int] | None:
    """Integers of a comma-separated list; [] for "none"; None stays None."""
    from circuit_tracer.errors import InputError

    if text is None or text.strip().lower() == "none":
        return None if text is None else []
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{option} is {text!r}; expected positions such as 0 or 0,1,2, or none") from error


def place(device: str | None) -> torch.device:
    """The device named, proved to be there; InputError otherwise."""
    import torch

    from circuit_tracer.errors import InputError
    from circuit_tracer.models.loading import resolve_device

    try:
        found = resolve_device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {device!r} cannot be used: {reason}. Try cpu, cuda, cuda:0 or mps") from error
    return found


def quiet_loading() -> None:
    """No bars while weights are loaded."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def progress(verbose: bool) -> AbstractContextManager[Progress]:
    """A context that yields where to report progress: a bar on standard error, or nowhere."""
    from contextlib import nullcontext

    from circuit_tracer.attribution.progress import bar, silent

    return bar() if verbose else nullcontext(silent)


def dump(value: Any) -> str:
    """One line of JSON; numbers that are not finite become null."""
    import json

    return json.dumps(_finite(value), ensure_ascii=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value
