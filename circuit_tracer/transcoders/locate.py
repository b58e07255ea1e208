"""The files of a dictionary, brought to this machine if need be, and opened: of a folder, of a hub repository, of a list."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from circuit_tracer.errors import FileFormatError, InputError
from circuit_tracer.files.tensors import TensorFile, join, open_tensor_file
from circuit_tracer.transcoders import hub
from circuit_tracer.transcoders.config import require_as_written
from circuit_tracer.transcoders.formats.beside import is_a_models_config
from circuit_tracer.transcoders.layouts import Found, find, layer_named
from circuit_tracer.transcoders.references import HubReference
from circuit_tracer.transcoders.selection import Selection, parse_selection

DEEPEST = 5  # folders below the one given that are looked into


@dataclass(frozen=True)
class LayerFiles:
    """One table of tensors a layer, unread, and the layers; None: one file, which names no layer.

    ``l0``: where a layer had several dictionaries, the one taken.
    """

    files: list[TensorFile]
    layers: list[int] | None
    l0: dict[int, int] = field(default_factory=dict)


def in_folder(folder: Path, selection: Selection) -> LayerFiles:
    """Those of a local folder. Raises InputError for no folder or an ambiguous one, FileFormatError for gaps or no files."""
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}.")
    found = find(_names(folder), selection, str(folder), lambda config: is_a_models_config(folder / config))
    return _opened(found, folder)


def on_hub(reference: HubReference) -> LayerFiles:
    """Those of a folder of a hub repository: only the files of the dictionary meant are downloaded."""
    found = found_on_hub(reference)
    return _opened(found, hub.download_files(reference, found.names))


def found_on_hub(reference: HubReference) -> Found:
    """Names of the files of the dictionary that a reference means; nothing is downloaded."""
    selection = parse_selection(reference.selection)
    where = str(reference._replace(selection=None))
    return find(
        hub.list_files(reference),
        selection,
        where,
        lambda config: is_a_models_config(hub.download_file(reference, config)),
    )


def listed(names: Sequence[str], folder: Path) -> LayerFiles:
    """Those of a config's list: hub URIs are downloaded, paths are relative to ``folder``.

    The place in the list is the layer, unless all names say theirs in ascending order: then it is a list of some layers.
    Raises FileFormatError when they say another order.
    """
    uris = list(dict.fromkeys(name for name in names if name.startswith("hf://")))
    remote = dict(zip(uris, hub.download_uris(uris), strict=True)) if uris else {}
    files = [open_tensor_file(remote.get(name) or folder / name) for name in names]
    return LayerFiles(files, layers_of(names))


def layers_of(names: Sequence[str]) -> list[int]:
    """The layer of each file of a list, as `listed` has it."""
    said = [layer_named(name.partition("?")[0]) for name in names]
    layers = [layer for layer in said if layer is not None]
    if len(layers) < len(said):
        return list(range(len(names)))
    # Lists of cross-layer transcoders repeat the last file (formats/gemma_scope_2_clt.py).
    unique = layers[:-1] if len(layers) > 1 and layers[-1] == layers[-2] else layers
    if unique == sorted(set(unique)):
        return [*unique, unique[-1] + 1] if len(unique) < len(layers) else unique
    wrong = next(place for place, layer in enumerate(layers) if layer != place)
    raise FileFormatError(
        f"the list of transcoders is not in the order of its layers: number {wrong} (counted from 0) is {names[wrong]}. "
        "The place in the list is the layer; put them in order."
    )


def _opened(found: Found, root: Path) -> LayerFiles:
    layers = _by_layer(found, root)
    require_as_written(root)  # after what is missing has been named
    return layers


def _by_layer(found: Found, root: Path) -> LayerFiles:
    if found.layers is None:
        return LayerFiles([join([open_tensor_file(root / name) for name in found.files])], None)
    layers = sorted(found.layers)
    files = [join([open_tensor_file(root / name) for name in found.layers[layer]]) for layer in layers]
    return LayerFiles(files, layers, found.l0)


def _names(folder: Path) -> Iterator[str]:
    """Files below a folder, relative to it, with /; hidden folders are left out."""
    for at, folders, files in os.walk(folder):
        place = Path(at).relative_to(folder)
        deep = len(place.parts) >= DEEPEST
        folders[:] = [] if deep else sorted(name for name in folders if not name.startswith("."))
        yield from ((place / name).as_posix() for name in files)
