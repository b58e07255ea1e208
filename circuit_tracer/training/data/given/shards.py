"""Rows in safetensors files of one or more folders, each with a manifest (docs/how-to/activations.md)."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from typing import Any, Protocol

from torch import Tensor

from circuit_tracer.errors import CompatibilityError, FileFormatError, InputError
from circuit_tracer.files import LARGEST_YAML, parse_json
from circuit_tracer.files.checksums import verified
from circuit_tracer.files.places import Place, find_places
from circuit_tracer.files.tensors import TensorFile, open_tensor_file
from circuit_tracer.text.documents import fingerprint_of
from circuit_tracer.training.data.given.description import (
    DOCUMENT,
    INPUT,
    Description,
    Shard,
    check_rows,
    read_description,
)

MANIFEST = "activations.json"
SUFFIX = ".safetensors"
ROWS_AT_A_TIME = 1024


class RowSource(Protocol):
    """Where given rows come from."""

    where: str  # for messages
    description: Description
    apart: bool  # held-out rows are given apart from those to train on

    def parts(self, first: int, held_out: bool) -> Iterator[dict[str, Tensor]]:
        """The rows from number `first` on, in order, a few at a time. held_out: those given apart."""

    def fingerprint(self) -> dict[str, Any]:
        """JSON-able values that change when the rows do."""

    def alone(self) -> RowSource:
        """The same rows for a process that reads them without the other ones of its run."""


@dataclass(frozen=True)
class _Shard:
    place: Place
    rows: int
    held_out: bool


class Shards:
    """The shards of a folder, or of all folders of a pattern, in the order of their names."""

    def __init__(self, path: str) -> None:
        self.where = path
        manifests = _manifests(path)
        self.description = _read(manifests[0])
        for other in manifests[1:]:
            if (found := _read(other).facts()) != self.description.facts():
                differing = [name for name, value in self.description.facts().items() if found[name] != value]
                raise CompatibilityError(
                    f"{other} and {manifests[0]} are not of the same activations: {', '.join(differing)} differ. Train on one "
                    "of the folders."
                )
        self._manifests = manifests
        self.apart = any(shard.held_out for shard in self._shards)

    def parts(self, first: int, held_out: bool) -> Iterator[dict[str, Tensor]]:
        """See `RowSource`. Raises FileFormatError for a file with other tensors than the manifest says."""
        for shard in self._shards:
            if self.apart and shard.held_out != held_out:
                continue
            if first < shard.rows:
                with shard.place.on_disk() as path:
                    file = open_tensor_file(path)
                    whole = {name: file.tensor(name) for name in self._names(file)}
                    for start in range(first, shard.rows, ROWS_AT_A_TIME):
                        end = min(start + ROWS_AT_A_TIME, shard.rows)
                        yield {name: verified(tensor[start:end]) for name, tensor in whole.items()}
            first = max(0, first - shard.rows)

    def fingerprint(self) -> dict[str, Any]:
        """What the rows are of, and a digest of the files."""
        split = [shard.held_out for shard in self._shards]
        return {**self.description.facts(), **fingerprint_of([shard.place for shard in self._shards]), "split": split}

    def alone(self) -> Shards:
        """See `RowSource`: every rank reads for itself anyhow."""
        return self

    @cached_property
    def _shards(self) -> list[_Shard]:
        found = [shard for manifest in self._manifests for shard in self._listed(manifest)]
        if not found:
            raise InputError(f"{self.where} holds no file that ends in {SUFFIX}")
        return found

    def _listed(self, manifest: Place) -> Iterator[_Shard]:
        places = {place.file_name: place for place in _beside(manifest)}
        listed = _read(manifest).shards
        for shard in [Shard(file=name) for name in places] if listed is None else listed:
            if PurePath(shard.file).name != shard.file or shard.file not in places:
                raise FileFormatError(
                    f"{manifest} lists {shard.file!r}, which is not beside it. Copy the folder again."
                )
            rows = shard.rows
            if rows is None or places[shard.file].system is None:
                rows = self._counted(places[shard.file])
            if shard.rows not in (None, rows):
                raise FileFormatError(
                    f"{places[shard.file]} has {rows} rows, but {manifest} says {shard.rows}. Copy the folder again."
                )
            yield _Shard(places[shard.file], rows, shard.held_out)

    def _counted(self, place: Place) -> int:
        """The rows of a file, which is copied here if it lies elsewhere."""
        with place.on_disk() as path:
            file = open_tensor_file(path)
            return check_rows({name: file.tensor(name) for name in self._names(file)}, self.description, str(place))

    def _names(self, file: TensorFile) -> list[str]:
        return [name for name in (*self.description.names, DOCUMENT) if name in file or name == INPUT]


def _manifests(path: str) -> list[Place]:
    """The manifests of a folder, or of the folders that a pattern names."""
    try:
        return find_places(f"{path.rstrip('/')}/{MANIFEST}", (".json",))
    except InputError as error:
        raise InputError(
            f"data.path is {path!r}, where there is no {MANIFEST}, which says what the activations are of "
            "(docs/how-to/activations.md). Give a folder that holds one, or a pattern of such folders."
        ) from error


def _beside(manifest: Place) -> list[Place]:
    """The files of tensors in the folder of a manifest."""
    folder = str(manifest).removesuffix(MANIFEST)
    if manifest.system is None:
        return find_places(f"{glob.escape(folder)}*{SUFFIX}", (SUFFIX,))
    return find_places(f"{manifest.system.unstrip_protocol(folder)}*{SUFFIX}", (SUFFIX,))


def _read(manifest: Place) -> Description:
    with manifest.opened() as file:
        raw = file.read(LARGEST_YAML * 4 + 1)
    return read_description(parse_json(raw, str(manifest)), str(manifest))
