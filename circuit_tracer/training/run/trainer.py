"""A whole run, from a configuration to a dictionary that can be traced with (training/README.md).

OUT/config.yaml     the configuration            OUT/transcoder/   the dictionary, as tracers read it, with
OUT/log.jsonl       one line a report                              evaluation.json and README.md, what was measured on it
OUT/checkpoints/    the last two
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from circuit_tracer.files import atomic_write, claimed, require_writable_folder
from circuit_tracer.models.loading import load_language_model, present, resolve_device, resolve_dtype
from circuit_tracer.models.parts import ModelParts, bind
from circuit_tracer.models.surroundings import plain_torch, reproducible
from circuit_tracer.models.verify import verify
from circuit_tracer.training.config import files as config_file
from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.data import held_out_tokens, open_stream
from circuit_tracer.training.data.given.source import unseen_model
from circuit_tracer.training.export.kept import Subject
from circuit_tracer.training.export.published import require_baseline
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.run.changes import last_reached
from circuit_tracer.training.run.evaluation_cost import settled
from circuit_tracer.training.run.events import Listener, NullListener, StepReport
from circuit_tracer.training.run.log import RunLog
from circuit_tracer.training.run.loop import Loop
from circuit_tracer.training.run.publishing import Publisher, TrainingResult
from circuit_tracer.training.run.requirements import plan_run
from circuit_tracer.training.run.start import Start, facts_of, find_origin, find_start, make_state


@plain_torch()
def train(config: TrainingConfig, *, resume: bool = False, listener: Listener | None = None) -> TrainingResult:
    """Train, evaluate and export; whatever happens, the last complete checkpoint stays.

    Under torchrun every process calls this; only the first one reports and writes.

    Args:
        config: The training configuration.
        resume: Continue from the last checkpoint in ``run.out``, bitwise (CPU).
        listener: Told what happens; None: nobody.

    Returns:
        Where the files are, and what was measured.

    Raises:
        CircuitTracerError: InputError, CompatibilityError, NumericalError or ResourceError, with the next step.
    """
    device = present(resolve_device(None if config.model.device == "auto" else config.model.device))
    ranks = FeatureRanks.from_environment(device).grid(config.run.data_parallel)
    folder = require_writable_folder(config.run.out) if ranks.first else config.run.out
    own = claimed(folder, "trains in") if ranks.first else nullcontext()
    with own, reproducible(config.run.threads):
        start = find_start(config, folder, resume)
        ranks.share(config.dictionary.features)
        heard = listener if ranks.first and listener else NullListener()
        with _logged(config, start, ranks, heard) as logged:
            return _run(config, start, folder, device, ranks, logged)


def _run(
    config: TrainingConfig, start: Start, folder: Path, device: torch.device, ranks: FeatureRanks, listener: Listener
) -> TrainingResult:
    plan = plan_run(config, device, ranks.plain.world, start.step)
    listener.message(str(plan))
    plan.require_fits()
    parts, tokenizer = load_subject(config, device, ranks)
    require_baseline(config, parts)  # these two are found missing now rather than at the end
    measured = settled(plan.work)
    held_out = held_out_tokens(measured, tokenizer)
    with closing(open_stream(config, parts, tokenizer, ranks)) as stream:
        layers = config.dictionary.layers or list(range(parts.config.n_layers))
        origin = find_origin(config, start, parts, tokenizer, layers)
        facts = facts_of(config, start, origin, parts)
        state = make_state(config, start, origin, layers, stream, device, ranks, listener)
        if ranks.first:
            with atomic_write(folder / "config.yaml") as path:
                path.write_text(config_file.dump(config), encoding="utf-8")
        in_background = not ranks.any(not plan.background)
        loop = Loop(config, state, stream, ranks, listener, folder / "checkpoints", facts, in_background)
        loop.reached = last_reached(start.changes)
        if start.resumed is not None:
            loop.saved = start.resumed.folder
        for line in start.words():
            listener.message(line)
        publisher = Publisher(Subject(measured, parts, tokenizer, layers, held_out), folder, loop, listener)
        loop.run(publisher.publish)
        result, kept = publisher.publish()
    if kept is not None:
        kept.require(config)
    return result


def load_subject(config: TrainingConfig, device: torch.device, ranks: FeatureRanks) -> tuple[ModelParts, Any]:
    """The model and its tokenizer; only sizes, and no tokenizer, when its activations were made elsewhere."""
    if config.data.kind == "activations":
        return unseen_model(config, device, ranks.plain), None
    revision = {"revision": config.model.revision} if config.model.revision else {}
    model, tokenizer = load_language_model(config.model.name, device, resolve_dtype(config.model.dtype), **revision)
    parts = bind(model, config.model.name)
    verify(parts)
    return parts, tokenizer


@contextmanager
def _logged(config: TrainingConfig, start: Start, ranks: FeatureRanks, listener: Listener) -> Iterator[Listener]:
    """The caller's listener together with the logs of the run; nothing is logged by other ranks than the first."""
    if not ranks.first:
        yield listener
        return
    with RunLog(config, start.step, start.log_entries()) as log:
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
