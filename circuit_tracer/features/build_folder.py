"""Where a build stands, on disk: what is known of each layer after stretches of the corpus, in files that never change.

A folder holds `settings.json` (what the build follows from), `progress.json` (how many stretches are done, and the place in
the corpus behind them) and `layer-000/000000-000004.safetensors`: layer 0 after stretches 0 to 3. Files of equal spans are
merged into one, so there are few, and each stretch is rewritten only a few times. Every file is complete when it appears,
and what is written after a kill is what was written before it.
"""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from circuit_tracer.errors import CircuitTracerError, FileFormatError
from circuit_tracer.features.schema import require_summary
from circuit_tracer.features.summary import Examples, Keep, LayerSummary, merge
from circuit_tracer.files import atomic_write, require_writable_folder
from circuit_tracer.files.checksums import write_tensors
from circuit_tracer.files.digests import digest_of, read_sealed, write_sealed
from circuit_tracer.files.tensors import open_tensor_file
from circuit_tracer.fingerprint import require_same

_PART = re.compile(r"(\d{6,})-(\d{6,})\.safetensors")
_EXAMPLES = ("top", "sample")
VERSION = 2


class BuildFolder:
    """The working folder of one build. Raises CompatibilityError when it holds a build of something else."""

    def __init__(self, folder: Path, settings: dict[str, Any], n_layers: int, keep: Keep) -> None:
        self.folder, self.n_layers, self.keep = require_writable_folder(folder), n_layers, keep
        settings = {"version": VERSION, **settings}
        if (found := folder / "settings.json").is_file():
            require_same(
                read_sealed(found, self._remedy),
                settings,
                f"the unfinished build in {folder}",
                "Choose another folder, or remove it.",
            )
        else:
            write_sealed(found, settings, indent=1)
        self._belongs = digest_of(settings)
        self.progress: dict[str, Any] = {"stretches": 0, "tokens": 0, "counted": 0, "corpus": None, "complete": False}
        if (folder / "progress.json").is_file():
            self.progress = _progress(folder / "progress.json", self._remedy)

    def add(self, summaries: list[LayerSummary], progress: dict[str, Any]) -> None:
        """What is known after the next stretch, and the place behind it."""
        number = self.progress["stretches"]
        for layer, summary in enumerate(summaries):
            self._save(layer, (number, number + 1), summary)
        self.progress = {**progress, "stretches": number + 1}
        write_sealed(self.folder / "progress.json", self.progress, indent=1)
        for layer in range(self.n_layers):
            self._fold(layer)

    def complete(self, progress: dict[str, Any]) -> None:
        """Note that there is no more text."""
        self.progress = {**self.progress, **progress, "complete": True}
        write_sealed(self.folder / "progress.json", self.progress, indent=1)

    def whole(self, layer: int) -> LayerSummary | None:
        """Everything known of a layer; None if there was no text."""
        spans = self._spans(layer)
        while len(spans) > 1:
            spans[-2:] = [self._merged(layer, spans[-2], spans[-1])]
        return self._load(layer, spans[0]) if spans else None

    def _fold(self, layer: int) -> None:
        """Merge the last two files while the last is as long as the one before it, like carrying in binary."""
        spans = self._spans(layer)
        while len(spans) > 1 and spans[-1][1] - spans[-1][0] >= spans[-2][1] - spans[-2][0]:
            spans[-2:] = [self._merged(layer, spans[-2], spans[-1])]

    def _merged(self, layer: int, first: tuple[int, int], second: tuple[int, int]) -> tuple[int, int]:
        span = (first[0], second[1])
        self._save(layer, span, merge(self._load(layer, first), self._load(layer, second), self.keep))
        for old in (first, second):
            self._path(layer, old).unlink(missing_ok=True)
        return span

    def _spans(self, layer: int) -> list[tuple[int, int]]:
        """What the files of a layer span, in order, each stretch once; files that a kill left over are passed over."""
        names = (path.name for path in (self.folder / f"layer-{layer:03d}").glob("*.safetensors"))
        found = [tuple(map(int, match.groups())) for name in names if (match := _PART.fullmatch(name))]
        spans, end = list[tuple[int, int]](), 0
        done = self.progress["stretches"]
        for start, stop in sorted(found, key=lambda span: (span[0], -span[1])):
            if start == end and stop <= done:
                spans.append((start, stop))
                end = stop
        if end != done:
            raise FileFormatError(
                f"{self.folder} lacks files of layer {layer} behind stretch {end} of {done}; remove the folder and start anew"
            )
        return spans

    def _path(self, layer: int, span: tuple[int, int]) -> Path:
        return self.folder / f"layer-{layer:03d}" / f"{span[0]:06d}-{span[1]:06d}.safetensors"

    def _save(self, layer: int, span: tuple[int, int], summary: LayerSummary) -> None:
        arrays = {field.name: getattr(summary, field.name) for field in fields(summary) if field.name not in _EXAMPLES}
        for name in _EXAMPLES:
            examples = getattr(summary, name)
            arrays |= {f"{name}.{field.name}": getattr(examples, field.name) for field in fields(examples)}
        path = self._path(layer, span)
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        with atomic_write(path) as temporary:
            write_tensors(temporary, tensors, self._written_with(layer), path.name)

    def _written_with(self, layer: int) -> dict[str, str]:
        """What a file says of where it belongs."""
        return {"build": self._belongs, "layer": str(layer)}

    @property
    def _remedy(self) -> str:
        return f"Remove {self.folder} and start anew."

    def _load(self, layer: int, span: tuple[int, int]) -> LayerSummary:
        path = self._path(layer, span)
        try:
            file = open_tensor_file(path)
            if file.digest is None or not self._written_with(layer).items() <= file.metadata.items():
                raise FileFormatError(f"{path} was not written with this build")
            arrays = {name: file.read(name).numpy() for name in file.entries}
            require_summary(arrays, path)
        except CircuitTracerError as error:
            raise FileFormatError(f"{path} cannot be read ({error}). {self._remedy}") from error
        top, sample = (
            Examples(**{field.name: arrays[f"{name}.{field.name}"] for field in fields(Examples)}) for name in _EXAMPLES
        )
        columns = {field.name: arrays[field.name] for field in fields(LayerSummary) if field.name not in _EXAMPLES}
        return LayerSummary(**columns, top=top, sample=sample)


def _progress(path: Path, remedy: str) -> dict[str, Any]:
    found = read_sealed(path, remedy)
    counts = [found.get(name) for name in ("stretches", "tokens", "counted")]
    if not all(type(count) is int and count >= 0 for count in counts) or type(found.get("complete")) is not bool:
        raise FileFormatError(f"{path} does not say where the build stands. {remedy}")
    return found
