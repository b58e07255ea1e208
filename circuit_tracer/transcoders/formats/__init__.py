"""File formats of transcoders and autoencoders: one module each, recognised by the names and shapes of their tensors."""

from __future__ import annotations

from circuit_tracer.errors import FileFormatError
from circuit_tracer.files.tensors import TensorFile
from circuit_tracer.transcoders.formats import (
    clt_forge,
    clt_training,
    crosslayer_coding,
    dictionary_learning,
    gemma_scope_1,
    gemma_scope_2_clt,
    gemma_scope_2_plt,
    linear_pair,
    llama_scope,
    native_clt,
    native_plt,
    open_moss,
    qwen_scope,
    saelens,
    saelens_autoencoder,
    sparsify,
    switch,
)
from circuit_tracer.transcoders.formats.format import Format
from circuit_tracer.transcoders.formats.layer_file import LayerFile
from circuit_tracer.transcoders.formats.refused import refuse_known
from circuit_tracer.transcoders.layer_weights import LayerWeights

AUTOENCODERS: tuple[Format, ...] = (
    saelens_autoencoder.FORMAT,
    gemma_scope_2_plt.AUTOENCODER,
    sparsify.AUTOENCODER,
    open_moss.AUTOENCODER,
    llama_scope.FORMAT,
    qwen_scope.FORMAT,
    dictionary_learning.FORMAT,
    linear_pair.FORMAT,
    switch.FORMAT,
)
FORMATS: tuple[Format, ...] = (
    native_clt.FORMAT,
    native_plt.FORMAT,
    gemma_scope_1.FORMAT,
    gemma_scope_2_plt.FORMAT,
    gemma_scope_2_clt.FORMAT,
    clt_training.FORMAT,
    clt_training.CROSS_LAYER,
    sparsify.FORMAT,
    clt_forge.FORMAT,
    clt_forge.PER_LAYER,
    crosslayer_coding.FORMAT,
    open_moss.FORMAT,
    saelens.FORMAT,
    *AUTOENCODERS,
)


def detect_format(file: LayerFile) -> Format:
    """The one format that fits ``file``; FileFormatError with what was found and what is known."""
    refuse_known(file)
    for candidate in FORMATS:
        if candidate.detect(file):
            return candidate
    lines = [f"{each.name}: {each.layout}" for each in FORMATS if each not in AUTOENCODERS]
    lines.append(f"and {', '.join(each.name for each in AUTOENCODERS)}: as transcoders/README.md has them")
    known = "\n".join(f"  {line}" for line in lines)
    raise FileFormatError(f"{file.path} fits no known transcoder format.\nFound: {file.describe()}\nKnown:\n{known}")


def read_layers(files: list[TensorFile]) -> tuple[Format, list[LayerWeights]]:
    """Format and weights of the files of all layers, in order.

    Raises FileFormatError when formats are mixed, and for a tensor or a key of the configuration beside a file that the format
    neither uses nor lists as harmless.
    """
    if not files:
        raise FileFormatError("no transcoder files were given; at least one layer is needed.")
    layers = [LayerFile(file) for file in files]
    formats = [detect_format(layer) for layer in layers]
    for layer, found in zip(layers, formats, strict=True):
        if found is not formats[0]:
            raise FileFormatError(
                f"layers are in different formats: {layers[0].path} is {formats[0].name}, {layer.path} is {found.name}. "
                "All layers must be of one kind."
            )
    weights = formats[0].read(layers)
    for layer in layers:
        layer.require_all_understood(formats[0].name, formats[0].harmless_tensors, formats[0].harmless_keys)
    return formats[0], weights
