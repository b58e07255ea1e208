"""What a reader is, its files without checksums, and values that can be compared."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from circuit_tracer.files.tensors import open_tensor_file
from circuit_tracer.graph import Graph
from circuit_tracer.graph.files.native import HEADER_KEY, VERSION

L, F, D = 2, 7, 5  # layers, features and width of the miniatures


@dataclass(frozen=True)
class Reader:
    """write: a valid miniature into an empty folder. load: all of it, as values that `digest` can compare.

    again: writes what was loaded anew, so that something else than the original is at least valid. sealed: the format has
    checksums over all that counts, so that damaged bytes are never another document.
    """

    name: str
    write: Callable[[Path], Any]
    load: Callable[[Path], Any]
    again: Callable[[Any, Path], Any] | None = None
    sealed: bool = False
    slow: bool = False  # tens of milliseconds a try; left out of the short run


def bare(reader: Reader) -> Reader:
    """Its files without digests and checksums, as other programs write them: these would keep every mutation from the rest."""

    def write(folder: Path) -> None:
        reader.write(folder)
        for path in folder.iterdir():
            if path.suffix == ".safetensors":
                _without_checksums(path)
            elif path.name.endswith(".json.gz"):
                path.write_bytes(gzip.compress(_DIGEST.sub(b"", gzip.decompress(path.read_bytes())), mtime=0))
            elif path.suffix in (".json", ".graphml"):
                path.write_bytes(_DIGEST.sub(b"", path.read_bytes()))

    return replace(reader, write=write)


_DIGEST = re.compile(
    rb'\s*<data key="d\d+">sha256:[0-9a-f]+</data>|,\s*"(graph_)?digest": ?"[^"]*"|"digest": ?"[^"]*",'
)


def _without_checksums(path: Path) -> None:
    file = open_tensor_file(path)
    kept = dict(file.metadata)
    if HEADER_KEY in kept:  # only files of the first version may lack them
        kept[HEADER_KEY] = kept[HEADER_KEY].replace(f'"version": {VERSION}', '"version": 1', 1)
    save_file({name: file.read(name) for name in file.entries}, path, kept)


def digest(value: Any) -> Any:
    """Values that can be compared: tensors as bytes, everything else by its parts. NaN equals NaN."""
    match value:
        case torch.Tensor():
            return (
                str(value.dtype),
                tuple(value.shape),
                value.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes(),
            )
        case np.ndarray():
            return (str(value.dtype), value.shape, value.tobytes())
        case dict():
            return tuple((repr(name), digest(each)) for name, each in value.items())
        case list() | tuple():
            return tuple(digest(each) for each in value)
        case Graph():
            parts = (value.edges, value.targets, value.balance, value.reconstruction, value.validation, value.cfg,
                     value.edge_heads)  # fmt: skip
            named = ("input_string", "input_tokens", "active_features", "selected_features", "activation_values", "scan",
                     "logit_targets", "logit_probabilities", "vocab_size", "token_strings", "provenance")  # fmt: skip
            return digest([*parts, *(getattr(value, name) for name in named)])
        case _ if hasattr(value, "__dataclass_fields__"):
            return tuple((field.name, digest(getattr(value, field.name))) for field in fields(value))
        case _:
            return repr(value)
