"""`train --find`: the learning rate of a run, from short ones on its own activations (training/README.md §8).

Rates a factor of two apart are tried from the rule's on, each for some steps from the run's start on the same batches, and the
error on held-out tokens is measured, until the best one lies between two others. The lowest point of a parabola through the
three is what the short run should have; for the longer run it is multiplied with what the rule says about its length.

Letters: S source layers, B tokens, F features of a layer.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from circuit_tracer.errors import NumericalError
from circuit_tracer.files import atomic_write, require_writable_folder
from circuit_tracer.models.loading import present, resolve_device
from circuit_tracer.models.surroundings import plain_torch, reproducible
from circuit_tracer.sizes import duration
from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.data import BatchStream, held_out_activations, open_stream
from circuit_tracer.training.data.batch import ActivationBatch
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.run.events import Listener, NullListener
from circuit_tracer.training.run.loop import Loop, normalised
from circuit_tracer.training.run.origin import take_over_
from circuit_tracer.training.run.requirements import Plan, plan_run
from circuit_tracer.training.run.start import Start, find_origin, measured_space
from circuit_tracer.training.run.state import TrainingState
from circuit_tracer.training.run.trainer import load_subject
from circuit_tracer.training.sparsity import rule_of
from circuit_tracer.training.sparsity.base import Now
from circuit_tracer.training.step import schedules
from circuit_tracer.training.step.normalisation import Normalisation
from circuit_tracer.training.step.outputs import predict
from circuit_tracer.training.step.scratch import Scratch

FILE = "find.json"
TRIAL_TOKENS, TRIAL_STEPS = 2**19, (100, 200)  # of a trial: so many tokens, but no fewer and no more steps
PASSES = 4  # over the tokens of a trial, at most
HELD_OUT = 4096  # tokens that errors are measured on
FEWEST, MOST = 3, 8  # trials
FACTOR = 2.0  # between rates
SKIPPED = 0.1  # share of the steps; a trial that skipped more of them is not one


@dataclass(frozen=True)
class Trial:
    """A short run.

    Attributes:
        error: Normalised, on held-out tokens; infinite if the run broke.
    """

    rate: float
    error: float
    active: float  # a layer and token
    never_active: float  # share of all features
    emptiest: float  # that share in the layer where it is highest


@dataclass(frozen=True)
class Found:
    """The trials by rate, and what follows for the run.

    Attributes:
        at_an_end: The best rate tried is the lowest or the highest.
    """

    trials: list[Trial]
    trial_steps: int
    learning_rate: float
    rule: float
    at_an_end: bool

    def __str__(self) -> str:
        lines = [f"{'rate':>10}{'error':>10}{'active':>10}{'never active':>15}"]
        lines += [
            f"{one.rate:>10.1e}{one.error:>10.4f}{one.active:>10.1f}{100 * one.never_active:>13.1f} %"
            for one in self.trials
        ]
        end = "; the best rate tried is at the end of those tried" if self.at_an_end else ""
        lines.append(
            f"runs of {self.trial_steps} steps; for this run: --optimizer.learning_rate {self.learning_rate:.2g}"
            f" (the rule: {self.rule:.2g}){end}"
        )
        return "\n".join(lines)


def _drawn(_: TrainingState) -> None:
    """Weights stay as they were drawn."""


@plain_torch()
def find(config: TrainingConfig, *, listener: Listener | None = None) -> Found:
    """Find the learning rate; writes OUT/find.json and nothing else. The same on every machine but for rounding.

    Says its time before it starts. Raises what `train` raises for its configuration, model and data, and NumericalError
    when every trial broke.

    Args:
        config: The training configuration.
        listener: Told what happens; None: nobody.

    Returns:
        The trials, and the rate that follows from them.

    Raises:
        CircuitTracerError: As `train`, for its configuration, model and data.
        NumericalError: When every trial broke.
    """
    device = present(resolve_device(None if config.model.device == "auto" else config.model.device))
    ranks = FeatureRanks.from_environment(device).grid(config.run.data_parallel)
    heard = listener if ranks.first and listener else NullListener()
    folder = require_writable_folder(config.run.out) if ranks.first else config.run.out
    with reproducible(config.run.threads):
        plan = plan_run(config, device, ranks.plain.world)
        plan.require_fits()
        heard.message(_announced(plan))
        parts, tokenizer = load_subject(config, device, ranks)
        layers = config.dictionary.layers or list(range(parts.config.n_layers))
        origin = find_origin(config, Start(), parts, tokenizer, layers)
        n_held_out = max(HELD_OUT, config.run.batch) // config.run.batch * config.run.batch
        held_out = held_out_activations(config, parts, tokenizer, n_held_out)
        with closing(open_stream(config, parts, tokenizer, ranks)) as stream:
            space = measured_space(stream, config.data.statistics_tokens)
            kept = kept_batches(stream, config)
        del stream, parts

        begin = _drawn if origin is None else partial(take_over_, origin=origin, layers=layers)
        found = best_rate(config, space, kept, held_out, device, ranks, heard.message, begin)
    if ranks.first:
        with atomic_write(folder / FILE) as path:
            path.write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
    heard.message(str(found))
    return found


def trial_steps(config: TrainingConfig) -> int:
    """Steps of a trial."""
    fewest, most = TRIAL_STEPS
    return min(config.schedule_steps, max(fewest, min(most, TRIAL_TOKENS // config.run.batch)))


def kept_batches(stream: BatchStream, config: TrainingConfig) -> list[ActivationBatch]:
    """The first batches of the run, in the host's memory and the buffer's number format. InputError if there is none."""
    tokens = trial_steps(config) * config.run.batch
    wanted = min(tokens, max(config.data.buffer_tokens, tokens // PASSES)) // config.run.batch
    dtype, kept = getattr(torch, config.data.buffer_dtype), list[ActivationBatch]()
    while len(kept) < wanted and (batch := stream.next()) is not None:
        kept.append(batch.to("cpu", dtype))
    return kept


def best_rate(
    config: TrainingConfig,
    space: Normalisation,
    batches: Iterable[ActivationBatch],
    held_out: ActivationBatch,
    device: torch.device,
    ranks: FeatureRanks,
    report: Callable[[str], None] = lambda _: None,
    begin: Callable[[TrainingState], None] = _drawn,
) -> Found:
    """Try rates on ``batches``, which are used again and again. begin: puts other weights into a new state."""
    sizes = space.mean_x_SD.shape
    steps = trial_steps(config)
    short = _shortened(config, steps)
    done: dict[float, Trial] = {}

    def tried(rate: float) -> None:
        done[rate] = trial(short, rate, space, Repeated(batches, device), held_out, device, ranks, begin)
        report(f"rate {rate:.1e}: error {done[rate].error:.4f}")

    middle = schedules.ruled_rate(short, *sizes)
    for rate in (middle, FACTOR * middle, middle / FACTOR):
        tried(rate)
    while len(done) < MOST:
        best = min(done.values(), key=lambda one: one.error).rate
        beside = FACTOR * best if best == max(done) else best / FACTOR if best == min(done) else None
        if beside is None:
            break
        tried(beside)
    trials = [done[rate] for rate in sorted(done)]
    if not any(math.isfinite(one.error) for one in trials):
        raise NumericalError(
            f"no learning rate from {trials[0].rate:.1e} to {trials[-1].rate:.1e} trains: look for broken activations in the "
            "data."
        )
    best = min(trials, key=lambda one: one.error).rate
    length = schedules.ruled_rate(config, *sizes) / middle
    return Found(trials, steps, length * _lowest(trials), length * middle, best in (min(done), max(done)))


def trial(
    config: TrainingConfig,
    rate: float,
    space: Normalisation,
    stream: Repeated,
    held_out: ActivationBatch,
    device: torch.device,
    ranks: FeatureRanks,
    begin: Callable[[TrainingState], None] = _drawn,
) -> Trial:
    """One run of ``config`` at a learning rate, and its error on held-out tokens."""
    optimizer = config.optimizer.model_copy(update={"learning_rate": rate})
    config = config.model_copy(update={"optimizer": optimizer})
    n_layers = space.mean_x_SD.shape[0]
    scale_S = torch.zeros(n_layers, device=device) if config.sparsity.jacobian_weight else None
    state = TrainingState.initial(config, space, scale_S, device, ranks)
    begin(state)
    try:
        with tempfile.TemporaryDirectory() as folder:
            Loop(config, state, stream, ranks, NullListener(), Path(folder), {}).run()
    except NumericalError:
        return Trial(rate, math.inf, math.nan, math.nan, math.nan)
    error, *activity = held_out_error(state, config, held_out, device, ranks)
    usable = state.spikes.skipped <= SKIPPED * config.steps and math.isfinite(error)
    return Trial(rate, error if usable else math.inf, *activity)


def held_out_error(
    state: TrainingState, config: TrainingConfig, held_out: ActivationBatch, device: torch.device, ranks: FeatureRanks
) -> tuple[float, float, float, float]:
    """(normalised error, active features a layer and token, share of features never active, that of the emptiest layer), by the
    rule of training.
    """
    dictionary, rule, scratch = state.result, rule_of(config.sparsity), Scratch()
    now, error, size = Now(config.sparsity.active, state.running_cut), 0.0, 0
    fired_Sf = torch.zeros(dictionary.n_layers, len(dictionary.norms[0]), dtype=torch.int64, device=device)
    for part in held_out.split(max(1, held_out.n_tokens // config.run.batch)):
        batch = normalised(part.to(device, torch.float32), state.normalisation)
        selection = rule.select(dictionary, batch.x_SBD, now, ranks)
        outputs_BSD = predict(dictionary, batch.x_SBD, selection.all_activations(), ranks, scratch)
        error_BSD = outputs_BSD.sub_(batch.y_BSD)
        error, size = error + float(error_BSD.square().sum()), size + error_BSD.numel()
        for fired_f, entries, active in zip(fired_Sf, selection.entries, selection.active, strict=True):
            fired_f += torch.bincount(entries.feature[active], minlength=len(fired_f))
    fired, *never_S = ranks.all_reduce_(torch.cat([fired_Sf.sum()[None], (fired_Sf == 0).sum(1)])).tolist()
    share_S = [never / dictionary.n_features for never in never_S]
    n_layers = dictionary.n_layers
    return error / size, fired / (held_out.n_tokens * n_layers), sum(share_S) / n_layers, max(share_S)


class Repeated:
    """Batches as a loop's stream, from the first one again when they are at their end."""

    def __init__(self, batches: Iterable[ActivationBatch], device: torch.device) -> None:
        self.device, self._batches = device, _endless(batches)

    def next(self) -> ActivationBatch | None:
        """The next one, in float32."""
        return next(self._batches).to(self.device, torch.float32)

    def state(self) -> dict[str, Any]:
        """Trials are not resumed."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Trials are not resumed."""


