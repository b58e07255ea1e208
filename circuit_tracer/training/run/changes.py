"""What may be different when a run goes on, what may not and why, and how a change is kept (training/README.md §11).

A change is an entry of the checkpoint's state.json under "changes": at which step, which keys from what to what, and where
the schedules stood then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from circuit_tracer.errors import CompatibilityError, FileFormatError, InputError, shortened
from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.run.checkpoint import Checkpoint, shared
from circuit_tracer.training.step.schedules import Reached, reach, settled

FREE, MAY = "changes no weight", "may change, and is recorded"
_DRAWN = "weights and the order of the data were drawn with it"
_AT_START = "it is read before the first step only"
_RULE = "features were ranked and thresholds learned by it"

# A key, or a section for its keys that have no row of their own -> FREE, MAY, or why it must stay as it is.
ON_RESUME: dict[str, str] = {
    "model": "another model has other activations",
    "model.device": FREE,
    "data": "the position in the data would be one in other rows",
    "data.cache": FREE,
    "data.buffer_place": FREE,
    "data.epochs": MAY,
    "data.statistics_tokens": _AT_START,
    "dictionary": "the weights are of that kind, size and number format",
    "sparsity": MAY,
    "sparsity.activation": _RULE,
    "sparsity.rank_by": _RULE,
    "sparsity.experts": "the router has a row for each",
    "sparsity.jacobian_weight": "directions and derivatives are part of the data's rows",
    "optimizer": MAY,
    "optimizer.moments": "the checkpoint holds them in that number format",
    "optimizer.place": FREE,
    "optimizer.averaging": "the checkpoint holds averages that it made, or none",
    "evaluation": FREE,
    "run": "weights follow from it",
    **{
        f"run.{name}": FREE
        for name in (
            "out",
            "threads",
            "data_parallel",
            "log_every",
            "checkpoint_every_steps",
            "tensorboard",
            "wandb",
            "export_dtype",
            "export_loss",
        )
    },
    "run.tokens": MAY,
    "run.schedule_tokens": MAY,
    "run.accumulate": MAY,
    "run.batch": "schedules and the position in the data count in batches",
    "run.seed": _DRAWN,
    "run.start_from": _AT_START,
}


@dataclass(frozen=True)
class Change:
    """Settings that differ from ``reached.step`` on: key -> (before, after)."""

    changed: dict[str, tuple[Any, Any]]
    reached: Reached

    @property
    def step(self) -> int:
        """Steps done before it."""
        return self.reached.step

    def to_json(self) -> dict[str, Any]:
        """For state.json."""
        return {**self.entry(), "reached": asdict(self.reached)}

    def entry(self) -> dict[str, Any]:
        """For the log and the card: {"step": n, "changed": {key: [before, after]}}."""
        return {"step": self.step, "changed": {key: list(pair) for key, pair in self.changed.items()}}

    def __str__(self) -> str:
        return ", ".join(f"{key} {_pair(pair)}" for key, pair in self.changed.items())


def verdict(key: str) -> str:
    """The row of ``ON_RESUME`` for a dotted key."""
    return ON_RESUME.get(key) or ON_RESUME[key.partition(".")[0]]


def settings_of(config: TrainingConfig) -> dict[str, Any]:
    """What decides the weights of a run, as plain values by dotted key."""
    flat = {
        f"{section}.{key}": value
        for section, values in config.model_dump(mode="json").items()
        for key, value in values.items()
    }
    return {key: value for key, value in flat.items() if verdict(key) != FREE}


def changes_of(checkpoint: Checkpoint) -> list[Change]:
    """Those that a run has seen before its checkpoint, oldest first."""
    found = checkpoint.content.get("changes", [])
    try:
        return [
            Change({key: (old, new) for key, (old, new) in one["changed"].items()}, Reached(**one["reached"]))
            for one in found
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FileFormatError(
            f"{checkpoint.folder} says that its changes are {shortened(found)}; remove it to resume from the one before."
        ) from error


def compared(checkpoint: Checkpoint, config: TrainingConfig, folder: Path) -> list[Change]:
    """The run's changes so far, with a last one if ``config`` differs from what the checkpoint was trained with.

    Raises CompatibilityError for keys that must stay as they are, InputError for a run that has no step left to do.
    """
    history = changes_of(checkpoint)
    before, now = checkpoint.fact("config"), settings_of(config)
    differing = {key: (before.get(key), value) for key, value in now.items() if before.get(key) != value}
    if refused := [key for key in differing if verdict(key) != MAY]:
        words = [f"{key} ({_pair(differing[key])}): {verdict(key)}" for key in refused]
        raise CompatibilityError(
            f"the run in {folder} cannot go on with other settings: {'; '.join(words)}. Resume with those it began with, or "
            f"choose another run.out, with --run.start_from {folder} to begin there from what was learned here."
        )
    if not differing:
        return history
    if config.steps < checkpoint.step:
        raise InputError(
            f"run.tokens is {config.run.tokens}, {config.steps} steps of run.batch {config.run.batch}, but the run in {folder} "
            f"is at step {checkpoint.step} already; give at least {checkpoint.step * config.run.batch}"
        )
    if config.steps == checkpoint.step and differing.keys() - {"run.tokens", "run.schedule_tokens"}:
        raise InputError(
            f"the run in {folder} has done all of its {config.steps} steps, so that {', '.join(differing)} would change "
            "nothing; raise run.tokens too, or leave the change out"
        )
    sizes = shared(checkpoint, "b_dec").shape
    return [*history, Change(differing, _reached(before, config, checkpoint.step, history, sizes))]


def last_reached(history: Sequence[Change]) -> Reached:
    """Where the schedules stood at the last change."""
    return history[-1].reached if history else Reached()


def _reached(
    before: dict[str, Any], config: TrainingConfig, step: int, history: Sequence[Change], sizes: Sequence[int]
) -> Reached:
    """Where the schedules of the settings before stand at ``step``; ``sizes``: source layers and width."""
    sections = {key.partition(".")[0] for key in before}
    old = config.model_copy(
        update={
            section: getattr(config, section).model_copy(
                update={
                    name: value
                    for key, value in before.items()
                    for own, _, name in [key.partition(".")]
                    if own == section
                }
            )
            for section in sections
        }
    )
    return reach(settled(old, *sizes), step, last_reached(history))


def _pair(values: tuple[Any, Any]) -> str:
    return " -> ".join("null" if value is None else shortened(value) for value in values)
