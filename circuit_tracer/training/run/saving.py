"""When checkpoints are written: at once, or by a thread from a copy while training goes on.

Collectives stay in the main thread: ranks agree between two steps that all have written, and then the checkpoint gets its name.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.errors import CircuitTracerError
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.run import checkpoint
from circuit_tracer.training.run.checkpoint import Draft
from circuit_tracer.training.run.state import TrainingState


class Saver:
    """The checkpoints of a run in ``folder``; ``saved`` is the last complete one. All ranks call everything together.

    background: copy the state into the host's memory (kept for the next time) and write while training goes on.
    """

    def __init__(self, folder: Path, ranks: FeatureRanks, background: bool) -> None:
        self.folder, self.ranks, self.background = folder, ranks, background
        self.saved: Path | None = None
        self._copies: dict[str, Tensor] = {}
        self._writing: _Writing | None = None

    def begin(self, state: TrainingState, facts: dict[str, Any]) -> None:
        """Write a checkpoint, in the background if that was asked for; one that is being written is waited for.

        Raises what `checkpoint.save` does, also for the one before.
        """
        if not self.background:
            self.save(state, facts)
            return
        self.settle()
        draft = checkpoint.begin(state, self.folder, facts, self.ranks)
        self._writing = _Writing(replace(draft, files=self._copied(draft.files)))
        self._writing.thread.start()

    def save(self, state: TrainingState, facts: dict[str, Any]) -> Path:
        """Write a checkpoint and wait until it is complete. Raises what `checkpoint.save` does, also for the one before."""
        self.settle()
        self.saved = checkpoint.save(state, self.folder, facts, self.ranks)
        return self.saved

    def poll(self) -> None:
        """Between two steps: complete the checkpoint in the background if all ranks have written theirs."""
        if self._writing is not None and not self.ranks.any(self._writing.thread.is_alive()):
            self.settle()

    def settle(self) -> None:
        """Wait for the checkpoint in the background and complete it. Raises what writing it raised, once."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            self.saved = checkpoint.finish(writing.draft, writing.outcome, self.ranks)

    def close(self) -> None:
        """After an error: wait for the thread. One process can complete the checkpoint; of several, others may be gone."""
        if self._writing is None:
            return
        self._writing.thread.join()
        if self.ranks.world == 1:
            with suppress(CircuitTracerError):  # the error that ended the run is the one to tell
                self.settle()
        self._writing = None

    def _copied(self, files: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        copied = {
            file: {name: self._copy(f"{file} {name}", tensor) for name, tensor in tensors.items()}
            for file, tensors in files.items()
        }
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return copied

    def _copy(self, key: str, tensor: Tensor) -> Tensor:
        if key not in self._copies:
            self._copies[key] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
        return self._copies[key].copy_(tensor, non_blocking=True)


@dataclass
class _Writing:
    """A thread that writes this rank's part of a checkpoint."""

    draft: Draft
    thread: threading.Thread = field(init=False)
    error: BaseException | None = None

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._write, name="checkpoint", daemon=True)

    def outcome(self) -> None:
        """Wait, and raise what the thread met."""
        self.thread.join()
        if self.error is not None:
            raise self.error

    def _write(self) -> None:
        try:
            checkpoint.write(self.draft)
        except BaseException as error:
            self.error = error
