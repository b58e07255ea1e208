"""Checkpoints: a folder a step, a safetensors file for each source layer and rank, complete or not there at all.

    step-00000500/state.json                       step, sizes, position in the data, fingerprint; written by rank 0
                  shared.safetensors               what is the same on every rank; written by rank 0
                  layer-003.rank-0-of-2.safetensors  the rows of one source layer that a rank owns, with their moments

Every file notices damage: state.json by its digest, tensors by checksums, and which run and step they belong to.
The folder is written under another name and renamed when every rank is done, so that a run killed at any moment leaves the
last complete checkpoint. FeatureRanks own contiguous rows, so that another number of ranks reads slices of the same files.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.errors import (
    CircuitTracerError,
    CompatibilityError,
    FileFormatError,
    NumericalError,
    ResourceError,
    shortened,
)
from circuit_tracer.files import atomic_write, read_json, sync
from circuit_tracer.files.checksums import verified, write_tensors
from circuit_tracer.files.digests import digest_of, sealed, unsealed
from circuit_tracer.files.tensors import TensorFile, open_tensor_file
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.run.state import TrainingState
from circuit_tracer.training.step.spikes import SpikeWatch

VERSION = 3
KEPT = 2  # complete checkpoints kept; older ones go
SHARED_FILE, STATE_FILE = "shared.safetensors", "state.json"
BELONGS = "belongs_to"  # in state.json, and in the metadata of the tensors written with it: digest of run and step
_NAME = re.compile(r"step-(\d{8})")
_LAYER = re.compile(r"layer-(\d{3})\.rank-(\d+)-of-(\d+)\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path
    content: dict[str, Any]  # of state.json

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.content["step"])

    def fact(self, name: str) -> dict[str, Any]:
        """An entry of state.json that must be an object. Raises FileFormatError."""
        found = self.content.get(name)
        if not isinstance(found, dict):
            raise _damaged(self.folder, f"{STATE_FILE} says {name} is {shortened(found)}")
        return found


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` steps lies."""
    return folder / f"step-{step:08d}"


@dataclass(frozen=True)
class Draft:
    """What this rank has to write of a checkpoint: tensors by file, and on the first rank what goes into state.json."""

    final: Path
    files: dict[str, dict[str, Tensor]]
    content: dict[str, Any]
    first: bool

    @property
    def partial(self) -> Path:
        """Where files lie until all are there."""
        return self.final.with_name(f"{self.final.name}.partial")


def save(state: TrainingState, folder: Path, facts: dict[str, Any], ranks: FeatureRanks) -> Path:
    """Write a checkpoint of ``state`` into ``folder`` and return its path. All ranks call this together.

    ``facts``: JSON-able, kept in state.json beside the step (position in the data, fingerprint of the run). Raises
    ResourceError when the disk is full and NumericalError for weights that are not finite, on all ranks alike; earlier
    checkpoints stay.
    """
    draft = begin(state, folder, facts, ranks)
    return finish(draft, lambda: write(draft), ranks)


def begin(state: TrainingState, folder: Path, facts: dict[str, Any], ranks: FeatureRanks) -> Draft:
    """The first part of `save`, for all ranks together: an empty folder. The tensors are the state's own, not copies."""
    final = path_of(folder, state.step)
    sizes = {"n_layers": state.dictionary.n_layers, "n_features": state.dictionary.n_features}
    now = {"step": state.step, "running_cut": state.running_cut, "spikes": state.spikes.state()}
    content: dict[str, Any] = {"version": VERSION, **sizes, **now, **facts}
    # the same on all ranks, and kept when facts are added
    content[BELONGS] = digest_of({"step": state.step, **sizes, **{key: facts.get(key) for key in ("config", "model")}})
    files = {
        f"layer-{source:03d}.rank-{ranks.rank}-of-{ranks.world}.safetensors": state.layer_tensors(source)
        for source in range(state.dictionary.n_layers if ranks.replicas.rank == 0 else 0)
    }
    if ranks.first:
        files[SHARED_FILE] = state.shared_tensors()
    draft = Draft(final, files, content, ranks.first)
    _on_all(ranks, lambda: _fresh(draft.partial) if ranks.first else None)
    return draft


def write(draft: Draft) -> None:
    """The second part, of each rank alone: its files."""
    for name, tensors in draft.files.items():
        _write_tensors(tensors, draft.partial / name, draft.content)
    if not draft.first:
        return
    path = draft.partial / STATE_FILE
    try:
        path.write_text(_text(draft.content), encoding="utf-8")
        sync(path)
    except OSError as error:
        raise _refused(path, error) from error


def finish(draft: Draft, written: Callable[[], object], ranks: FeatureRanks) -> Path:
    """The third part, for all ranks together: what ``written`` raises on one is an error on all; the folder gets its name."""
    try:
        _on_all(ranks, written)
    except CircuitTracerError:
        if ranks.first:
            shutil.rmtree(draft.partial, ignore_errors=True)  # the disk may be full
        raise
    _on_all(ranks, lambda: _publish(draft.partial, draft.final) if ranks.first else None)
    return draft.final


