"""Checkpoints: a folder a step, a safetensors file for each source layer and rank, complete or not there at all.

    step-00000500/state.json                       step, sizes, position in the data, fingerprint; written by rank 0
                  shared.safetensors               what is the same on every rank; written by rank 0
                  layer-003.rank-0-of-2.safetensors  the rows of one source layer that a rank owns, with their moments

The folder is written under another name and renamed when every rank is done, so that a run killed at any moment leaves the
last complete checkpoint. Ranks own contiguous rows, so that another number of ranks reads slices of the same files.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.errors import CompatibilityError, FileFormatError, ResourceError
from circuit_tracer.training.ranks import Ranks
from circuit_tracer.training.state import TrainingState

VERSION = 1
KEPT = 2  # complete checkpoints kept; older ones go
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


def save(state: TrainingState, folder: Path, facts: dict[str, Any], ranks: Ranks) -> Path:
    """Write a checkpoint of ``state`` into ``folder`` and return its path. All ranks call this together.

    ``facts``: JSON-able, kept in state.json beside the step (position in the data, fingerprint of the run). Raises
    ResourceError when the disk is full; earlier checkpoints stay.
    """
    final = folder / f"step-{state.step:08d}"
    partial = folder / f"{final.name}.partial"
    if ranks.first:
        _fresh(partial)
    ranks.barrier()
    for source in range(state.dictionary.n_layers):
        name = f"layer-{source:03d}.rank-{ranks.rank}-of-{ranks.world}.safetensors"
        _write(state.layer_tensors(source), partial / name)
    if ranks.first:
        _write(state.shared_tensors(), partial / "shared.safetensors")
        content = {
            "version": VERSION,
            "step": state.step,
            "n_layers": state.dictionary.n_layers,
            "n_features": state.dictionary.n_features,
            "running_cut": state.running_cut,
            **facts,
        }
        (partial / "state.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    ranks.barrier()
    if ranks.first:
        _publish(partial, final)
    ranks.barrier()
    return final


def latest(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint in ``folder``, or None."""
    steps = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return read(max(steps, key=lambda path: path.name)) if steps else None


def read(folder: Path) -> Checkpoint:
    """A checkpoint by its folder. Raises FileFormatError if it is not one, or of another version."""
    try:
        content = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FileFormatError(f"{folder} is no checkpoint: state.json cannot be read ({error}).") from error
    if not isinstance(content, dict) or content.get("version") != VERSION:
        found = content.get("version") if isinstance(content, dict) else content
        raise FileFormatError(f"{folder} is a checkpoint of version {found!r}; this program reads version {VERSION}.")
    return Checkpoint(folder, content)


def load_(state: TrainingState, checkpoint: Checkpoint) -> None:
    """Copy a checkpoint into ``state``: this rank's rows, whatever the number of ranks that wrote it."""
    wanted = (state.dictionary.n_layers, state.dictionary.n_features)
    found = (checkpoint.content["n_layers"], checkpoint.content["n_features"])
    if wanted != found:
        raise CompatibilityError(
            f"{checkpoint.folder} has {found[0]} layers of {found[1]} features, this run {wanted[0]} of {wanted[1]}. "
            "Resume with the configuration the run began with, or choose another run.out."
        )
    for source in range(state.dictionary.n_layers):
        for name, tensor in state.layer_tensors(source).items():
            tensor.copy_(rows(checkpoint, source, name, state.dictionary.owned))
    for name, tensor in state.shared_tensors().items():
        tensor.copy_(shared(checkpoint, name))
    state.step = checkpoint.step
    state.running_cut = checkpoint.content["running_cut"]


def rows(checkpoint: Checkpoint, source: int, name: str, wanted: slice) -> Tensor:
    """Rows ``wanted`` of a tensor of one source layer, joined from the files of the ranks that wrote it."""
    parts = []
    for path, start, stop in _shards(checkpoint, source):
        first, last = max(start, wanted.start), min(stop, wanted.stop)
        if first < last:
            with _opened(path) as file:
                parts.append(_entry(file, path, name)[first - start : last - start])
    return torch.cat(parts)


def shared(checkpoint: Checkpoint, name: str) -> Tensor:
    """A tensor that all ranks have alike."""
    path = checkpoint.folder / "shared.safetensors"
    with _opened(path) as file:
        return _entry(file, path, name)[:]


def _shards(checkpoint: Checkpoint, source: int) -> list[tuple[Path, int, int]]:
    """(file, first feature, last feature + 1) of one source layer, in order."""
    found = [match for path in checkpoint.folder.iterdir() if (match := _LAYER.fullmatch(path.name))]
    mine = sorted((int(match[2]), int(match[3]), match[0]) for match in found if int(match[1]) == source)
    worlds = {world for _, world, _ in mine}
    if len(worlds) != 1 or [rank for rank, _, _ in mine] != list(range(worlds.pop())):
        raise FileFormatError(
            f"{checkpoint.folder}: the files of source layer {source} are not those of all ranks: "
            f"{', '.join(name for _, _, name in mine) or 'none'}. Resume from another checkpoint."
        )
    size = checkpoint.content["n_features"] // len(mine)
    return [(checkpoint.folder / name, rank * size, (rank + 1) * size) for rank, _, name in mine]


def _opened(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(str(path), framework="pt")
    except (OSError, SafetensorError) as error:
        raise FileFormatError(f"{path} cannot be read: {error}. Resume from another checkpoint.") from error


def _entry(file: Any, path: Path, name: str) -> Any:
    if name not in file.keys():  # noqa: SIM118  (not a dict)
        raise CompatibilityError(
            f"{path} has no tensor {name}: the checkpoint is of another kind of dictionary or activation. "
            "Resume with the configuration the run began with, or choose another run.out."
        )
    return file.get_slice(name)


def _fresh(partial: Path) -> None:
    """An empty folder for the files to come; what a killed run left there goes."""
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise _refused(partial, error) from error


def _write(tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, str(path))
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
    except (OSError, SafetensorError) as error:
        raise _refused(path, error) from error


def _publish(partial: Path, final: Path) -> None:
    """Give a complete checkpoint its name, then remove those before the last ``KEPT``."""
    shutil.rmtree(final, ignore_errors=True)  # the same step, saved again after a resume
    os.replace(partial, final)
    complete = sorted(path for path in final.parent.glob("step-*") if _NAME.fullmatch(path.name))
    for old in complete[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def _refused(path: Path, error: Exception) -> ResourceError:
    return ResourceError(
        f"could not write the checkpoint {path}: {error}; earlier checkpoints are unchanged. Free some space and resume."
    )
