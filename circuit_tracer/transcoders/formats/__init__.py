"""File formats of transcoders: one module each, recognised by the names and shapes of their tensors."""

from __future__ import annotations

from circuit_tracer.errors import FileFormatError
from circuit_tracer.files.tensors import TensorFile
from circuit_tracer.transcoders.formats import (
    gemma_scope_1,
    gemma_scope_2_clt,
    gemma_scope_2_plt,
    native_clt,
    native_plt,
    saelens,
    sparsify,
)
from circuit_tracer.transcoders.formats.format import Format
from circuit_tracer.transcoders.layer_weights import LayerWeights

FORMATS: tuple[Format, ...] = (
    native_clt.FORMAT,
    native_plt.FORMAT,
    gemma_scope_1.FORMAT,
    gemma_scope_2_plt.FORMAT,
    gemma_scope_2_clt.FORMAT,
    sparsify.FORMAT,
    saelens.FORMAT,
)


def detect_format(file: TensorFile) -> Format:
    """The one format that fits ``file``; FileFormatError with what was found and what is known."""
    for candidate in FORMATS:
        if candidate.detect(file):
            return candidate
    known = "\n".join(f"  {each.name}: {each.layout}" for each in FORMATS)
    raise FileFormatError(f"{file.path} fits no known transcoder format.\nFound: {file.describe()}\nKnown:\n{known}")


def read_layers(files: list[TensorFile]) -> tuple[Format, list[LayerWeights]]:
    """Format and weights of the files of all layers, in order; FileFormatError when formats are mixed."""
    if not files:
        raise FileFormatError("no transcoder files were given; at least one layer is needed.")
    formats = [detect_format(file) for file in files]
    for file, found in zip(files, formats, strict=True):
        if found is not formats[0]:
            raise FileFormatError(
                f"layers are in different formats: {files[0].path} is {formats[0].name}, {file.path} is {found.name}. "
                "All layers must be of one kind."
            )
    return formats[0], formats[0].read(files)
