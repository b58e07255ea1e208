"""Activations kept on disk, so that the model runs once: the rows of one epoch in order, as safetensors shards.

A folder holds `manifest.json` and `rows-000000.safetensors`, ... . The manifest says what the rows follow from (settings.py),
lists the shards with their number of rows and, for the last shard of a refill, where the model goes on behind it, and says
whether the epoch is complete. It is written after the shards it lists, so that a run killed at any moment leaves a cache that
the next run continues. Damage is noticed: the manifest has a digest, shards have checksums and say which cache they are of.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from circuit_tracer.errors import CircuitTracerError, CompatibilityError, FileFormatError, ResourceError
from circuit_tracer.files import atomic_write, claimed, read_json, require_writable_folder
from circuit_tracer.files.checksums import verified, write_tensors
from circuit_tracer.files.digests import digest_of, sealed, unsealed
from circuit_tracer.files.tensors import TensorFile, open_tensor_file
from circuit_tracer.fingerprint import require_same
from circuit_tracer.ranks import Ranks
from circuit_tracer.text.position import require_position
from circuit_tracer.training.data.block import Block, RowLayout
from circuit_tracer.training.data.rows import Rows

MANIFEST = "manifest.json"
VERSION = 2
BELONGS = "belongs_to"  # metadata of a shard: digest of the settings that its rows follow from
_REMEDY = "Remove the folder of the cache."
SHARD_BYTES = 2**28  # so that writing a shard needs little memory


class _Claim:
    """That no other process adds to a cache, as long as anything of this one that adds to it is left."""

    def __init__(self, folder: Path) -> None:
        held = ExitStack()
        held.enter_context(claimed(folder, "adds to the cache"))
        weakref.finalize(self, held.close)


_claims: weakref.WeakValueDictionary[Path, _Claim] = weakref.WeakValueDictionary()


class CachedRows:
    """Rows of the shards while there are any, then of the model, which are added to the cache.

    Rank 0 writes; the folder must be one that all ranks see, and one run at a time adds to it. Raises CompatibilityError when
    the folder holds rows of another model or other data, FileFormatError when it is damaged, ResourceError when the disk is
    full, InputError when another run is adding to it.
    """

    def __init__(
        self, folder: Path, model_rows: Rows, layout: RowLayout, settings: dict[str, Any], ranks: Ranks
    ) -> None:
        self.folder, self.model_rows, self.layout, self.ranks = folder, model_rows, layout, ranks
        self._start = model_rows.state()
        self._belongs = digest_of(settings)
        self._manifest: dict[str, Any] = {"version": VERSION, "settings": settings, "shards": [], "complete": False}
        if (folder / MANIFEST).is_file():
            self._manifest = read_manifest(folder)
            require_same(
                self._manifest["settings"], settings, f"the cache {folder}", "Choose another data.cache, or remove it."
            )
        elif ranks.rank == 0:
            require_writable_folder(folder)
            self._write_manifest()
        self._claim: _Claim | None = None  # what keeps other processes from adding, once this one does
        self._adds = False
        self.rewind()
        ranks.barrier()

    @property
    def n_rows(self) -> int:
        """Rows on disk."""
        return sum(shard["rows"] for shard in self._manifest["shards"])

    def rewind(self) -> None:
        """Back to the first row."""
        self._row = 0

    def read(self, block: Block, start: int) -> int:
        """See `Rows.read`."""
        start = self._read_shards(block, start)
        if start < block.n_rows and not self._manifest["complete"] and not self._adds:
            self._begin_adding()
            start = self._read_shards(block, start)  # what others have added by now
        if start == block.n_rows or self._manifest["complete"]:
            return start
        last = next((shard["end"] for shard in reversed(self._manifest["shards"]) if shard["end"]), self._start)
        require_position(last, self._start, str(self.folder / MANIFEST))
        if self.model_rows.state() != last:
            self.model_rows.restore(last)
        end = self.model_rows.read(block, start)
        self._append(block, start, end)
        self._row += end - start
        return end

    def state(self) -> dict[str, Any]:
        """The row in the epoch."""
        return {"row": self._row}

    def restore(self, state: dict[str, Any]) -> None:
        """Go to a row. Raises CompatibilityError when the cache does not reach it."""
        if state["row"] > self.n_rows:
            raise CompatibilityError(
                f"the run stood at row {state['row']}, but the cache {self.folder} holds {self.n_rows} rows: it was removed or "
                "replaced. Restore it, or start the run anew."
            )
        self._row = state["row"]

    def summary(self) -> str:
        """Documents read for the cache, or rows in it."""
        return f"{self.n_rows} tokens in the cache {self.folder}" if self.n_rows else self.model_rows.summary()

    def close(self, patience: float | None = None) -> None:
        """See `Rows.close`."""
        self.model_rows.close(patience)

    def _begin_adding(self) -> None:
        if self.ranks.rank == 0:
            self._claim = _claims.get(self.folder) or _Claim(self.folder)
            _claims[self.folder] = self._claim
        self.ranks.barrier()
        self._manifest, self._adds = read_manifest(self.folder), True

    def _read_shards(self, block: Block, start: int) -> int:
        first = 0
        for shard in self._manifest["shards"]:
            begin, behind = self._row - first, shard["rows"]
            first += behind
            if start == block.n_rows or begin >= behind:
                continue
            end = min(behind, begin + block.n_rows - start)
            with self._opened(shard) as file:
                for name in self.layout.names:
                    block.rows(name, start, start + end - begin).copy_(verified(file.tensor(name)[begin:end]))
            start += end - begin
            self._row += end - begin
        return start

    def _append(self, block: Block, start: int, end: int) -> None:
        """Add rows of a block that the model made; short of the block's end, the epoch is over."""
        per_shard = max(1, SHARD_BYTES // self.layout.row_bytes)
        shards = list(self._manifest["shards"])
        for begin in range(start, end, per_shard):
            behind = min(begin + per_shard, end)
            name = f"rows-{len(shards):06d}.safetensors"
            if self.ranks.rank == 0:
                self._write_shard(name, block, begin, behind)
            shards.append(
                {"file": name, "rows": behind - begin, "end": self.model_rows.state() if behind == end else None}
            )
        self._manifest = {**self._manifest, "shards": shards, "complete": end < block.n_rows}
        if self.ranks.rank == 0:
            self._write_manifest()
        self.ranks.barrier()
        if self._manifest["complete"]:
            self._claim = None

    def _write_shard(self, name: str, block: Block, start: int, end: int) -> None:
        tensors = {tensor: block.rows(tensor, start, end) for tensor in self.layout.names}
        with atomic_write(self.folder / name) as temporary:
            try:
                write_tensors(temporary, tensors, {BELONGS: self._belongs}, name)
            except OSError as error:
                raise ResourceError(
                    f"could not write {self.folder / name}: {error}. The cache keeps what it has; free some space and resume "
                    "the run, or set data.cache to null."
                ) from error

    def _write_manifest(self) -> None:
        with atomic_write(self.folder / MANIFEST) as temporary:
            temporary.write_text(json.dumps(sealed(self._manifest), indent=1), encoding="utf-8")

    @contextmanager
    def _opened(self, shard: dict[str, Any]) -> Iterator[TensorFile]:
        path = self.folder / shard["file"]
        try:
            file = open_tensor_file(path)
            if file.digest is None or file.metadata.get(BELONGS) != self._belongs:
                raise FileFormatError("it was not written with this cache")
            if any(file.shapes.get(name, ())[:1] != (shard["rows"],) for name in self.layout.names):
                raise FileFormatError(f"it has not the {shard['rows']} rows that the manifest says")
            yield file
        except CircuitTracerError as error:
            raise FileFormatError(f"{path} is damaged or missing: {error} {_REMEDY}") from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a cache. Raises FileFormatError when it is not one."""
    path = folder / MANIFEST
    try:
        manifest = read_json(path, halves=True)
        known = manifest["version"] == VERSION
        listed = [(shard["file"], shard["rows"], shard["end"]) for shard in manifest["shards"]]
        whole = isinstance(manifest["complete"], bool) and isinstance(manifest["settings"], dict)
        whole &= all(type(rows) is int and rows > 0 for _, rows, _ in listed)
    except (CircuitTracerError, LookupError, TypeError) as error:
        raise FileFormatError(f"{path} is not the manifest of a cache: {error!r}. {_REMEDY}") from error
    if not (known and whole and all(isinstance(file, str) and Path(file).name == file for file, _, _ in listed)):
        raise FileFormatError(f"{path} is not the manifest of a cache of version {VERSION}. {_REMEDY}")
    return unsealed(manifest, str(path), _REMEDY)
