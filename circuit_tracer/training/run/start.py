"""What a run starts with: drawn weights, a dictionary made elsewhere, or its own last checkpoint (training/README.md §11)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from circuit_tracer.attribution.input_shift import with_known_shift
from circuit_tracer.errors import CompatibilityError, InputError, shortened
from circuit_tracer.fingerprint import model_fingerprint
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.data import BatchStream
from circuit_tracer.training.data.points import width_of
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.run import checkpoint
from circuit_tracer.training.run.changes import Change, compared, settings_of
from circuit_tracer.training.run.checkpoint import Checkpoint
from circuit_tracer.training.run.events import Listener
from circuit_tracer.training.run.origin import Origin, open_origin, take_over_
from circuit_tracer.training.run.state import TrainingState
from circuit_tracer.training.step.normalisation import Normalisation


@dataclass(frozen=True)
class Start:
    """The checkpoint that a run goes on from, None for a new one, and all changes of its settings so far, oldest first."""

    resumed: Checkpoint | None = None
    changes: list[Change] = field(default_factory=list)

    @property
    def step(self) -> int:
        """Steps done."""
        return 0 if self.resumed is None else self.resumed.step

    def log_entries(self) -> list[dict[str, Any]]:
        """The changes, as they stand in the log."""
        return [change.entry() for change in self.changes]

    def words(self) -> list[str]:
        """What has happened, a line each, for people: nothing for a new run."""
        if self.resumed is None:
            return []
        now = [change for change in self.changes if change.step == self.step]
        return [f"resumed from {self.resumed.folder}, step {self.step}", *(f"from here on: {change}" for change in now)]


def find_start(config: TrainingConfig, folder: Path, resume: bool) -> Start:
    """What is in ``folder``. Raises InputError for a run that is there (or is not), CompatibilityError for another one's."""
    last = checkpoint.latest(folder / "checkpoints")
    if not resume:
        if last is not None:
            raise InputError(
                f"{folder} holds a run at step {last.step}. Continue it with --resume (resume=True), or choose another run.out."
            )
        return Start()
    if last is None:
        raise InputError(f"{folder} holds no checkpoint to resume from. Leave --resume out to begin.")
    return Start(last, compared(last, config, folder))


def find_origin(
    config: TrainingConfig, start: Start, parts: ModelParts, tokenizer: Any, layers: Sequence[int]
) -> Origin | None:
    """The dictionary that a new run starts from, if it does; checked against the model before anything is measured."""
    if config.run.start_from is None or start.resumed is not None:
        return None
    origin = open_origin(config.run.start_from, lambda found: with_known_shift(parts, found, tokenizer))
    origin.require_fits(config, layers, width_of(config.dictionary, parts))
    return origin


def make_state(
    config: TrainingConfig,
    start: Start,
    origin: Origin | None,
    layers: Sequence[int],
    stream: BatchStream,
    device: torch.device,
    ranks: FeatureRanks,
    listener: Listener,
) -> TrainingState:
    """The state at the first step, or that of the checkpoint; the stream stands where it does."""
    if start.resumed is None:
        listener.message(f"measuring means and scales on up to {config.data.statistics_tokens} tokens")
        space = measured_space(stream, config.data.statistics_tokens)
    else:
        space = Normalisation(**{name: checkpoint.shared(start.resumed, name) for name in Normalisation.names()})
    scale_S = torch.zeros(space.scale_x_S.shape[0], device=device) if config.sparsity.jacobian_weight else None
    state = TrainingState.initial(config, space, scale_S, device, ranks)
    if origin is not None:
        take_over_(state, origin, layers)
        listener.message(f"weights taken over from {origin.place}")
    if start.resumed is not None:
        checkpoint.load_(state, start.resumed)
        stream.restore(start.resumed.fact("data"))
    return state


def measured_space(stream: BatchStream, n_tokens: int) -> Normalisation:
    """The space of training (§2), measured on the first tokens of a stream."""
    moments = stream.statistics(n_tokens)
    return Normalisation.from_moments(moments.mean_x_SD, moments.variance_x_S, moments.mean_y_SD, moments.variance_y_S)


def facts_of(config: TrainingConfig, start: Start, origin: Origin | None, parts: ModelParts) -> dict[str, Any]:
    """What every checkpoint of the run says of it.

    Raises CompatibilityError when the checkpoint was trained on another model than the one loaded.
    """
    sizes = {"n_layers": parts.config.n_layers, "d_model": parts.config.d_model}
    facts: dict[str, Any] = {"config": settings_of(config), "model": {**sizes, "weights": model_fingerprint(parts)}}
    if start.resumed is not None:
        _require_same_model(start.resumed, facts["model"])
    if start.changes:
        facts["changes"] = [change.to_json() for change in start.changes]
    begun = origin.facts() if origin is not None else start.resumed and start.resumed.content.get("started_from")
    return facts | ({"started_from": begun} if begun else {})


def story_of(facts: dict[str, Any]) -> dict[str, Any]:
    """What the card tells of a run beside its settings: what it started from, and what changed on the way."""
    told: dict[str, Any] = {}
    if begun := facts.get("started_from"):
        told["started_from"] = {key: begun[key] for key in ("place", "fingerprint")}
    changes = [{key: one[key] for key in ("step", "changed")} for one in facts.get("changes", [])]
    return told | ({"changes": changes} if changes else {})


def _require_same_model(resumed: Checkpoint, found: dict[str, Any]) -> None:
    before = resumed.fact("model")
    if before != found:
        layers, width = (shortened(before.get(name)) for name in ("n_layers", "d_model"))
        raise CompatibilityError(
            f"{resumed.folder} was trained on another model than the one loaded now ({layers} layers of {width} against "
            f"{found['n_layers']} of {found['d_model']}, or other weights). Load the model the run began with, or choose "
            f"another run.out, with run.start_from {resumed.folder} to begin there from what was learned here."
        )
