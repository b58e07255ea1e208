"""What a file format is to the loader: how its tensors are recognised, and how they become `LayerWeights`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from circuit_tracer.transcoders.formats.layer_file import Harmless, LayerFile
from circuit_tracer.transcoders.layer_weights import LayerWeights

Reader = Callable[[list[LayerFile]], list[LayerWeights]]


@dataclass(frozen=True)
class Format:
    """One file format.

    ``detect`` looks at the names and shapes of one layer's tensors; ``read`` turns the files of all layers, in order,
    into weights. ``layout`` is the line shown to a user whose file fits no format. ``harmless_tensors`` and
    ``harmless_keys`` are what ``read`` may leave in a file and in the configuration beside it: anything else that it leaves is
    refused. ``hooks`` are the input and output hook of the published transcoders of this format: assumed, with a warning,
    where neither files nor config say; ``hooks_note`` is the reason in that warning.
    """

    name: str
    kind: str
    layout: str
    detect: Callable[[LayerFile], bool]
    read: Reader
    harmless_tensors: tuple[Harmless, ...] = ()
    harmless_keys: tuple[Harmless, ...] = ()
    hooks: tuple[str, str] | None = None
    hooks_note: str = ""


def each(read_layer: Callable[[LayerFile], LayerWeights]) -> Reader:
    """The reader of a format in which every file is one layer and needs nothing from the others."""
    return lambda files: [read_layer(file) for file in files]
