"""What changes with the step: learning rate, k and lambda (training/README.md §8)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.sparsity import rule_of


@dataclass(frozen=True)
class Reached:
    """Where the schedules stood at ``step``, when a run went on with other settings: its learning rate, and the shares of the
    schedules of k and lambda that were done, and its k. The default is a run that never changed.
    """

    step: int = 0
    rate: float = math.inf
    annealed: float = 0.0
    penalised: float = 0.0
    active: float = 0.0


# Of the rule for the highest learning rate, fitted to the best rates of short runs (benchmarks/training/rates.py and others of
# its kind) and held to what is used for long ones: 2e-4 to 4e-4 for GPT-2 at 16,384 to 32,768 features.
RATE = 0.6  # times what a rule of sparsity bears
MOST_SAMPLES = 32.0  # of a feature in a step, beyond which more of them change nothing
SHORT = 5000.0  # steps; longer runs need smaller steps
HIGHEST, BORNE = 1.25e-2, 1500.0  # what a run of most samples bears, and in how many steps it halves; less with few


def settled(config: TrainingConfig, layers: int, width: int) -> TrainingConfig:
    """The configuration with its highest learning rate: the one given, or the rule's for so many source layers of a width."""
    if config.optimizer.learning_rate is not None:
        return config
    optimizer = config.optimizer.model_copy(update={"learning_rate": ruled_rate(config, layers, width)})
    return config.model_copy(update={"optimizer": optimizer})


def ruled_rate(config: TrainingConfig, layers: int, width: int) -> float:
    """min(RATE · β · ∛(n / D²) / √(r·(1 + steps / SHORT)), HIGHEST · ∜(n / MOST_SAMPLES) / (1 + steps / BORNE)): D the width,
    n = min(B·k/F, MOST_SAMPLES), r the sources that write to a target on average, β what the sparsity rule bears.
    """
    samples = min(config.run.batch * config.sparsity.active / config.dictionary.features, MOST_SAMPLES)
    writers = (layers + 1) / 2 if config.dictionary.kind == "clt" else 1.0
    steps = config.schedule_steps
    rate = (
        RATE * rule_of(config.sparsity).bears * math.cbrt(samples / width**2) / math.sqrt(writers * (1 + steps / SHORT))
    )
    bearable = HIGHEST * math.pow(samples / MOST_SAMPLES, 0.25)
    return min(rate, bearable / (1 + steps / BORNE))


def learning_rate(config: TrainingConfig, step: int, reached: Reached = Reached()) -> float:
    """Linear warm-up, constant, linear to zero over the last share ``decay`` of the steps, of a `settled` configuration.

    Where other settings would raise the rate at once, of a finished run from zero say, it is warmed up again, over
    ``warmup_steps`` and at most a tenth of the steps left.
    """
    rate = _planned_rate(config, step)
    if reached.rate >= _planned_rate(config, reached.step):
        return rate
    length = max(1, min(config.warmup_steps, (config.steps - reached.step) // 10))
    done = min(1.0, (step - reached.step + 1) / length)
    return rate if done == 1.0 else reached.rate + done * (rate - reached.rate)


def active(config: TrainingConfig, step: int, reached: Reached = Reached()) -> float:
    """k: linear from ``active_at_start`` to ``active`` over the first share ``anneal`` of the steps; never back."""
    done = max(reached.annealed, _done(step, config.sparsity.anneal * config.schedule_steps))
    return config.active_at_start + done * (config.sparsity.active - config.active_at_start)


def penalty(config: TrainingConfig, step: int, reached: Reached = Reached()) -> float:
    """A given lambda: linear from zero over the first share ``penalty_warmup`` of the steps, never back; zero if none is."""
    done = max(reached.penalised, _done(step, config.sparsity.penalty_warmup * config.schedule_steps))
    return (config.sparsity.penalty or 0.0) * done


def reach(config: TrainingConfig, step: int, before: Reached) -> Reached:
    """Where the schedules of ``config`` stand at ``step``; ``before``: where those of the settings before it stood."""
    return Reached(
        step,
        learning_rate(config, step, before),
        max(before.annealed, _done(step, config.sparsity.anneal * config.schedule_steps)),
        max(before.penalised, _done(step, config.sparsity.penalty_warmup * config.schedule_steps)),
        active(config, step, before),
    )


def _planned_rate(config: TrainingConfig, step: int) -> float:
    highest = config.optimizer.learning_rate
    assert highest is not None
    warm_up = (step + 1) / max(1, config.warmup_steps)
    length = config.optimizer.decay * config.schedule_steps
    decay = (config.schedule_steps - step) / max(1.0, length) if length else 1.0
    return highest * min(1.0, warm_up, decay)


def _done(step: int, length: float) -> float:
    """How much of a schedule of ``length`` steps lies behind ``step``."""
    return min(1.0, step / length) if length else 1.0
