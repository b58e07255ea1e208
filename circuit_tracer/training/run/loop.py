"""The loop: batch, step, update, report, checkpoint.

Letters: S source layers, B tokens, D width.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from circuit_tracer.errors import InputError, NumericalError
from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.data.batch import ActivationBatch
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.run import checkpoint
from circuit_tracer.training.run.events import Listener, StepReport
from circuit_tracer.training.run.saving import Saver
from circuit_tracer.training.run.state import TrainingState
from circuit_tracer.training.sparsity import rule_of
from circuit_tracer.training.sparsity.penalty import PenaltyRule
from circuit_tracer.training.step import schedules
from circuit_tracer.training.step.accumulation import Accumulated
from circuit_tracer.training.step.normalisation import Normalisation
from circuit_tracer.training.step.replicas import MeanGradients
from circuit_tracer.training.step.scratch import Scratch
from circuit_tracer.training.step.spikes import StepRefused
from circuit_tracer.training.step.step import Batch, Moment, Sink, StepOutcome, train_step

RARE = 100.0  # times the tokens between two firings of a feature of mean frequency: how long a rare feature is silent
LEAST_SHARE = 0.1  # of k: a step with fewer active features is steered like one with so many


class Stream(Protocol):
    """Where batches come from; knows its position."""

    def next(self) -> ActivationBatch | None:
        """Exactly ``run.batch`` tokens, or this rank's share of them; None at the end of the data."""

    def state(self) -> dict[str, Any]:
        """The position after the last batch handed out, as JSON-able values."""

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from there with bitwise the same batches."""


class Loop:
    """Trains ``state`` on ``stream`` up to the last step of ``config``; all ranks run it alike.

    background: checkpoints between steps are written while training goes on (saving.py).
    """

    def __init__(
        self,
        config: TrainingConfig,
        state: TrainingState,
        stream: Stream,
        ranks: FeatureRanks,
        listener: Listener,
        folder: Path,
        facts: dict[str, Any],
        background: bool = False,
    ) -> None:
        self.config = schedules.settled(config, state.dictionary.n_layers, state.dictionary.d_model)
        self.state, self.stream, self.ranks, self.listener = state, stream, ranks, listener
        self.folder, self.facts = folder, facts
        self.reached = schedules.Reached()  # of a run that went on with other settings
        self.saver = Saver(folder, ranks, background)
        self.scratch = Scratch()
        self._window = _Window(state.dictionary.n_layers)
        self._sink: Sink = MeanGradients(state.adam, ranks) if ranks.replicas.world > 1 else state.adam
        parts = config.run.accumulate
        self._accumulated = Accumulated(self._sink, state.dictionary, parts) if parts > 1 else None

    def run(self, evaluate: Callable[[], object] | None = None) -> None:
        """Train to the end; ``evaluate`` is called every ``evaluate_every_steps`` steps, right after a checkpoint.

        Raises InputError when the data end first, and NumericalError when too many steps in a row had a bad loss: the weights
        are then those before them, and the last checkpoint stays. Ctrl-C and SIGTERM end the run after the step in hand; that
        and the end of the data leave a checkpoint.
        """
        every = self.config.evaluate_every_steps
        step, reached = self.state.step, self.reached
        if step == reached.step and schedules.active(self.config, step, reached) != reached.active:
            self.state.spikes.errors.clear()  # from here on k is another one, and with it the usual error
        with _interruptible() as interrupted, closing(self.saver):
            while self.state.step < self.config.steps:
                self._step()
                self.saver.poll()
                done = self.state.step
                stopping = self.ranks.any(interrupted())  # all must stop after the same step
                evaluating = evaluate is not None and every and done % every == 0 and done < self.config.steps
                with self._window.paused():
                    if evaluating or stopping:
                        self.save()
                    elif done % self.config.checkpoint_every_steps == 0:
                        self.saver.begin(self.state, self._position())
                    if stopping:
                        raise KeyboardInterrupt
                    if evaluating and evaluate is not None:
                        evaluate()
            self.saver.settle()

    @property
    def saved(self) -> Path | None:
        """The last complete checkpoint."""
        return self.saver.saved

    @saved.setter
    def saved(self, path: Path) -> None:
        self.saver.saved = path

    def save(self, **facts: Any) -> Path:
        """Write a checkpoint of the present step, with further facts in its state.json; once written, add the facts to it."""
        self.saver.settle()
        if self.saved == checkpoint.path_of(self.folder, self.state.step):
            checkpoint.add_facts(self.saved, {**self.facts, **facts}, self.ranks)
            return self.saved
        return self.saver.save(self.state, self._position() | facts)

    def _position(self) -> dict[str, Any]:
        """What a checkpoint says beside the state."""
        return {"data": self.stream.state(), **self.facts}

    def _step(self) -> None:
        state, config, step = self.state, self.config, self.state.step
        activations = self.stream.next()
        if activations is None:
            kept = f" The checkpoint of that step is {self.save()}." if step else ""
            raise InputError(
                f"the data ended after {step} of {config.steps} steps ({step * config.run.batch} of {config.run.tokens} "
                f"tokens). Give more data, set data.epochs to null to repeat them, or lower run.tokens.{kept}"
            )
        if step == 0:
            self._begin(activations)
        moment = self.moment(step)
        rate = schedules.learning_rate(config, step, self.reached)
        state.adam.begin(step, rate)
        try:
            self._take(activations, moment)
        except NumericalError as error:  # on all ranks alike
            self.saver.settle()
            kept = f"The last good checkpoint is {self.saved}." if self.saved else "There is no checkpoint yet."
            raise NumericalError(f"step {step}: {error} {kept}") from error
        state.step += 1
        if self._window.steps and (state.step % config.run.log_every == 0 or state.step == config.steps):
            self._report(rate, moment.active)

    def moment(self, step: int) -> Moment:
        """What schedules and the past say about a step."""
        state, config = self.state, self.config
        return Moment(
            step,
            schedules.active(config, step, self.reached),
            schedules.penalty(config, step, self.reached),
            state.silence.dead(config.dead_after_tokens),
            state.running_cut,
            state.derivative_scale_S,
            state.spikes.highest(config.optimizer.skip_above),
        )

    def _begin(self, activations: ActivationBatch) -> None:
        """What is measured on the first batch, all parts of it: where a rule's thresholds start (§4), and U_s of Jacobian
        matching (§5).
        """
        state, rule = self.state, rule_of(self.config.sparsity)
        batch = normalised(activations, state.normalisation)
        if isinstance(rule, PenaltyRule):
            rule.start_(state.dictionary, batch.x_SBD, schedules.active(self.config, 0, self.reached), self.ranks)
        if state.derivative_scale_S is not None:
            squares = [u_BD.square().sum(1).mean() for u_BD in batch.derivative_SBD or ()]
            state.derivative_scale_S.copy_(self.ranks.mean_(torch.stack(squares)))

    def _take(self, activations: ActivationBatch, moment: Moment) -> None:
        """One step, in parts of the batch; or none, if its loss is bad and steps may be skipped."""
        state, config, outcomes = self.state, self.config, list[StepOutcome]()
        parts = config.run.accumulate
        try:
            for number, part in enumerate(activations.split(parts)):
                if self._accumulated is not None:
                    self._accumulated.begin(number)
                now, sink = replace(moment, part=number, parts=parts), self._accumulated or self._sink
                batch = normalised(part, state.normalisation)
                outcomes.append(
                    train_step(state.dictionary, batch, config.sparsity, now, sink, self.ranks, self.scratch)
                )
        except StepRefused as refused:
            if not config.optimizer.skip_above:
                raise
            if self.ranks.any(not state.finite()):
                raise NumericalError(f"{refused} Weights are not finite: no later step can mend them.") from refused
            state.spikes.refused(refused)
            self.listener.message(f"step {moment.step} is skipped: {refused}")
            return
        outcome = joined(outcomes)
        state.spikes.taken(outcome.terms["reconstruction"])
        rule = rule_of(config.sparsity)
        if isinstance(rule, PenaltyRule) and rule.steered:
            wanted = schedules.active(config, moment.step + 1, self.reached)
            rule.steer_(state.dictionary, self._excess(outcome.fired, wanted), self._rare(wanted))
        if state.averages is not None:
            taken = moment.step + 1 - state.spikes.skipped
            state.averages.update(taken, config.optimizer.averaging * config.schedule_steps)
        state.silence.update(outcome.fired, config.run.batch)
        state.update_cut(outcome.cut)
        self._window.add(outcome)

    def _excess(self, fired: list[Tensor], wanted: float) -> Tensor:
        """log(L0 / wanted) of the step done, 0-d and the same on all ranks; the host does not wait for it."""
        n_fired = self.ranks.all_reduce_(torch.stack([count_f.sum() for count_f in fired]).sum())
        return (n_fired.float() / (wanted * len(fired) * self.config.run.batch)).clamp_min_(LEAST_SHARE).log_()

    def _rare(self, wanted: float) -> list[Tensor]:
        """(f,) a source: what the step done has of the time in which a feature's silence grows from `RARE` to twice as long."""
        window = RARE * self.config.dictionary.features / wanted
        share = min(1.0, self.config.run.batch / window)
        tokens = self.state.silence.tokens
        return [share * ((window <= silent_f) & (silent_f < 2 * window)) for silent_f in tokens]

    def _report(self, rate: float, active: float) -> None:
        state, config, window, rule = self.state, self.config, self._window, rule_of(self.config.sparsity)
        limit = config.dead_after_tokens
        dead_S = torch.stack([mask.sum() for mask in state.silence.dead(limit)])
        dead_S = self.ranks.all_reduce_(dead_S) / state.dictionary.n_features
        seconds = window.seconds_a_step()
        n_tokens = window.steps * config.run.batch
        report = StepReport(
            step=state.step,
            steps=config.steps,
            tokens=state.step * config.run.batch,
            loss=sum(window.mean_terms().values()),
            nmse_S=[error / window.steps for error in window.error_S],
            l0_S=[count / n_tokens for count in window.l0_counts(self.ranks)],
            dead_S=dead_S.tolist(),
            learning_rate=rate,
            active=active if rule.has_budget or rule.steered else 0.0,
            tokens_per_second=config.run.batch / seconds,
            seconds_left=seconds * (config.steps - state.step),
            cut=state.running_cut,
            terms=window.mean_terms(),
            skipped=state.spikes.skipped,
        )
        self.listener.progress(report)
        self._window = _Window(state.dictionary.n_layers)


