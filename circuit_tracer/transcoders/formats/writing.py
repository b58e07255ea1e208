"""Writing native files: whole or not at all, and never mixed with the layers of another transcoder."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from circuit_tracer.errors import FileFormatError, InputError
from circuit_tracer.files import atomic_write, require_writable_folder
from circuit_tracer.files.checksums import write_tensors
from circuit_tracer.transcoders.activations import Activation, TopK
from circuit_tracer.transcoders.config import CONFIG_NAME, NATIVE_FILE
from circuit_tracer.transcoders.formats.layer_file import LayerFile


def native_names(kind: str, layers: Iterable[int]) -> list[str]:
    """The names of all native files of a transcoder of these layers, layer by layer."""
    parts = ["layer"] if kind == "transcoder_set" else ["W_enc", "W_dec"]
    return [f"{part}_{layer}.safetensors" for layer in layers for part in parts]


def prepare_folder(folder: Path, names: list[str]) -> None:
    """Make ``folder`` ready for the files ``names``; InputError when it holds other layers that would be mixed in."""
    require_writable_folder(folder)
    native = {path.name for path in folder.iterdir() if NATIVE_FILE.fullmatch(path.name)}
    stale = sorted(native - set(names))
    if stale:
        raise InputError(
            f"{folder} already holds the files of another transcoder ({', '.join(stale[:4])}"
            f"{', ...' if len(stale) > 4 else ''}). Choose an empty folder or remove them."
        )


def begin_folder(folder: Path, names: list[str]) -> None:
    """`prepare_folder`, and remove config.yaml: it marks a folder as complete and is written last."""
    prepare_folder(folder, names)
    (folder / CONFIG_NAME).unlink(missing_ok=True)


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file with checksums, moved into place when complete."""
    with atomic_write(path) as temporary:
        write_tensors(temporary, tensors, {"format": "pt", **metadata}, path.name)


def activation_metadata(activation: Activation) -> dict[str, str]:
    """What circuit-tracer's tensors cannot say about an activation: TopK. Of its own, it takes k from config.yaml alone, and
    refuses a file with a tensor that it does not know.
    """
    if not isinstance(activation, TopK):
        return {}
    return {"k": str(activation.k)} | ({"relu_before_topk": "true"} if activation.nonnegative else {})


def stored_topk(file: LayerFile, name: str) -> tuple[int | None, bool]:
    """(k, whether a ReLU comes first) as `activation_metadata` wrote them, k in older files as a scalar tensor ``name``.

    (None, False) if the file has no k. FileFormatError for other values, and where they contradict each other.
    """
    noted, relu = file.note("k"), file.note("relu_before_topk")
    if relu not in (None, "true", "false"):
        raise FileFormatError(f"{file.path}: relu_before_topk is {relu!r} in its metadata; true or false is expected.")
    if noted is not None and not re.fullmatch(r"[1-9]\d{0,14}", noted):
        raise FileFormatError(f"{file.path}: k is {noted!r} in its metadata; a whole number above 0 is expected.")
    stored = file.integer(name) if name in file else None
    k = stored if noted is None else int(noted)
    if stored not in (None, k):
        raise FileFormatError(
            f"{file.path}: k is {noted} in its metadata, but tensor {name} says {stored}. Copy it again."
        )
    if relu == "true" and k is None:
        raise FileFormatError(
            f"{file.path}: relu_before_topk is true in its metadata, but no k is stored. Copy it again."
        )
    return k, relu == "true"


def activation_keys(activation: Activation) -> dict[str, Any]:
    """The keys of config.yaml for what circuit-tracer does not learn from the files: TopK and its k."""
    return {"activation": "topk", "k": activation.k} if isinstance(activation, TopK) else {}
