"""`circuit-tracer train`: train transcoders. Every key of a configuration file is an option too, `--section.key VALUE`.

The keys are set aside by hand, because the schema is loaded only when this command runs, and a wrong key is answered with
the one that was meant (`config/files.py` says why no library does it).
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuit_tracer.cli import options
from circuit_tracer.cli.completion import presets
from circuit_tracer.cli.frame import Command
from circuit_tracer.cli.loading import quiet_loading
from circuit_tracer.errors import InputError

if TYPE_CHECKING:
    from circuit_tracer.training.config.schema import TrainingConfig
    from circuit_tracer.training.run.events import Listener

OVERRIDES = "circuit_tracer.train.overrides"
WRITTEN = (
    "transcoder",
    "transcoder/README.md",
    "transcoder/evaluation.json",
    "log.jsonl",
    "config.yaml",
    "checkpoints",
)


class TrainCommand(Command):
    """Takes the keys of the configuration as options; they are read off its types only when this command runs."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Set `--section.key VALUE` and `--section.key=VALUE` aside; the rest is parsed as ever."""
        own = {name for parameter in self.get_params(ctx) for name in parameter.opts}
        ctx.meta[OVERRIDES], rest = split_overrides(args, own)
        return super().parse_args(ctx, rest)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The keys, by section."""
        from circuit_tracer.training.config.files import preset_names
        from circuit_tracer.training.config.keys import keys, sections

        with formatter.section("Presets"):
            formatter.write_text(", ".join(preset_names()))
        for section, model in sections().items():
            title = (model.__doc__ or section).split("(§")[0].strip().rstrip(".")
            with formatter.section(f"{title} ({section})"):
                own = [key for key in keys().values() if key.section == section]
                formatter.write_dl([(f"--{key}", f"{key.description} {key.note}") for key in own])


def split_overrides(args: list[str], own: set[str]) -> tuple[dict[str, str], list[str]]:
    """(values by dotted key, everything else) of a command line; long options in ``own`` are not keys.

    Raises InputError for a key that does not exist, or one without a value.
    """
    from circuit_tracer.training.config.keys import find

    overrides: dict[str, str] = {}
    rest: list[str] = []
    left = list(args)
    while left:
        word = left.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or word == "--" or f"--{name.replace('_', '-')}" in own:
            rest.append(word)
            continue
        key = find(name.replace("-", "_"))
        if not equals:
            if not left or left[0].startswith("--"):
                raise InputError(f"--{name} has no value; expected {key.expected}. {key.description}")
            value = left.pop(0)
        if overrides.setdefault(str(key), value) != value:
            raise InputError(f"--{key} is given twice, as {overrides[str(key)]} and as {value}: leave one of them out")
    return overrides, rest


def train(
    ctx: typer.Context,
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG",
            autocompletion=presets,
            help="Preset, YAML or TOML file, or the folder of a run to go on with.",
        ),
    ],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in run.out.")] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what memory and time the run needs on this machine, and stop.")
    ] = False,
    find: Annotated[
        bool,
        typer.Option(
            "--find", help="Find the learning rate by short runs, print it and write it to OUT/find.json, and stop."
        ),
    ] = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the whole configuration as YAML, and stop.")
    ] = False,
    json: options.Json = False,
) -> dict[str, str]:
    """Train a cross-layer transcoder, per-layer transcoders or sparse autoencoders.

    Options below set single values of the configuration: --run.batch 8192. Several devices: torchrun --nproc-per-node N
    -m circuit_tracer train ...
    """
    from circuit_tracer.training.config.files import dump, load

    if find and resume:
        raise InputError("--find tries runs of its own and goes on with none: leave --resume out")
    settings = load(config, ctx.meta[OVERRIDES])
    if print_config:
        typer.echo(f"{options.dump(settings.model_dump(mode='json'))}\n" if json else dump(settings), nl=False)
    elif plan:
        _show_plan(settings, resume, json)
    elif find:
        _find(settings, json)
    else:
        _run(settings, resume, json)
        return {"out": str(settings.run.out)}
    return {"overridden": "yes"} if ctx.meta[OVERRIDES] else {}


def _show_plan(config: TrainingConfig, resume: bool, json: bool) -> None:
    from circuit_tracer.models.loading import present, resolve_device
    from circuit_tracer.training.run.requirements import plan_run
    from circuit_tracer.training.run.start import find_start

    quiet_loading()
    device = present(resolve_device(None if config.model.device == "auto" else config.model.device))
    done = find_start(config, config.run.out, resume=True).step if resume else 0
    plan = plan_run(config, device, int(os.environ.get("WORLD_SIZE", "1")), done)
    needs = ("device_needs", "host_needs", "disk_needs", "cache_needs", "step_seconds", "steps_left", "seconds")
    typer.echo(options.dump({name: getattr(plan, name) for name in needs}) if json else str(plan))
    plan.require_fits()


def _find(config: TrainingConfig, json: bool) -> None:
    from circuit_tracer.training.run.events import NullListener
    from circuit_tracer.training.run.find import FILE, find
    from circuit_tracer.training.run.progress import ProgressDisplay

    quiet_loading()
    first = os.environ.get("RANK", "0") == "0"
    with ExitStack() as closing:
        found = find(config, listener=closing.enter_context(ProgressDisplay()) if first else NullListener())
    if json and first:
        typer.echo(options.dump({**asdict(found), "files": [str(config.run.out / FILE)]}))


def _run(config: TrainingConfig, resume: bool, json: bool) -> None:
    from circuit_tracer.training.run.events import NullListener
    from circuit_tracer.training.run.progress import ProgressDisplay
    from circuit_tracer.training.run.trainer import train as run

    quiet_loading()
    first = os.environ.get("RANK", "0") == "0"  # of several processes, one speaks
    try:
        with ExitStack() as closing:
            listener: Listener = closing.enter_context(ProgressDisplay()) if first else NullListener()
            run(config, resume=resume, listener=listener)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(_kept(config.run.out) if first else "interrupted") from error
    if first:
        files = _written(config.run.out)
        if json:
            typer.echo(options.dump({"run": str(config.run.out), "files": [str(path) for path in files]}))
        else:
            options.say_written(files, json=False)


def _kept(folder: Path) -> str:
    from circuit_tracer.training.run import checkpoint

    last = checkpoint.latest(folder / "checkpoints")
    if last is None:
        return "interrupted before the first checkpoint: nothing is kept"
    return f"interrupted: step {last.step} is kept; go on later with: circuit-tracer train {folder} --resume"


def _written(folder: Path) -> list[Path]:
    return [path for name in WRITTEN if (path := folder / name).exists()]
