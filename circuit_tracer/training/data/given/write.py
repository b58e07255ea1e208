"""Writing activations as shards, for whoever makes them with another engine (docs/how-to/activations.md)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.errors import FileFormatError, InputError
from circuit_tracer.files import atomic_write, require_writable_folder
from circuit_tracer.files.checksums import write_tensors
from circuit_tracer.training.data.given.description import INPUT, Description, check_rows, described, read_description
from circuit_tracer.training.data.given.shards import MANIFEST, SUFFIX

SHARD_BYTES = 2**28  # in memory at a time

Batch = Mapping[str, Tensor]


def write_activations(
    folder: str | Path,
    batches: Iterable[Batch],
    *,
    model: str,
    layers: Sequence[int],
    input_hook: str = "hook_resid_mid",
    output_hook: str = "hook_mlp_out",
    held_out: Iterable[Batch] | None = None,
    n_layers: int | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write rows into a new ``folder``, which `data.kind: activations` trains on. In memory: one shard.

    Leave out what is not to be trained on: the first token of a sequence and special tokens.

    The manifest is written last: a folder without it is incomplete.

    ```python
    write_activations("acts", ({"x": x, "y": y} for x, y in made_elsewhere()), model="org/name", layers=range(12))
    ```

    Args:
        folder: A new one.
        batches: ``x`` (n, S, D) what the dictionary reads at the S ``layers``, ``y`` (n, S, D) what it reconstructs (left
            out for an autoencoder: the hooks are then the same), in any float format; optionally ``document`` (n,) and
            ``token_ids`` (n,).
        model: Name of the model that they are of.
        layers: That rows hold, S of them.
        input_hook: Where `x` was read.
        output_hook: Where `y` was read.
        held_out: Rows for evaluation alone; None: the trainer chooses them, by document.
        n_layers: Of the whole model.
        shard_bytes: Most bytes of a file.

    Returns:
        The folder.

    Raises:
        InputError: For a folder that holds activations, and when there is no row.
        FileFormatError: For tensors that do not fit.
        ResourceError: When the disk is full.
    """
    folder = require_writable_folder(folder)
    if (folder / MANIFEST).exists():
        raise InputError(f"{folder} holds activations already; choose another folder, or remove it")
    writer = _Writer(folder, model, list(layers), input_hook, output_hook, n_layers, shard_bytes)
    for some, apart in ((batches, False), (held_out or (), True)):
        for batch in some:
            writer.add(batch, apart)
        writer.flush(apart)
    if writer.manifest is None or not any(not shard["held_out"] for shard in writer.shards):
        raise InputError("there is no row to write; give at least one batch to train on")
    with atomic_write(folder / MANIFEST) as path:
        path.write_text(json.dumps({**writer.manifest, "shards": writer.shards}, indent=1) + "\n", encoding="utf-8")
    return folder


class _Writer:
    def __init__(
        self,
        folder: Path,
        model: str,
        layers: list[int],
        input_hook: str,
        output_hook: str,
        n_layers: int | None,
        shard_bytes: int,
    ) -> None:
        self.folder, self.shard_bytes = folder, shard_bytes
        self.manifest: dict[str, Any] | None = None  # known with the first batch
        self.shards: list[dict[str, Any]] = []
        self._said = (model, layers, input_hook, output_hook)
        self._n_layers = n_layers
        self._description: Description | None = None
        self._waiting: list[dict[str, Tensor]] = []

    def add(self, batch: Batch, held_out: bool) -> None:
        """Take a batch; a shard is written when enough has come."""
        part = {name: torch.as_tensor(tensor).detach().cpu() for name, tensor in batch.items()}
        if self._description is None:
            if INPUT not in part or part[INPUT].ndim != 3:
                raise FileFormatError(f"a batch has no tensor {INPUT!r} of shape (rows, layers, width)")
            self.manifest = described(*self._said, part[INPUT].shape[2], self._n_layers)
            self._description = read_description(self.manifest, "the manifest")
        n_rows = check_rows(part, self._description, "a batch")
        known = self._waiting[0].keys() if self._waiting else part.keys()
        if part.keys() != known:
            raise FileFormatError(
                f"a batch has {', '.join(part)}, those before it {', '.join(known)}; all need the same"
            )
        if n_rows:
            self._waiting.append(part)
        row_bytes = sum(tensor.nbytes for tensor in part.values()) // max(n_rows, 1)
        while self._rows() * row_bytes >= self.shard_bytes and self._rows():
            self._write(max(1, self.shard_bytes // row_bytes), held_out)

    def flush(self, held_out: bool) -> None:
        """Write what is left."""
        if self._rows():
            self._write(self._rows(), held_out)

    def _rows(self) -> int:
        return sum(len(part[INPUT]) for part in self._waiting)

    def _write(self, n_rows: int, held_out: bool) -> None:
        whole = {name: torch.cat([part[name] for part in self._waiting]) for name in self._waiting[0]}
        left = {name: tensor[n_rows:].clone() for name, tensor in whole.items()}
        self._waiting = [left] if len(left[INPUT]) else []
        name = f"rows-{len(self.shards):06d}{SUFFIX}"
        with atomic_write(self.folder / name) as path:
            write_tensors(path, {key: tensor[:n_rows] for key, tensor in whole.items()}, name=name)
        self.shards.append({"file": name, "rows": len(whole[INPUT][:n_rows]), "held_out": held_out})
