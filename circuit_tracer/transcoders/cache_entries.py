"""Filling the local cache (cache.py) from the hub, and reading it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from circuit_tracer.errors import InputError
from circuit_tracer.files import locked, require_writable_folder
from circuit_tracer.files.tensors import open_tensor_file
from circuit_tracer.transcoders import hub, loading, locate
from circuit_tracer.transcoders.base import Transcoders
from circuit_tracer.transcoders.building import build_layer
from circuit_tracer.transcoders.cache import get_cached_path, hub_reference, is_cached
from circuit_tracer.transcoders.config import CONFIG_NAME, read_config, validate_config, write_config
from circuit_tracer.transcoders.formats.writing import activation_keys, begin_folder, native_names
from circuit_tracer.transcoders.transcoder_set import TranscoderSet

Device = torch.device | str | None
# What the entry's native files are not.
_OF_THE_DOWNLOAD = ("transcoders", "repo_id", "subfolder", "selection", "special_load_fn", "input_shift")


def save_transcoders_to_cache(
    hf_ref: str,
    cache_dir: str | Path | None = None,
    sequential: bool = True,
    device: Device = None,
    dtype: torch.dtype | None = torch.float32,
    delete_hf_cache: bool = True,
) -> Path:
    """Download a set, convert it to native files in ``dtype``, and return the cache entry's folder.

    ``sequential`` fetches, converts and (with ``delete_hf_cache``) deletes one listed file after another, so that a set of
    per-layer transcoders never lies on disk twice; otherwise everything is downloaded first.

    Args:
        hf_ref: Hub reference, `org/name[/subfolder][@revision]`.
        cache_dir: The cache; None: `get_cache_dir()`.
        sequential: Fetch, convert and delete one listed file after another.
        device: Where to convert.
        dtype: Number format of the weights; None: as stored.
        delete_hf_cache: Delete each downloaded file once it is converted.

    Returns:
        The folder of the entry.
    """
    reference = hub_reference(hf_ref)
    folder = get_cached_path(hf_ref, cache_dir)
    config = loading.hub_config(reference)
    listed = config.get("transcoders") or []
    with locked(require_writable_folder(folder)):  # another process may write the same entry in another dtype
        if sequential and config.get("model_kind") == TranscoderSet.kind and listed:
            validate_config(config, f"{CONFIG_NAME} of {reference}")
            activation = _save_one_by_one(listed, config, folder, device, dtype, delete_hf_cache)
        else:
            transcoders, config = loading.load_transcoder_from_hub(
                hf_ref, device, dtype, lazy_encoder=True, lazy_decoder=True, use_cache=False
            )
            begin_folder(folder, native_names(transcoders.kind, transcoders.layers))
            transcoders.to_safetensors(folder)
            activation = activation_keys(transcoders.activation(transcoders.layers[0]))
            if delete_hf_cache:
                _delete_downloads(listed)
        kept = {key: value for key, value in config.items() if key not in _OF_THE_DOWNLOAD}
        write_config(kept | activation, folder)
    return folder


def load_transcoders_from_cache(
    hf_ref: str,
    cache_dir: str | Path | None = None,
    device: Device = None,
    dtype: torch.dtype | None = torch.float32,
    lazy_encoder: bool = False,
    lazy_decoder: bool = True,
) -> tuple[Transcoders, dict[str, Any]]:
    """Transcoders and config of a cache entry; InputError when there is none.

    Args:
        hf_ref: Hub reference, `org/name[/subfolder][@revision]`.
        cache_dir: The cache; None: `get_cache_dir()`.
        device: Where the weights go; None: the CPU.
        dtype: Number format of the weights; None: as stored.
        lazy_encoder: Leave encoder rows in the file until they are read.
        lazy_decoder: Leave decoder rows in the file until they are read.

    Returns:
        (transcoders, the config that they were saved with).

    Raises:
        InputError: When there is none.
    """
    folder = get_cached_path(hf_ref, cache_dir)
    if not is_cached(hf_ref, cache_dir):
        raise InputError(f"{hf_ref} is not in the cache ({folder}). Run save_transcoders_to_cache({hf_ref!r}) first.")
    transcoders, _ = loading.load_transcoder_from_hub(folder, device, dtype, lazy_encoder, lazy_decoder)
    return transcoders, read_config(folder / CONFIG_NAME)


def _save_one_by_one(
    uris: list[str],
    config: dict[str, Any],
    folder: Path,
    device: Device,
    dtype: torch.dtype | None,
    delete_hf_cache: bool,
) -> dict[str, Any]:
    """Fetch, convert and forget one layer after another; returns the config keys of the activation."""
    layers = locate.layers_of(uris)
    names = native_names(TranscoderSet.kind, layers)
    activation: dict[str, Any] | None = None
    for place, (layer, uri, name) in enumerate(zip(layers, uris, names, strict=True)):
        path = hub.download_uris([uri])[0] if uri.startswith("hf://") else Path(uri)
        file = open_tensor_file(path)
        transcoder = build_layer(config, file, layer, "the transcoder config", device, dtype, True, True)
        found = activation_keys(transcoder.activation_function)
        if activation is None:
            begin_folder(folder, names)
        elif found != activation:
            raise InputError(f"{uri}: activation {found} differs from that of layer 0, {activation}; check the list.")
        activation = found
        transcoder.to_safetensors(folder / name)
        if delete_hf_cache and uri not in uris[place + 1 :]:
            _delete_downloads([uri])
    return activation or {}


def _delete_downloads(uris: list[str]) -> None:
    """Remove hub downloads: the links in the snapshot and the blobs they point to."""
    for uri in dict.fromkeys(uri for uri in uris if uri.startswith("hf://")):
        path = hub.download_uris([uri])[0]
        blob = path.resolve()
        path.unlink()
        blob.unlink(missing_ok=True)