def add_facts(folder: Path, facts: dict[str, Any], ranks: FeatureRanks) -> None:
    """Write further facts into state.json of a complete checkpoint. All ranks call this together."""

    def write() -> None:
        with atomic_write(folder / STATE_FILE) as path:
            path.write_text(_text(read(folder).content | facts), encoding="utf-8")

    _on_all(ranks, lambda: write() if ranks.first else None)


def latest(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint in ``folder``, or None."""
    complete = _complete(folder)
    return read(complete[-1]) if complete else None


def read(folder: Path) -> Checkpoint:
    """A checkpoint by its folder. Raises FileFormatError if it is not one, or of another version."""
    try:
        content = read_json(folder / STATE_FILE, halves=True)
        if isinstance(content, dict) and content.get("version") == VERSION:
            content = unsealed(content, STATE_FILE, "It is damaged.")
    except CircuitTracerError as error:
        raise _damaged(folder, f"{STATE_FILE} cannot be read ({error})") from error
    if not isinstance(content, dict) or content.get("version") != VERSION:
        found = content.get("version") if isinstance(content, dict) else content
        raise FileFormatError(
            f"{folder} is a checkpoint of version {shortened(found)}; this program reads version {VERSION}. Resume with the "
            "program that wrote it, or choose another run.out."
        )
    missing = [key for key in ("step", "n_layers", "n_features", "running_cut", BELONGS) if key not in content]
    if missing:
        raise _damaged(folder, f"{STATE_FILE} lacks {', '.join(missing)}")
    sizes = [content[key] for key in ("step", "n_layers", "n_features")]
    cut = content["running_cut"]
    if not all(type(size) is int and size >= 0 for size in sizes) or not (cut is None or type(cut) in (int, float)):
        raise _damaged(
            folder, f"{STATE_FILE} has step, n_layers, n_features, running_cut of {shortened([*sizes, cut])}"
        )
    return Checkpoint(folder, content)


def load_(state: TrainingState, checkpoint: Checkpoint) -> None:
    """Copy a checkpoint into ``state``: this rank's rows, whatever the number of ranks that wrote it.

    Raises CompatibilityError for a checkpoint of other sizes, kind, activation or number format, and FileFormatError for
    damaged files.
    """
    wanted = (state.dictionary.n_layers, state.dictionary.n_features)
    found = (checkpoint.content["n_layers"], checkpoint.content["n_features"])
    if wanted != found:
        raise _foreign(
            f"{checkpoint.folder} has {found[0]} layers of {found[1]} features, this run {wanted[0]} of {wanted[1]}"
        )
    for source in range(state.dictionary.n_layers):
        tensors = state.layer_tensors(source)
        for path, _, _ in _shards(checkpoint, source):
            _require_names(checkpoint, path, tensors)
        for name, tensor in tensors.items():
            _copy_(tensor, rows(checkpoint, source, name, state.dictionary.owned), f"{name} of source layer {source}")
    tensors = state.shared_tensors()
    _require_names(checkpoint, checkpoint.folder / SHARED_FILE, tensors)
    for name, tensor in tensors.items():
        _copy_(tensor, shared(checkpoint, name), name)
    state.step = checkpoint.step
    state.running_cut = checkpoint.content["running_cut"]
    state.spikes = SpikeWatch.restored(checkpoint.fact("spikes"))


def rows(checkpoint: Checkpoint, source: int, name: str, wanted: slice) -> Tensor:
    """Rows ``wanted`` of a tensor of one source layer, joined from the files of the ranks that wrote it."""
    parts = []
    for path, start, stop in _shards(checkpoint, source):
        first, last = max(start, wanted.start), min(stop, wanted.stop)
        if first < last:
            tensor = _entry(checkpoint, path, name)
            if tensor.ndim == 0 or tensor.shape[0] != stop - start:
                raise _damaged(path, f"{name} has shape {tuple(tensor.shape)}, {stop - start} rows are expected")
            parts.append(_whole(path, tensor[first - start : last - start]))
    return torch.cat(parts)


def shared(checkpoint: Checkpoint, name: str) -> Tensor:
    """A tensor that all ranks have alike."""
    path = checkpoint.folder / SHARED_FILE
    return _whole(path, _entry(checkpoint, path, name)).clone()


# ---- reading


def _complete(folder: Path) -> list[Path]:
    """Folders of complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if _NAME.fullmatch(path.name))


def _shards(checkpoint: Checkpoint, source: int) -> list[tuple[Path, int, int]]:
    """(file, first feature, last feature + 1) of one source layer, in order."""
    found = [match for path in checkpoint.folder.iterdir() if (match := _LAYER.fullmatch(path.name))]
    mine = sorted((int(match[2]), int(match[3]), match[0]) for match in found if int(match[1]) == source)
    worlds = {world for _, world, _ in mine}
    if len(worlds) != 1 or [rank for rank, _, _ in mine] != list(range(worlds.pop())):
        names = ", ".join(name for _, _, name in mine) or "none"
        raise _damaged(checkpoint.folder, f"the files of source layer {source} are not those of all ranks: {names}")
    size = checkpoint.content["n_features"] // len(mine)
    return [(checkpoint.folder / name, rank * size, (rank + 1) * size) for rank, _, name in mine]


