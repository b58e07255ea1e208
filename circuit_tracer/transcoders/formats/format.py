"""What a file format is to the loader: how its tensors are recognised, and how they become `LayerWeights`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from circuit_tracer.files.tensors import TensorFile
from circuit_tracer.transcoders.layer_weights import LayerWeights

Reader = Callable[[list[TensorFile]], list[LayerWeights]]


@dataclass(frozen=True)
class Format:
    """One file format.

    ``detect`` looks at the names and shapes of one layer's tensors; ``read`` turns the files of all layers, in order,
    into weights. ``layout`` is the line shown to a user whose file fits no format. ``hooks`` are the input and output
    hook that files of this format were trained at, where the format fixes them.
    """

    name: str
    kind: str
    layout: str
    detect: Callable[[TensorFile], bool]
    read: Reader
    hooks: tuple[str, str] | None = None


def each(read_layer: Callable[[TensorFile], LayerWeights]) -> Reader:
    """The reader of a format in which every file is one layer and needs nothing from the others."""
    return lambda files: [read_layer(file) for file in files]
