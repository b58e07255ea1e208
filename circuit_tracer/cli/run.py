"""`circuit-tracer run`: trace a file of prompts into a folder that can be gone on with, shared and added to."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from circuit_tracer.cli import options, targets
from circuit_tracer.cli.loading import ModelOptions, quiet_loading
from circuit_tracer.cli.prompts import template_arguments
from circuit_tracer.errors import InputError, shortened

if TYPE_CHECKING:
    from circuit_tracer.many import Run
    from circuit_tracer.many.runs.run import Engine

SHOWN = 3  # reasons why rows failed that are printed; the table has all

# keys of the manifest that are said by options of other names; demo says two things
_SAID_BY = {
    "transcoders": ("transcoder_set", "demo"),
    "model": ("model", "demo"),
    "chat_options": ("chat_option",),
    "targets": ("target",),
}


@dataclass(frozen=True)
class RunModel(ModelOptions):
    """A run that is gone on with names its model itself."""

    required = False


@dataclass(frozen=True)
class Sharing:
    """Who does the work."""

    engine: Annotated[
        Literal["local", "ray"], typer.Option("--engine", help="Processes of this machine, or actors of a Ray cluster.")
    ] = "local"
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=1,
            help="Processes, each with a model of its own; default: one a GPU, else one; on Ray as many as find room.",
        ),
    ] = None
    shard: Annotated[
        str | None,
        typer.Option("--shard", metavar="I/N", help="Do a share only, 0/N to N-1/N, beside others on other machines."),
    ] = None
    unit_rows: Annotated[
        int,
        typer.Option("--unit-rows", min=1, help="Rows that are done together, or not at all when interrupted."),
    ] = 16
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, help="CPU threads of a worker; default: cores by workers, as the run begins."),
    ] = None
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            metavar="ADDRESS",
            help="Ray cluster, such as 10.0.0.1:6379; default: RAY_ADDRESS, one of this machine, or a new one.",
        ),
    ] = None
    gpus_per_worker: Annotated[
        float | None,
        typer.Option(
            "--gpus-per-worker", min=0.0, help="GPUs of a worker on Ray, 0.5 for two on one; default: 1, or 0 on CPUs."
        ),
    ] = None
    cpus_per_worker: Annotated[
        float | None,
        typer.Option(
            "--cpus-per-worker", min=0.0, help="CPUs of a worker on Ray; default: 1, or a worker's threads on CPUs."
        ),
    ] = None

    def __post_init__(self) -> None:
        on_ray = {
            "--cluster": self.cluster,
            "--gpus-per-worker": self.gpus_per_worker,
            "--cpus-per-worker": self.cpus_per_worker,
        }
        if self.engine != "ray" and (given := [name for name, value in on_ray.items() if value is not None]):
            raise InputError(f"{given[0]} is for Ray: give --engine ray with it")


def run(
    ctx: typer.Context,
    *,
    prompts: Annotated[str, typer.Argument(metavar="PROMPTS", help="JSONL, CSV or parquet file, or its address.")],
    output: Annotated[str, options.output("Folder of the run, or its address (s3://...); made if needed.")],
    chosen: RunModel,
    target: Annotated[list[str] | None, targets.OPTION] = None,
    prompting: options.Prompting,
    limits: options.Limits,
    sharing: Sharing,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try failed rows again, with the rows of their units.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Trace a file of prompts, a row each with id, prompt (or tokens, or chat), targets, label and whatever else.

    The same command goes on after an interruption, and does what was added to the file since; what a run was begun with need
    not be said again. Results are in results.parquet, a row each, and in graphs/.
    """
    from circuit_tracer.many import read_rows
    from circuit_tracer.many.runs.progress import ProgressDisplay
    from circuit_tracer.many.runs.run import run as run_rows

    rows = read_rows(prompts)
    quiet_loading()
    defaults = _manifest(chosen, target, prompting, limits, sharing)
    asked = _given(ctx, defaults)
    with (
        ProgressDisplay() as display,
        options.interruption(f"interrupted: {output} holds what is finished; go on with it"),
    ):
        found = run_rows(
            rows,
            output,
            asked,
            defaults=defaults,
            engine=_engine(chosen, sharing),
            shard=_shard(sharing.shard),
            retry_failed=retry_failed,
            source=PurePosixPath(prompts).name,
            report=display.report,
        )
    summary = _summary(found)
    typer.echo(options.dump(summary) if json else _as_text(summary))