def _endless(batches: Iterable[ActivationBatch]) -> Iterator[ActivationBatch]:
    while True:
        yield from batches


def _shortened(config: TrainingConfig, steps: int) -> TrainingConfig:
    """The run in so many steps; its shares are those of the whole."""
    never = 10**12
    run = {
        "tokens": steps * config.run.batch,
        "schedule_tokens": None,
        "checkpoint_every_steps": never,
        "log_every": never,
    }
    return config.model_copy(
        update={
            "run": config.run.model_copy(update=run),
            "optimizer": config.optimizer.model_copy(update={"learning_rate": None, "warmup_steps": None}),
        }
    )


def _lowest(trials: Sequence[Trial]) -> float:
    """The rate at the lowest point of the parabola through the best trial and its neighbours; the best one's at an end."""
    place = min(range(len(trials)), key=lambda index: trials[index].error)
    here = trials[place]
    beside = [trials[index].error for index in (place - 1, place + 1) if 0 <= index < len(trials)]
    if len(beside) < 2 or not all(map(math.isfinite, beside)):
        return here.rate
    below, above = beside
    bend = below - 2 * here.error + above
    return here.rate * FACTOR ** (0.5 * (below - above) / bend) if bend > 0 else here.rate


def _announced(plan: Plan) -> str:
    """What will be done, and its time."""
    config = plan.work.config
    steps, seconds = trial_steps(config), dict(plan.step_seconds)
    reading = seconds.pop("language model", 0.0) * steps
    each = steps * sum(seconds.values())
    return (
        f"trying {FEWEST} to {MOST} learning rates, {steps} steps of {config.run.batch} tokens each: about "
        f"{duration(reading + FEWEST * each)} to {duration(reading + MOST * each)}"
    )
