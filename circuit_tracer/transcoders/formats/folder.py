"""Finding the files of each layer in a folder."""

from __future__ import annotations

import re
from pathlib import Path

from circuit_tracer.errors import FileFormatError, InputError
from circuit_tracer.files.tensors import TensorFile, join, open_tensor_file

_SUFFIXES = (".safetensors", ".npz")
_CLT_FILE = re.compile(r"W_(enc|dec)_(\d+)\.safetensors")
_PLT_FILE = re.compile(r"layer_(\d+)\.(safetensors|npz)")
_LAYER_NAME = re.compile(r"layers?[._-]?(\d+)", re.IGNORECASE)
_NUMBER = re.compile(r"\d+")


def open_folder(folder: Path) -> list[TensorFile]:
    """The tensors of layers 0, 1, ..., unread. Raises InputError for no folder, FileFormatError for gaps or no files.

    Looked for, in this order: `W_enc_{i}` with `W_dec_{i}`, `layer_{i}`, other tensor files with a layer number in
    their name, subfolders with a layer number that hold one tensor file each, and a single file with all layers.
    """
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}.")
    files = sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES)
    if any(_CLT_FILE.fullmatch(path.name) for path in files):
        return _open_pairs(folder, files)
    native = {int(match[1]): path for path in files if (match := _PLT_FILE.fullmatch(path.name))}
    if native:
        return _open_layers(folder, native)
    files = files or _one_file_a_subfolder(folder)
    if not files:
        raise FileFormatError(
            f"{folder} holds no transcoder files: no .safetensors or .npz in it or in its subfolders. Check the path."
        )
    if len(files) == 1 and _layer_number(files[0], folder) is None:
        return [open_tensor_file(files[0])]
    return _open_layers(folder, _numbered(files, folder))


def _open_pairs(folder: Path, files: list[Path]) -> list[TensorFile]:
    matches = [match for path in files if (match := _CLT_FILE.fullmatch(path.name))]
    found = {kind: {int(match[2]) for match in matches if match[1] == kind} for kind in ("enc", "dec")}
    layers = range(max(found["enc"] | found["dec"]) + 1)
    missing = [
        f"W_{kind}_{layer}.safetensors" for layer in layers for kind in ("enc", "dec") if layer not in found[kind]
    ]
    if missing:
        raise FileFormatError(
            f"{folder}: layers 0 to {layers[-1]} are there, but {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing. Copy the folder again, whole."
        )
    pairs = [[folder / f"W_{kind}_{layer}.safetensors" for kind in ("enc", "dec")] for layer in layers]
    return [join(open_tensor_file(path) for path in pair) for pair in pairs]


def _open_layers(folder: Path, layers: dict[int, Path]) -> list[TensorFile]:
    missing = sorted(set(range(max(layers) + 1)) - set(layers))
    if missing:
        raise FileFormatError(
            f"{folder}: found layers {sorted(layers)}, missing {missing}. Every layer from 0 on needs a transcoder."
        )
    return [open_tensor_file(layers[layer]) for layer in range(len(layers))]


def _one_file_a_subfolder(folder: Path) -> list[Path]:
    found = []
    for child in sorted(path for path in folder.iterdir() if path.is_dir()):
        files = [path for path in child.iterdir() if path.suffix in _SUFFIXES]
        if len(files) > 1:
            raise FileFormatError(
                f"{child} holds {len(files)} tensor files; one a layer is expected. "
                "Name the files to use in config.yaml under `transcoders`."
            )
        found += files
    return found


def _numbered(files: list[Path], folder: Path) -> dict[int, Path]:
    layers: dict[int, Path] = {}
    for path in files:
        layer = _layer_number(path, folder)
        if layer is None or layer in layers:
            raise FileFormatError(
                f"cannot tell which layer {path} belongs to"
                f"{'' if layer is None else f': layer {layer} is also {layers[layer]}'}. "
                "List the files in order in config.yaml under `transcoders`."
            )
        layers[layer] = path
    return layers


def _layer_number(path: Path, folder: Path) -> int | None:
    """The layer that a path names: `layers.5.mlp/sae.safetensors`, `layer_5.npz`, or its only number."""
    name = path.relative_to(folder).with_suffix("").as_posix()
    named = set(_LAYER_NAME.findall(name)) or set(_NUMBER.findall(name))
    return int(named.pop()) if len(named) == 1 else None