def _opened(checkpoint: Checkpoint, path: Path) -> TensorFile:
    try:
        file = open_tensor_file(path)
    except CircuitTracerError as error:
        raise _damaged(path, str(error)) from error
    if file.digest is None or file.metadata.get(BELONGS) != checkpoint.content[BELONGS]:
        raise _damaged(path, "it was not written with the checkpoint that it lies in")
    return file


def _entry(checkpoint: Checkpoint, path: Path, name: str) -> Tensor:
    file = _opened(checkpoint, path)
    if name not in file:
        raise _foreign(f"{path} has no tensor {name}")
    try:
        return file.tensor(name)
    except CircuitTracerError as error:
        raise _damaged(path, str(error)) from error


def _whole(path: Path, view: Tensor) -> Tensor:
    try:
        return verified(view)
    except FileFormatError as error:
        raise _damaged(path, str(error)) from error


def _require_names(checkpoint: Checkpoint, path: Path, expected: Iterable[str]) -> None:
    """A tensor that nothing takes would be forgotten without a word."""
    different = _opened(checkpoint, path).entries.keys() ^ set(expected)
    if different:
        raise _foreign(f"{path} and this run differ in the tensors they have: {', '.join(sorted(different))}")


def _copy_(tensor: Tensor, found: Tensor, what: str) -> None:
    if (found.shape, found.dtype) != (tensor.shape, tensor.dtype):
        raise _foreign(
            f"{what} is {found.dtype} of shape {tuple(found.shape)} in the checkpoint, {tensor.dtype} of shape "
            f"{tuple(tensor.shape)} in this run"
        )
    tensor.copy_(found)


def _damaged(path: Path, problem: str) -> FileFormatError:
    return FileFormatError(
        f"{path} is damaged or no checkpoint: {problem}. Remove the whole folder step-... to resume from the one before it."
    )


def _foreign(problem: str) -> CompatibilityError:
    return CompatibilityError(
        f"{problem}: a checkpoint of another run. Resume with the configuration the run began with, or choose another run.out."
    )


# ---- writing


def _on_all(ranks: FeatureRanks, work: Callable[[], object]) -> None:
    """Do ``work`` on all ranks; what fails on one is an error on all, so that none waits for it."""
    failure: CircuitTracerError | None = None
    try:
        work()
    except CircuitTracerError as error:
        failure = error
    ranks.barrier()
    if ranks.any(failure is not None):
        raise failure or ResourceError(
            "another process of this run could not write its part of a checkpoint; earlier checkpoints are unchanged. "
            "See its error, then resume."
        )


def _fresh(partial: Path) -> None:
    """An empty folder for the files to come; what killed runs left goes."""
    for left in partial.parent.glob("step-*.partial"):
        shutil.rmtree(left, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise _refused(partial, error) from error


def _write_tensors(tensors: dict[str, Tensor], path: Path, content: dict[str, Any]) -> None:
    for name, tensor in tensors.items():
        if not _finite(tensor):
            raise NumericalError(
                f"{name} of {_where(path)} is not finite any more, so no checkpoint was written. Resume from the last one with "
                "a lower optimizer.learning_rate, or look for broken activations in the data."
            )
    try:
        write_tensors(path, tensors, {BELONGS: content[BELONGS]})
        sync(path)
    except OSError as error:
        raise _refused(path, error) from error


def _where(path: Path) -> str:
    found = _LAYER.fullmatch(path.name)
    return f"source layer {int(found[1])}" if found else "all layers"


def _finite(tensor: Tensor) -> bool:
    """Without a copy: the least and the largest number are NaN if any is."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(math.isfinite(end) for end in torch.stack(tensor.aminmax()).tolist())


def _publish(partial: Path, final: Path) -> None:
    """Give a complete checkpoint its name, then remove those before the last ``KEPT``."""
    try:
        sync(partial)
        if final.exists():  # of the same step
            _remove(final)
        os.replace(partial, final)
        sync(final.parent)
        before = [path for path in _complete(final.parent) if path <= final]
        for old in before[:-KEPT]:
            _remove(old)
    except OSError as error:
        raise _refused(final, error) from error


def _remove(complete: Path) -> None:
    """Half removed, it no longer has the name of a complete one."""
    going = complete.with_name(f"{complete.name}.old.partial")
    os.replace(complete, going)
    shutil.rmtree(going, ignore_errors=True)


def _text(content: dict[str, Any]) -> str:
    return json.dumps(sealed(content), indent=1) + "\n"


def _refused(path: Path, error: Exception) -> ResourceError:
    return ResourceError(
        f"could not write the checkpoint {path}: {error}; earlier checkpoints are unchanged. Free some space and resume."
    )
