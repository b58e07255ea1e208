"""What a run leaves behind, at its end and at evaluations on the way: files for tracers, measured (training/README.md §9).

Letters: S source layers, D width, B tokens of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from circuit_tracer.training.data import held_out_activations
from circuit_tracer.training.export.calibration import level_scores, n_batches
from circuit_tracer.training.export.export import export, readers_of
from circuit_tracer.training.export.kept import Batches, Kept, Subject, trained_side
from circuit_tracer.training.export.published import publish
from circuit_tracer.training.export.trained import Trained
from circuit_tracer.training.run import checkpoint
from circuit_tracer.training.run.events import Listener
from circuit_tracer.training.run.loop import Loop
from circuit_tracer.training.run.start import story_of
from circuit_tracer.training.sparsity import rule_of


@dataclass(frozen=True)
class TrainingResult:
    """What a run leaves: the folder of the dictionary, the last checkpoint, and the evaluation as plain data."""

    transcoder: Path
    checkpoint: Path
    evaluation: dict[str, Any]


@dataclass(frozen=True)
class Publisher:
    """Writes and measures the dictionary of a loop as it stands. All ranks call it together; the first one writes."""

    subject: Subject
    folder: Path  # of the run
    loop: Loop
    listener: Listener

    def publish(self) -> tuple[TrainingResult, Kept | None]:
        """Checkpoint with calibrated levels, dictionary, evaluation, card. What is measured is what was written.

        Also what the export kept, on the first rank.
        """
        subject, loop = self.subject, self.loop
        config, state, ranks = subject.config, loop.state, loop.ranks
        levels, batches = self._calibrated()
        trained = Trained(state.result, state.normalisation, config.sparsity, state.running_cut, ranks)
        before = trained_side(trained, batches, subject)
        saved = loop.save(levels=levels)
        transcoder = self.folder / "transcoder"
        evaluation: dict[str, Any] = {}
        kept: Kept | None = None
        if ranks.first:
            export(checkpoint.read(saved), config, levels, transcoder, config.model.name, subject.layers)
            self.listener.message(f"dictionary written to {transcoder}; evaluating it")
            story = {"step": state.step, "tokens": state.step * config.run.batch, **story_of(loop.facts)}
            evaluation, kept = publish(subject, transcoder, before, batches, story, self.listener.message)
            self.listener.message(f"exported, from training to files: {kept}")
            if (note := readers_of(config)) is not None:
                self.listener.message(note)
            for line in evaluation["not_measured"]:
                self.listener.message(f"not measured: {line}")
            self.listener.evaluated(evaluation)
        ranks.barrier()
        return TrainingResult(transcoder, saved, evaluation), kept

    def _calibrated(self) -> tuple[list[float] | None, Batches]:
        """Levels of a rule that needs them, calibrated on held-out tokens in batches like those of training, shuffled (§9), and
        other batches to compare on; the same ones if there is one only.
        """
        subject, state = self.subject, self.loop.state
        config, size = subject.config, subject.config.run.batch
        needs_level = rule_of(config.sparsity).needs_level
        n_tokens = n_batches(size) * size * (2 if needs_level else 1)
        held_out = held_out_activations(config, subject.parts, subject.tokenizer, n_tokens)
        order = torch.randperm(len(held_out.x_BSD), generator=torch.Generator().manual_seed(config.run.seed))
        x_BSD, y_BSD = held_out.x_BSD[order], held_out.y_BSD[order]
        batches = list(zip(x_BSD.split(size), y_BSD.split(size), strict=True))
        if not needs_level:
            return None, batches
        first, rest = batches[: len(batches) // 2] or batches, batches[len(batches) // 2 :]
        space, device = state.normalisation, state.dictionary.b_dec.device
        x_SBDs = [[space.x(source, x_BD) for source, x_BD in enumerate(x.to(device).unbind(1))] for x, _ in first]
        return level_scores(state.result, x_SBDs, config.sparsity, state.running_cut, self.loop.ranks), rest
