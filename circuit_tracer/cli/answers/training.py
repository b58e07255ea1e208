"""What `train` and `evaluate` print with `--json`."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from circuit_tracer.cli.answers.lines import Line, Written
from circuit_tracer.training.evaluation.results import ModelItself
from circuit_tracer.training.run.find import Trial


class TrainingPlan(Line):
    """What a training run needs: bytes by what they hold, and seconds of a step by phase."""

    device_needs: dict[str, int]
    host_needs: dict[str, int]
    disk_needs: dict[str, int]
    cache_needs: dict[str, int]
    step_seconds: dict[str, float]
    steps_left: int
    seconds: float


class TrainingSettings(BaseModel):
    """With --print-config: the whole configuration, section by section."""

    model_config = ConfigDict(extra="allow")

    run: dict[str, Any]


class RatesFound(Written):
    """With --find: the learning rate, what each trial gave, and what the rule says. at_an_end: the best was at an end."""

    trials: list[Trial]
    trial_steps: int
    learning_rate: float
    rule: float
    at_an_end: bool


class Trained(Written):
    """A finished training run. run: its folder."""

    run: str


class Evaluated(Written):
    """How well a dictionary does beside others (training/evaluation/README.md says what each number is)."""

    conditions: dict[str, Any]
    results: dict[str, Any]
    model: ModelItself | None
    ablations: dict[str, Any]
    spliced_ablations: dict[str, Any]
    not_measured: list[str]
    density_edges: list[float]
    differences: dict[str, Any]
