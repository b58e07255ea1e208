"""What changes with the step: learning rate, k and lambda (training/README.md §8)."""

from __future__ import annotations

import math

from circuit_tracer.training.config.schema import TrainingConfig

# of the rule for the highest learning rate; fitted to benchmarks/training/rates.py
RATE, SAMPLES, STEPS = 4.0, 16.0, 1000.0


def highest_rate(config: TrainingConfig, width: int) -> float:
    """The highest learning rate for a model of this width: the one given, or the rule's."""
    given = config.optimizer.learning_rate
    return ruled_rate(config, width) if given is None else given


def ruled_rate(config: TrainingConfig, width: int) -> float:
    """RATE / D · min(1, √(n / SAMPLES)) · (1 + steps / STEPS)^(-1/3), n = B·k/F samples of a feature in a step."""
    samples = config.run.batch * config.sparsity.active / config.dictionary.features
    return RATE / width * min(1.0, math.sqrt(samples / SAMPLES)) / math.cbrt(1 + config.steps / STEPS)


def learning_rate(config: TrainingConfig, width: int, step: int) -> float:
    """Linear warm-up to `highest_rate`, constant, linear to zero over the last share ``decay`` of the steps."""
    warm_up = (step + 1) / max(1, config.warmup_steps)
    decay = (config.steps - step) / max(1.0, config.optimizer.decay * config.steps)
    return highest_rate(config, width) * min(1.0, warm_up, decay)


def active(config: TrainingConfig, step: int) -> float:
    """k: linear from ``active_at_start`` to ``active`` over the first share ``anneal`` of the steps."""
    done = _done(step, config.sparsity.anneal * config.steps)
    return config.active_at_start + done * (config.sparsity.active - config.active_at_start)


def penalty(config: TrainingConfig, step: int) -> float:
    """lambda: linear from zero over the first share ``penalty_warmup`` of the steps."""
    return config.sparsity.penalty * _done(step, config.sparsity.penalty_warmup * config.steps)


def _done(step: int, length: float) -> float:
    """How much of a schedule of ``length`` steps lies behind ``step``."""
    return min(1.0, step / length) if length else 1.0
