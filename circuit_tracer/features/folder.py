"""A folder of feature records in the indexed binary form that circuit-tracer's viewer and ours read by ranges of bytes.

`index.json.gz`: gzipped JSON {layer: {"filename", "offsets"}}; record i of a layer lies in its file from offsets[i] to
offsets[i + 1]: four bytes of length, little endian, then so many of zlib-compressed JSON. A feature without a record has two
equal offsets. `features.json` says where the records come from; `labels.json` beside them names features.
"""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from circuit_tracer.errors import CircuitTracerError, FileFormatError, InputError
from circuit_tracer.features.schema import FeatureRecord, Offsets
from circuit_tracer.files import atomic_write, open_file, parse_json, read_json, unpack, validated
from circuit_tracer.files.digests import read_sealed

INDEX, MANIFEST, LABELS = "index.json.gz", "features.json", "labels.json"


class FeatureFolder:
    """Records by (layer, index), read when they are asked for. Raises InputError or FileFormatError."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / INDEX
        if not path.is_file():
            raise InputError(
                f"{self.folder} holds no features: {INDEX} is missing. `circuit-tracer features build` makes it."
            )
        try:
            index = read_json(path)
            listed = dict(enumerate(index)) if isinstance(index, list) else index
            rows = {int(layer): validated(Offsets, row, path) for layer, row in listed.items()}
        except (FileFormatError, ValueError, TypeError, AttributeError) as error:
            raise FileFormatError(
                f"{path} is no index of features ({str(error)[:300]}); build the features again"
            ) from error
        self._layers = {layer: (row.filename, row.offsets) for layer, row in rows.items()}

    @property
    def manifest(self) -> dict[str, Any]:
        """Where the records come from; {} if nothing says so."""
        return read_manifest(self.folder) if (self.folder / MANIFEST).is_file() else {}

    def get(self, place: tuple[int, int], default: Any = None) -> Any:
        """The record of a feature (layer, index)."""
        layer, index = place
        name, offsets = self._layers.get(layer, ("", []))
        if place not in self:
            return default
        path = self.folder / name
        try:
            with open_file(path) as file:
                file.seek(offsets[index])
                source = f"the record of feature {index} in {path}"
                record = unpacked(file.read(offsets[index + 1] - offsets[index]), source)
            if (record.get("layer", layer), record.get("index", index)) != place:
                raise FileFormatError(f"it is that of feature {record.get('index')} of layer {record.get('layer')}")
            return record
        except (OSError, CircuitTracerError) as error:
            raise FileFormatError(
                f"the record of feature {index} in {path} cannot be read ({error}); build the features again"
            ) from error

    def __contains__(self, place: tuple[int, int]) -> bool:
        _, offsets = self._layers.get(place[0], ("", []))
        return 0 <= place[1] < len(offsets) - 1 and offsets[place[1] + 1] - offsets[place[1]] > 4

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """The features that have a record, in order."""
        for layer, (_, offsets) in sorted(self._layers.items()):
            yield from ((layer, index) for index in range(len(offsets) - 1) if (layer, index) in self)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `features.json` says of where a folder's records come from."""
    return read_sealed(folder / MANIFEST, "Build the features again.")


def packed(record: dict[str, Any]) -> bytes:
    """One record as it stands in a file."""
    text = json.dumps(record, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    data = zlib.compress(text.encode("utf-8", "surrogatepass"), 9)
    return struct.pack("<I", len(data)) + data


def unpacked(data: bytes, source: str) -> dict[str, Any]:
    """The record in these bytes, of zlib or gzip. Raises FileFormatError, naming ``source``."""
    if len(data) < 4 or len(data) != 4 + struct.unpack_from("<I", data)[0]:
        raise FileFormatError(f"{source} has {len(data)} bytes, and says that it has others")
    record = parse_json(unpack(data[4:], source), source, halves=True)
    validated(FeatureRecord, record, source)
    return dict(record)


def write_layer(
    folder: Path, layer: int, n_features: int, records: Iterable[tuple[int, dict[str, Any]]]
) -> dict[str, Any]:
    """Write the records (index, record), ascending, of one layer; returns its entry of the index."""
    name = f"layer_{layer}.bin"
    offsets, place = [0], 0
    with atomic_write(folder / name) as temporary, open(temporary, "wb") as file:
        for index, record in records:
            offsets += [place] * (index + 1 - len(offsets))
            data = packed(record)
            file.write(data)
            place += len(data)
            offsets.append(place)
    return {"filename": name, "offsets": offsets + [place] * (n_features + 1 - len(offsets))}


def write_index(folder: Path, layers: dict[int, dict[str, Any]]) -> None:
    """Write the index; no date enters it, so that the same records give the same bytes."""
    text = json.dumps({str(layer): entry for layer, entry in sorted(layers.items())}, separators=(",", ":"))
    with atomic_write(folder / INDEX) as temporary:
        temporary.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