def _manifest(
    chosen: ModelOptions,
    target: list[str] | None,
    prompting: options.Prompting,
    limits: options.Limits,
    sharing: Sharing,
) -> dict[str, dict[str, Any]]:
    """What the options say, as the manifest of a run has it."""
    from circuit_tracer.demo import MODEL

    named = {"transcoders": chosen.transcoders} if chosen.given else {}
    hooks = ("feature_input_hook", "feature_output_hook")
    same = ("attention", "adapter", "elsewhere", "revision", "dtype", "select", "input_shift", *hooks, "bos")
    limited = limits.arguments(chosen.of_neurons)
    means = {name: limited.pop(name) for name in ("offload", "memory")}
    reading = {
        "chat": prompting.chat,
        "chat_options": template_arguments(prompting.chat_option),
        "targets": target or None,
    }
    return {
        "opening": {
            **named,
            "model": MODEL if chosen.demo else chosen.model,
            "device": _kind(chosen, sharing),
            **{name: getattr(chosen, name) for name in same},
        },
        "tracing": {**reading, **prompting.arguments(), **limited},
        "layout": {"unit_rows": sharing.unit_rows, "threads": sharing.threads or _threads(chosen, sharing)},
        "means": {"lazy_encoder": chosen.lazy_encoder, "lazy_decoder": chosen.lazy_decoder, **means},
    }


def _given(ctx: typer.Context, said: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Those that were given on the command line, and are not defaults."""

    def is_given(key: str) -> bool:
        sources = (ctx.get_parameter_source(name) for name in _SAID_BY.get(key, (key,)))
        return any(source is not None and source.name == "COMMANDLINE" for source in sources)

    return {part: {key: value for key, value in keys.items() if is_given(key)} for part, keys in said.items()}


def _engine(chosen: ModelOptions, sharing: Sharing) -> Engine:
    from functools import partial

    if sharing.engine == "ray":
        from circuit_tracer.many.runs.on_ray import run_on_ray

        names = ("workers", "gpus_per_worker", "cpus_per_worker", "cluster")
        return partial(run_on_ray, **{name: getattr(sharing, name) for name in names})
    from circuit_tracer.many.runs.local import run_locally

    named = [chosen.device] if chosen.device and ":" in chosen.device else []
    return partial(run_locally, workers=sharing.workers, devices=named)


def _kind(chosen: ModelOptions, sharing: Sharing) -> str:
    """The kind of device; that of a cluster's machines need not be here."""
    if sharing.engine == "ray" and chosen.device and not chosen.demo:
        return chosen.device.partition(":")[0]
    return chosen.place()[0].type


def _threads(chosen: ModelOptions, sharing: Sharing) -> int:
    import os

    from circuit_tracer.many.runs.local import devices_of

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // (sharing.workers or len(devices_of(_kind(chosen, sharing)))))


def _shard(text: str | None) -> tuple[int, int]:
    number, separator, count = (text or "0/1").partition("/")
    if not (separator and number.isdecimal() and count.isdecimal()):
        raise InputError(f"--shard is {text!r}; write I/N, such as 0/4 for the first of four")
    return int(number), int(count)


def _summary(found: Run) -> dict[str, Any]:
    from circuit_tracer.many.runs.table import RESULTS

    counts = Counter(each["status"] for each in found.table)
    failed = [each for each in found.table if each["status"] == "failed"]
    first_of = {each["error"]: each["id"] for each in reversed(failed)}
    return {
        "run": found.address,
        "rows": len(found.table),
        **{status: counts[status] for status in ("done", "failed", "waiting")},
        "errors": dict(Counter(each["error_type"] for each in failed)),
        "examples": [{"id": id, "error": error} for error, id in reversed(first_of.items())][:SHOWN],
        "files": [found.store.where(RESULTS)],
    }


def _as_text(summary: dict[str, Any]) -> str:
    counts = ", ".join(f"{summary[status]:,} {status}" for status in ("done", "failed", "waiting") if summary[status])
    errors = ", ".join(f"{count:,} {name}" for name, count in summary["errors"].items())
    lines = [("rows", f"{summary['rows']:,}: {counts}"), *([("failed", errors)] if errors else [])]
    lines += [("", f"{shortened(each['id'])}: {each['error']}") for each in summary["examples"]]
    lines += [("wrote", path) for path in summary["files"]]
    return "\n".join(f"{name:<11}{text}" for name, text in lines)
