"""What changes with the step: learning rate, k and lambda (training/README.md §8)."""

from __future__ import annotations

from circuit_tracer.training.config.schema import TrainingConfig


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Linear warm-up, constant, linear to zero over the last share ``decay`` of the steps."""
    warm_up = (step + 1) / max(1, config.optimizer.warmup_steps)
    decay = (config.steps - step) / max(1.0, config.optimizer.decay * config.steps)
    return config.learning_rate * min(1.0, warm_up, decay)


def active(config: TrainingConfig, step: int) -> float:
    """k: linear from ``active_at_start`` to ``active`` over the first share ``anneal`` of the steps."""
    done = _done(step, config.sparsity.anneal * config.steps)
    return config.active_at_start + done * (config.sparsity.active - config.active_at_start)


def penalty(config: TrainingConfig, step: int) -> float:
    """A given lambda: linear from zero over the first share ``penalty_warmup`` of the steps; zero for rules without one."""
    return (config.sparsity.penalty or 0.0) * _done(step, config.sparsity.penalty_warmup * config.steps)


def _done(step: int, length: float) -> float:
    """How much of a schedule of ``length`` steps lies behind ``step``."""
    return min(1.0, step / length) if length else 1.0
