"""What changes with the step: learning rate, k and lambda (training/README.md §8)."""

from __future__ import annotations

import math

from circuit_tracer.training.config.schema import TrainingConfig

# Of the rule for the highest learning rate, fitted to the best rates of short runs (benchmarks/training/rates.py and others of
# its kind) and held to what is used for long ones: 2e-4 to 4e-4 for GPT-2 at 16,384 to 32,768 features.
RATE = 0.25
MOST_SAMPLES = 32.0  # of a feature in a step, beyond which more of them change nothing
SHORT = 2000.0  # steps; longer runs need smaller steps
HIGHEST = 1e-2  # of a short run


def highest_rate(config: TrainingConfig, layers: int, width: int) -> float:
    """The highest learning rate for so many source layers of a model of this width: the one given, or the rule's."""
    given = config.optimizer.learning_rate
    return ruled_rate(config, layers, width) if given is None else given


def ruled_rate(config: TrainingConfig, layers: int, width: int) -> float:
    """min(RATE · ∛(n / D²) / √(r · t), HIGHEST / t): t = 1 + steps / SHORT, D the width, n = min(B·k/F, MOST_SAMPLES),
    r the sources that write to a target on average.
    """
    samples = min(config.run.batch * config.sparsity.active / config.dictionary.features, MOST_SAMPLES)
    writers = (layers + 1) / 2 if config.dictionary.kind == "clt" else 1.0
    length = 1 + config.steps / SHORT
    return min(RATE * math.cbrt(samples / width**2) / math.sqrt(writers * length), HIGHEST / length)


def learning_rate(config: TrainingConfig, layers: int, width: int, step: int) -> float:
    """Linear warm-up to `highest_rate`, constant, linear to zero over the last share ``decay`` of the steps."""
    warm_up = (step + 1) / max(1, config.warmup_steps)
    decay = (config.steps - step) / max(1.0, config.optimizer.decay * config.steps)
    return highest_rate(config, layers, width) * min(1.0, warm_up, decay)


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
