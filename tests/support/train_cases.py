"""Whole runs of the trainer on a tiny model and texts on disk. Work for `process_cases`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.evaluation import card
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.run import machine
from circuit_tracer.training.run.events import NullListener, StepReport
from circuit_tracer.training.run.publishing import TrainingResult
from circuit_tracer.training.run.trainer import train
from tests.support.data_cases import config, texts, tokenizer, write_jsonl
from tests.support.process_cases import die
from tests.support.tiny import tiny_model

STEPS = 10


def settings(folder: Path, out: str, **changes: Any) -> TrainingConfig:
    """A run of STEPS steps of 16 tokens; the model and the texts are made at the first call."""
    model = folder / "model"
    if not model.exists():
        tiny_model("llama", torch.float32).save_pretrained(model)
        tokenizer().save_pretrained(model)
        write_jsonl(folder / "data.jsonl", texts(60))
    few = {
        "model__name": str(model),
        "model__device": "cpu",
        "run__out": folder / out,
        "run__tokens": 16 * STEPS,
        "run__log_every": 1,
        "run__checkpoint_every_steps": 3,
        "data__statistics_tokens": 64,
        "data__held_out": 0.3,
        "sparsity__dead_after_tokens": 48,
        "evaluation__tokens": 64,
        "evaluation__replacement_tokens": 0,
        "evaluation__prompts": [],
        "evaluation__held_out_prompts": 0,
        "evaluation__random_baseline": False,
    }
    return config(folder, **few | changes)


@contextmanager
def quick() -> Iterator[None]:
    """Runs that neither measure the machine for long nor draw pictures, which take longer than all the rest of a tiny one."""
    probes = {"PROBE_SECONDS": 1e-6, "PROBE_WIDTH": {"cpu": 64}, "PROBE_COPY_BYTES": {"cpu": 2**16}}
    with (
        patch.multiple(machine, **probes),
        patch.object(card, "find_spec", lambda name: None),  # as where matplotlib is not installed
    ):
        yield


class Stopped(BaseException):
    """What no code catches."""


def stop() -> None:
    """End a run as a killed process does, without ending the process."""
    raise Stopped


class Listener(NullListener):
    """Keeps the reports; ends the run after a step if asked to, before that step is saved."""

    def __init__(self, last: int | None, end: Callable[[], None]) -> None:
        self.reports: list[StepReport] = []
        self.last, self.end = last, end

    def progress(self, report: StepReport) -> None:
        """Keep it."""
        self.reports.append(report)
        if report.step == self.last:
            self.end()


def whole(
    folder: Path,
    out: str,
    changes: dict[str, Any],
    resume: bool = False,
    last: int | None = None,
    end: Callable[[], None] = die,
) -> list[StepReport]:
    """Train, perhaps not further than step ``last``; the reports."""
    listener = Listener(last, end)
    with quick():
        result = train(settings(folder, out, **changes), resume=resume, listener=listener)
    assert isinstance(result, TrainingResult)
    return listener.reports


def rank(ranks: FeatureRanks, folder: Path, out: str, changes: dict[str, Any], resume: bool) -> list[StepReport]:
    """One rank of a run."""
    return whole(folder, out, changes, resume)