def joined(parts: Sequence[StepOutcome]) -> StepOutcome:
    """What parts of equal size measured, as if they had been one batch."""
    share = 1 / len(parts)
    names = dict.fromkeys(name for part in parts for name in part.terms)
    cuts = [part.cut for part in parts if part.cut is not None]
    return StepOutcome(
        {name: share * sum(part.terms.get(name, 0.0) for part in parts) for name in names},
        [share * sum(errors) for errors in zip(*(part.error_S for part in parts), strict=True)],
        [sum(fired[1:], start=fired[0]) for fired in zip(*(part.fired for part in parts), strict=True)],
        share * sum(cuts) if cuts else None,
    )


def normalised(activations: ActivationBatch, space: Normalisation) -> Batch:
    """A batch in the space of training (§2), float32 or wider; derivatives are scaled along (§5, Jacobian matching)."""
    n_layers = activations.x_BSD.shape[1]
    x_SBD = [space.x(source, _wide(activations.x_BSD[:, source])) for source in range(n_layers)]
    y_BSD = space.y(_wide(activations.y_BSD))
    direction_BSD, derivative_BSD = activations.direction_BSD, activations.derivative_BSD
    if direction_BSD is None or derivative_BSD is None:
        return Batch(x_SBD, y_BSD)
    derivative_BSD = _wide(derivative_BSD) * (space.scale_y_S / space.scale_x_S)[:, None]
    direction_SBD, derivative_SBD = (
        [one_BD.contiguous() for one_BD in each.unbind(1)] for each in (_wide(direction_BSD), derivative_BSD)
    )
    return Batch(x_SBD, y_BSD, direction_SBD, derivative_SBD)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class _Window:
    """Sums over the steps since the last report."""

    def __init__(self, n_layers: int) -> None:
        self.steps = 0
        self.start = time.perf_counter()
        self.error_S = [0.0] * n_layers
        self.terms: dict[str, float] = {}
        self.counts: Tensor | None = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside is not that of steps."""
        begun = time.perf_counter()
        yield
        self.start += time.perf_counter() - begun

    def add(self, outcome: StepOutcome) -> None:
        self.steps += 1
        self.error_S = [old + new for old, new in zip(self.error_S, outcome.error_S, strict=True)]
        for name, value in outcome.terms.items():
            self.terms[name] = self.terms.get(name, 0.0) + value
        counts = torch.stack([fired.sum() for fired in outcome.fired])
        self.counts = counts if self.counts is None else self.counts + counts

    def mean_terms(self) -> dict[str, float]:
        return {name: value / self.steps for name, value in self.terms.items()}

    def l0_counts(self, ranks: FeatureRanks) -> list[float]:
        assert self.counts is not None
        total: list[float] = ranks.all_reduce_(self.counts.clone()).tolist()
        return total

    def seconds_a_step(self) -> float:
        return (time.perf_counter() - self.start) / self.steps


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C or SIGTERM (of a job scheduler, say) only makes the yielded function true; the next one acts."""
    asked: list[bool] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(*_: Any) -> None:
        asked.append(True)
        restore()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        restore()
