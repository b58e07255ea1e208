"""A whole run, from a configuration to a dictionary that can be traced with (training/README.md).

OUT/config.yaml     the configuration            OUT/transcoder/   the dictionary, as tracers read it, with
OUT/log.jsonl       one line a report                              evaluation.json and README.md, what was measured on it
OUT/checkpoints/    the last two
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.errors import CompatibilityError, InputError, shortened
from circuit_tracer.files import atomic_write, claimed, require_writable_folder
from circuit_tracer.fingerprint import model_fingerprint
from circuit_tracer.models.loading import load_language_model, resolve_device, resolve_dtype
from circuit_tracer.models.parts import ModelParts, bind
from circuit_tracer.models.surroundings import plain_torch
from circuit_tracer.models.verify import verify
from circuit_tracer.training.config import files as config_file
from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.data import BatchStream, held_out_activations, held_out_tokens, open_stream
from circuit_tracer.training.data.given.source import unseen_model
from circuit_tracer.training.evaluation.given import HOW_TO_GO_ON
from circuit_tracer.training.export.calibration import level_scores, n_batches
from circuit_tracer.training.export.export import export
from circuit_tracer.training.export.published import publish, require_baseline
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.run import checkpoint
from circuit_tracer.training.run.checkpoint import Checkpoint
from circuit_tracer.training.run.events import Listener, NullListener, StepReport
from circuit_tracer.training.run.log import RunLog
from circuit_tracer.training.run.loop import Loop, normalised
from circuit_tracer.training.run.requirements import plan_run
from circuit_tracer.training.run.state import TrainingState
from circuit_tracer.training.sparsity import rule_of
from circuit_tracer.training.step.normalisation import Normalisation

# Keys that may differ between a run and its resumption: they change no weight (threads and devices: beyond rounding).
FREE = (
    "run.out", "run.threads", "run.log_every", "run.checkpoint_every_steps", "run.tensorboard", "run.wandb",
    "run.export_dtype", "data.cache", "data.buffer_place", "model.device",
)  # fmt: skip


@dataclass(frozen=True)
class TrainingResult:
    """What a run leaves: the folder of the dictionary, the last checkpoint, and the evaluation as plain data."""

    transcoder: Path
    checkpoint: Path
    evaluation: dict[str, Any]


@plain_torch()
def train(config: TrainingConfig, *, resume: bool = False, listener: Listener | None = None) -> TrainingResult:
    """Train, evaluate and export. ``resume``: continue from the last checkpoint in ``run.out``, bitwise (CPU).

    Under torchrun every process calls this; only the first one reports and writes. Raises InputError, CompatibilityError,
    NumericalError or ResourceError with the next step; whatever happens, the last complete checkpoint stays.
    """
    device = resolve_device(None if config.model.device == "auto" else config.model.device)
    ranks = FeatureRanks.from_environment(device)
    folder = require_writable_folder(config.run.out) if ranks.first else config.run.out
    own = claimed(folder, "trains in") if ranks.first else nullcontext()
    with own, _threads(config.run.threads):
        start = _start(config, folder, resume)
        run = _Run(config, folder, device, ranks, listener if ranks.first and listener else NullListener())
        return run.train(start)


@dataclass
class _Run:
    config: TrainingConfig
    folder: Path
    device: torch.device
    ranks: FeatureRanks
    listener: Listener

    def train(self, start: Checkpoint | None) -> TrainingResult:
        config, ranks = self.config, self.ranks
        ranks.share(config.dictionary.features)
        with _logged(config, start, ranks, self.listener) as listener:
            self.listener = listener
            plan = plan_run(config, self.device, ranks.world)
            listener.message(str(plan))
            plan.require_fits()
            parts, tokenizer = self._model()
            require_baseline(config, parts)  # these two are found missing now rather than at the end
            held_out = held_out_tokens(config, tokenizer)
            stream = open_stream(config, parts, tokenizer, ranks)
            state = self._state(stream, start)
            if ranks.first:
                with atomic_write(self.folder / "config.yaml") as path:
                    path.write_text(config_file.dump(config), encoding="utf-8")
            facts = {"config": settings_of(config), "model": _fingerprint(parts)}
            loop = Loop(config, state, stream, ranks, listener, self.folder / "checkpoints", facts)
            if start is not None:
                _require_same_model(start, facts["model"])
                checkpoint.load_(state, start)
                stream.restore(start.fact("data"))
                loop.saved = start.folder
                listener.message(f"resumed from {start.folder}, step {state.step} of {config.steps}")
            loop.run(lambda: self._publish(loop, parts, tokenizer, held_out))
            return self._publish(loop, parts, tokenizer, held_out)

    def _model(self) -> tuple[ModelParts, Any]:
        """The model and its tokenizer; only sizes, and no tokenizer, when its activations were made elsewhere."""
        if self.config.data.kind == "activations":
            return unseen_model(self.config, self.device, self.ranks), None
        model, tokenizer = load_language_model(
            self.config.model.name,
            self.device,
            resolve_dtype(self.config.model.dtype),
            **({"revision": self.config.model.revision} if self.config.model.revision else {}),
        )
        parts = bind(model, self.config.model.name)
        verify(parts)
        return parts, tokenizer

    def _state(self, stream: BatchStream, start: Checkpoint | None) -> TrainingState:
        """The state at the first step, or one of the right sizes to load a checkpoint into."""
        config = self.config
        if start is None:
            self.listener.message(f"measuring means and scales on {config.data.statistics_tokens} tokens")
            moments = stream.statistics(config.data.statistics_tokens)
            space = Normalisation.from_moments(
                moments.mean_x_SD, moments.variance_x_S, moments.mean_y_SD, moments.variance_y_S
            )
        else:
            space = Normalisation(**{name: checkpoint.shared(start, name) for name in Normalisation.names()})
        n_layers = space.scale_x_S.shape[0]
        scale_S = torch.zeros(n_layers, device=self.device) if config.sparsity.jacobian_weight else None
        return TrainingState.initial(config, space, scale_S, self.device, self.ranks)

    def _publish(self, loop: Loop, parts: ModelParts, tokenizer: Any, held_out: list[Tensor]) -> TrainingResult:
        """Checkpoint with calibrated levels, dictionary, evaluation, card. What is measured is what was written."""
        config, layers = self.config, self.config.dictionary.layers or list(range(parts.config.n_layers))
        levels = self._levels(loop.state, parts, tokenizer)
        saved = loop.save(levels=levels)
        transcoder = self.folder / "transcoder"
        evaluation: dict[str, Any] = {}
        if self.ranks.first:
            export(checkpoint.read(saved), config, levels, transcoder, config.model.name, layers)
            self.listener.message(f"dictionary written to {transcoder}; evaluating it")
            evaluation = publish(config, parts, tokenizer, transcoder, layers, held_out, loop.state.step)
            if config.data.kind == "activations":
                self.listener.message(HOW_TO_GO_ON)
            self.listener.evaluated(evaluation)
        self.ranks.barrier()
        return TrainingResult(transcoder, saved, evaluation)

    def _levels(self, state: TrainingState, parts: ModelParts, tokenizer: Any) -> list[float] | None:
        """Calibrate thresholds on held-out tokens, in batches like those of training (§9)."""
        if not rule_of(self.config.sparsity).has_budget:
            return None
        n_tokens = n_batches(self.config.run.batch) * self.config.run.batch
        held_out = held_out_activations(self.config, parts, tokenizer, n_tokens)
        x_SBD = normalised(held_out, state.normalisation).x_SBD
        batches = list(zip(*(x_BD.split(self.config.run.batch) for x_BD in x_SBD), strict=True))
        return level_scores(state.dictionary, batches, self.config.sparsity, state.running_cut, self.ranks)


def settings_of(config: TrainingConfig) -> dict[str, Any]:
    """What decides every weight of a run, as plain values by dotted key."""
    flat = {
        f"{section}.{key}": value
        for section, values in config.model_dump(mode="json").items()
        if section != "evaluation"
        for key, value in values.items()
    }
    return {key: value for key, value in flat.items() if key not in FREE}


def _start(config: TrainingConfig, folder: Path, resume: bool) -> Checkpoint | None:
    """The checkpoint to continue from; None for a new run."""
    last = checkpoint.latest(folder / "checkpoints")
    if not resume:
        if last is not None:
            raise InputError(
                f"{folder} holds a run at step {last.step}. Continue it with --resume (resume=True), or choose another run.out."
            )
        return None
    if last is None:
        raise InputError(f"{folder} holds no checkpoint to resume from. Leave --resume out to begin.")
    before, now = last.fact("config"), settings_of(config)
    differing = [key for key in now if before.get(key) != now[key]]
    changed = [f"{key} ({shortened(before.get(key))} -> {shortened(now[key])})" for key in differing]
    if changed:
        raise CompatibilityError(
            f"the run in {folder} began with other settings: {', '.join(changed)}. Resume with those it began with, or "
            "choose another run.out."
        )
    return last


def _fingerprint(parts: ModelParts) -> dict[str, Any]:
    """Sizes and weights of the model: the same on any device and number of threads."""
    sizes = {"n_layers": parts.config.n_layers, "d_model": parts.config.d_model}
    return {**sizes, "weights": model_fingerprint(parts)}


def _require_same_model(start: Checkpoint, found: dict[str, Any]) -> None:
    before = start.fact("model")
    if before != found:
        layers, width = (shortened(before.get(name)) for name in ("n_layers", "d_model"))
        raise CompatibilityError(
            f"{start.folder} was trained on another model than the one loaded now ({layers} layers of {width} against "
            f"{found['n_layers']} of {found['d_model']}, or other weights). "
            "Load the model the run began with, or choose another run.out."
        )


@contextmanager
def _threads(n_threads: int | None) -> Iterator[None]:
    """Deterministic algorithms and the asked-for number of CPU threads inside; what was set before, after."""
    before, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    if n_threads is not None:
        torch.set_num_threads(n_threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(strict)


@contextmanager
def _logged(
    config: TrainingConfig, start: Checkpoint | None, ranks: FeatureRanks, listener: Listener
) -> Iterator[Listener]:
    """The caller's listener together with the logs of the run; nothing is logged by other ranks than the first."""
    if not ranks.first:
        yield listener
        return
    with RunLog(config, 0 if start is None else start.step) as log:
        yield _Both(log, listener)


@dataclass(frozen=True)
class _Both:
    """Two listeners as one."""

    first: Listener
    second: Listener

    def progress(self, report: StepReport) -> None:
        """Tell both."""
        self.first.progress(report)
        self.second.progress(report)

    def message(self, text: str) -> None:
        """Tell both."""
        self.first.message(text)
        self.second.message(text)

    def evaluated(self, results: dict[str, Any]) -> None:
        """Tell both."""
        self.first.evaluated(results)
        self.second.evaluated(results)
