"""What is known of a graph's features, as its file keeps it: labels, and records of examples as folders of features pack them.

On disk, labels are {layer: {index: text}} in the header, and R records are three tensors: ``records.place`` int64 (R, 2) of
(layer, index), ``records.offsets`` int64 (R + 1), and ``records.data`` uint8, record r from offsets[r] to offsets[r + 1].
`circuit_tracer.features.kept` puts both into a graph and reads them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.errors import FileFormatError

Place = tuple[int, int]  # layer, index
NAMES = ("records.place", "records.offsets", "records.data")


def labels_to_json(labels: Mapping[Place, str]) -> dict[str, dict[str, str]]:
    """By layer and index."""
    rows: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for (layer, index), text in sorted(labels.items()):
        rows[str(layer)][str(index)] = text
    return dict(rows)


def labels_from_json(given: Any) -> dict[Place, str]:
    """Read back. Raises FileFormatError for anything that ``labels_to_json`` does not write."""
    try:
        labels = {(int(layer), int(index)): text for layer, row in given.items() for index, text in row.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise FileFormatError(f"its labels are not texts by layer and feature ({error})") from error
    if wrong := [text for text in labels.values() if not isinstance(text, str)]:
        raise FileFormatError(f"a label is {wrong[0]!r:.80}; expected a text")
    return labels


def records_to_tensors(records: Mapping[Place, bytes]) -> dict[str, Tensor]:
    """The three tensors; none for no records."""
    if not records:
        return {}
    order = sorted(records)
    sizes = torch.tensor([0, *(len(records[place]) for place in order)])
    data = bytearray(b"".join(records[place] for place in order))
    tensors = torch.tensor(order), torch.cumsum(sizes, 0), torch.frombuffer(data, dtype=torch.uint8)
    return dict(zip(NAMES, tensors, strict=True))


def records_from_tensors(tensors: Mapping[str, Tensor]) -> dict[Place, bytes]:
    """Read back what is among the tensors of a file. Raises FileFormatError if it does not fit together."""
    found = [tensors[name] for name in NAMES if name in tensors]
    if not found:
        return {}
    if len(found) < len(NAMES):
        raise FileFormatError(f"only some of {', '.join(NAMES)} are there")
    place, offsets, data = found
    fits = (
        place.dtype == offsets.dtype == torch.int64
        and data.dtype == torch.uint8
        and place.shape == (len(offsets) - 1, 2)
        and data.shape == (int(offsets[-1]),)
        and int(offsets[0]) == 0
        and bool((offsets.diff() > 0).all())
    )
    if not fits:
        raise FileFormatError(f"the shapes of {', '.join(NAMES)} do not fit together")
    text, ends = data.numpy().tobytes(), offsets.tolist()
    return {
        (layer, index): text[start:stop]
        for (layer, index), start, stop in zip(place.tolist(), ends, ends[1:], strict=False)
    }
